"""Configurations: resolved in full, and the same again after writing and reading."""

from __future__ import annotations

import inspect
from types import SimpleNamespace

import pytest
import torch
import yaml

import pyro_vae as pv
from pyro_vae.config import experiment
from pyro_vae.core.components import Labels
from pyro_vae.learning.objectives.free_bits import FreeBits

BASE = {"data": {"name": "digits", "binarize": "dynamic"}, "model": {"latent_dim": 2}}

#: What programs ask of a data set.
DIGITS = SimpleNamespace(event_shape=(1, 8, 8), num_classes=10, condition=10)

#: What a configuration may say besides, and a place where its resolved form shows it.
CASES = {
    "defaults": ({}, "fit.schedule", None),
    "a null for a default": (
        {"model": {"prior": {"class_path": "VampPrior", "init_args": {"interval": None}}}},
        "model.prior.init_args.interval",
        None,
    ),
    "a short name": ({"model": {"prior": "VampPrior"}}, "model.prior.init_args.components", 500),
    "a short name of torch": (
        {"model": {"encoder": {"class_path": "MLP", "init_args": {"activation": "ELU"}}}},
        "model.encoder.init_args.activation.class_path",
        "torch.nn.ELU",
    ),
    "a union": (
        {"model": {"likelihood": {"class_path": "Gaussian", "init_args": {"scale": 0.5}}}},
        "model.likelihood.init_args.scale",
        0.5,
    ),
    "an optimizer": (
        {"fit": {"optimizer": {"class_path": "Adagrad", "init_args": {"lr": 0.02}}}},
        "fit.optimizer.init_args.lr",
        0.02,
    ),
    "a schedule": (
        {"fit": {"schedule": {"class_path": "StepLR", "init_args": {"step_size": 5}}}},
        "fit.schedule.init_args.gamma",
        0.1,
    ),
    "one plugin": ({"plugin": "colorsys"}, "plugin", None),
}


def written(tmp_path, changes):
    tree = {k: dict(v) for k, v in BASE.items()}
    for key, value in changes.items():
        tree[key] = {**tree.get(key, {}), **value} if isinstance(value, dict) else value
    file = tmp_path / "x.yaml"
    file.write_text(yaml.safe_dump(tree))
    return file


@pytest.mark.parametrize("case", CASES)
def test_resolved_and_round_trip(case, tmp_path):
    changes, place, expected = CASES[case]
    first = experiment.parse(written(tmp_path, changes))
    (tmp_path / "again.yaml").write_text(first.to_yaml())
    again = experiment.parse(tmp_path / "again.yaml")
    assert again.to_yaml() == first.to_yaml()
    assert again.differences(first) == []
    value = first.settings_dict()
    for key in place.split("."):
        assert key in value, f"{place} is not written"
        value = value[key]
    if case != "one plugin":
        assert value == expected


@pytest.mark.parametrize(
    ("slot", "name"),
    [
        (slot, name)
        for slot, names in experiment.slots().items()
        if slot != "model"
        for name in names
    ],
)
def test_every_class_by_its_name(slot, name, tmp_path):
    """One word in YAML is another model, and it is the same after writing and reading."""
    part = slot.rpartition(".")[2]
    words = {"model": {part: name}} if slot != "objective" else {"objective": name}
    if name == "UniformSphere":
        words["model"]["posterior"] = "PowerSpherical"
    if name == "PowerSpherical":
        words["model"]["prior"] = "UniformSphere"
    first = experiment.parse(written(tmp_path, words))
    (tmp_path / "again.yaml").write_text(first.to_yaml())
    again = experiment.parse(tmp_path / "again.yaml")
    assert again.differences(first) == [] and again.to_yaml() == first.to_yaml()
    if slot == "objective":
        assert type(again.objective).__name__ == name
        return
    vae, same = first.build_model(DIGITS), again.build_model(DIGITS)
    made = {"encoder": vae.posterior, "decoder": vae.likelihood}.get(part) or getattr(vae, part)
    made = made.network if part in ("encoder", "decoder") else made
    assert type(made).__name__.removeprefix("Pyro") == name
    state, twin = vae.state_dict(), same.state_dict()
    assert state.keys() == twin.keys()
    assert all(torch.equal(state[key], twin[key]) for key in state)


def test_a_family_within_a_family(tmp_path):
    family = {"class_path": "PlanarFlow", "init_args": {"flows": 3}}
    words = {"class_path": "SemiAmortized", "init_args": {"family": family, "steps": 2}}
    first = experiment.parse(written(tmp_path, {"model": {"posterior": words}}))
    (tmp_path / "again.yaml").write_text(first.to_yaml())
    vae = experiment.parse(tmp_path / "again.yaml").build_model(DIGITS)
    assert vae.posterior.family.flows == 3 and vae.posterior.steps == 2


def test_every_option_is_written(tmp_path):
    settings = experiment.parse(written(tmp_path, {})).settings_dict()
    assert set(settings) == {"plugin", "data", "model", "objective", "fit"}
    assert set(settings["data"]) == set(inspect.signature(pv.data.load).parameters)
    expected = set(inspect.signature(pv.VAE).parameters) - {"event_shape"}
    assert set(settings["model"]) == expected
    given_by_the_run = {"program", "train", "valid", "objective"}
    given_by_the_run |= {"checkpoint", "resume", "on_epoch", "progress"}
    assert set(settings["fit"]) == set(inspect.signature(pv.fit).parameters) - given_by_the_run


def test_short_names_stay_unambiguous_beside_torchvision(tmp_path):
    # torchvision.ops.MLP is an nn.Module of the same name
    from pyro_vae.data import sources

    sources.datasets()
    settings = experiment.parse(written(tmp_path, {"model": {"encoder": "MLP"}})).settings_dict()
    assert settings["model"]["encoder"]["class_path"] == "pyro_vae.networks.MLP"


def test_differences_name_the_keys(tmp_path):
    first = experiment.parse(written(tmp_path, {}))
    other = experiment.parse(
        written(tmp_path, {"fit": {"seed": 3}, "model": {"prior": "VampPrior"}})
    )
    assert other.differences(first) == [
        "fit.seed",
        "model.prior.class_path",
        "model.prior.init_args.components",
        "model.prior.init_args.interval",
        "model.prior.init_args.start",
    ]


def test_the_seed_of_the_initial_weights_is_the_experiments(tmp_path):
    one, same = (experiment.parse(written(tmp_path, {"fit": {"seed": 5}})) for _ in range(2))
    other = experiment.parse(written(tmp_path, {"fit": {"seed": 6}}))
    weights = [
        next(e.build_model(DIGITS).parameters()).flatten()[:5].tolist() for e in (one, same, other)
    ]
    assert weights[0] == weights[1] != weights[2]


PLUGIN = """\
from pyro_vae.models import VAE
from pyro_vae._programs import Labels
from pyro_vae.learning.objectives.free_bits import FreeBits

class Told(VAE):
    \"\"\"A VAE that says what it was told.

    Arguments:
        event_shape: the shape of one datum.
        latent_dim: the number of latents.
        word: anything.
    \"\"\"

    from_data = ("event_shape", "num_classes")
    labels = Labels.PARTIAL

    def __init__(self, event_shape, num_classes, latent_dim: int = 3, word: str = "none"):
        super().__init__(event_shape, latent_dim)
        self.told = (num_classes, word)
"""


def spoken(*words):
    made = experiment.parser(words)
    return experiment.Experiment(made, experiment.explained(made, words))


NESTED = {"class_path": "HierarchicalVAE", "init_args": {"latent_dims": [4, 3]}}
LIST = "[{class_path: MLP, init_args: {hidden: [5]}}, GatedMLP]"


@pytest.mark.parametrize(
    "words",
    [
        ["--model", "HierarchicalVAE", "--model.latent_dims", "[4,3]"],
        ["--model=pyro_vae.models.HierarchicalVAE", "--model.latent_dims=[4,3]"],
        ["--model.class_path", "HierarchicalVAE", "--model.init_args.latent_dims", "[4,3]"],
        None,
    ],
)
def test_another_program_by_its_name(words, tmp_path):
    """In YAML, or on the command line in place of a VAE whose arguments are forgotten."""
    file = written(tmp_path, {"model": {"prior": "VampPrior"}})
    if words is None:
        file.write_text(yaml.safe_dump({**BASE, "model": NESTED}))
    first = spoken("--config", str(file), *(words or []), "--model.encoders", LIST)
    settings = first.settings_dict()["model"]
    assert settings["class_path"] == "pyro_vae.models.HierarchicalVAE"
    assert settings["init_args"]["latent_dims"] == [4, 3]
    assert settings["init_args"]["prior"] == {"class_path": "pyro_vae.priors.StandardNormal"}
    assert settings["init_args"]["decoders"]["init_args"]["hidden"] == [200, 200]
    (tmp_path / "again.yaml").write_text(first.to_yaml())
    again = experiment.parse(tmp_path / "again.yaml")
    assert again.differences(first) == [] and again.to_yaml() == first.to_yaml()
    model, same = first.build_model(DIGITS), again.build_model(DIGITS)
    assert type(model) is pv.models.HierarchicalVAE and model.latent_dims == (4, 3)
    kinds = [type(m).__name__ for m in model.inference.modules()]
    assert "GatedMLP" in kinds and "MLP" in kinds
    state, twin = model.state_dict(), same.state_dict()
    assert state.keys() == twin.keys()
    assert all(torch.equal(state[key], twin[key]) for key in state)


def test_a_vae_needs_no_name_and_is_written_without(tmp_path):
    plain = experiment.parse(written(tmp_path, {}))
    named = {"class_path": "pyro_vae.models.VAE", "init_args": {"latent_dim": 2}}
    assert "class_path" not in plain.settings_dict()["model"]
    file = tmp_path / "named.yaml"
    file.write_text(yaml.safe_dump({**BASE, "model": named}))
    assert experiment.parse(file).to_yaml() == plain.to_yaml()
    # going back to it forgets the other program's arguments
    file.write_text(yaml.safe_dump({**BASE, "model": NESTED}))
    back = spoken("--config", str(file), "--model", "VAE", "--model.latent_dim", "2")
    assert back.to_yaml() == plain.to_yaml()


def test_two_programs_differ_in_the_model(tmp_path):
    words = ["--data.name", "digits", "--data.binarize", "none"]
    vae = spoken(*words, "--model.latent_dim", "2")
    hierarchical = spoken(
        *words, "--model", "HierarchicalVAE", "--model.latent_dims", "[4,2]", "--fit.seed", "1"
    )
    conditional = spoken(*words, "--model", "ConditionalVAE", "--model.latent_dim", "2")
    assert vae.differences(hierarchical) == hierarchical.differences(vae) == ["fit.seed", "model"]
    assert vae.differences(conditional) == ["model"]


def test_a_class_is_the_same_by_both_of_its_paths(tmp_path):
    words = ["--data.name", "digits", "--data.binarize", "none", "--model.latent_dim", "2"]
    public = spoken(*words, "--objective.beta", "LinearWarmUp")
    assert "pyro_vae.learning.LinearWarmUp" in public.to_yaml()
    file = tmp_path / "before.yaml"
    before = public.to_yaml().replace("learning.Linear", "learning.schedules.Linear")
    file.write_text(before, encoding="utf-8")
    assert public.differences(experiment.parse(file)) == []
    other = spoken(*words, "--objective.beta", "Cyclical")
    assert "objective.init_args.beta.class_path" in public.differences(other)


def test_the_printed_configuration_is_that_of_the_program(tmp_path, capsys):
    file = tmp_path / "again.yaml"
    words = ["--data.name", "digits", "--data.binarize", "none"]
    for model in (["VAE"], ["ConditionalVAE"], ["HierarchicalVAE", "--model.inference", "TopDown"]):
        size = ["--model.latent_dim" + "s" * (len(model) > 1), "[4,2]" if len(model) > 1 else "2"]
        spoken_of = [*words, "--model", *model, *size]
        with pytest.raises(SystemExit):
            spoken(*spoken_of, "--print_config")
        file.write_text(capsys.readouterr().out)
        assert experiment.parse(file).to_yaml() == spoken(*spoken_of).to_yaml()


def test_a_program_of_a_plugin(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "told.py").write_text(PLUGIN)
    words = ["--data.name", "digits", "--data.binarize", "none", "--plugin", "told"]
    first = spoken(*words, "--model", "told.Told", "--model.word", "hello")
    assert first.settings_dict()["model"] == {
        "class_path": "told.Told",
        "init_args": {"latent_dim": 3, "word": "hello"},
    }
    (tmp_path / "again.yaml").write_text(first.to_yaml())
    model = experiment.parse(tmp_path / "again.yaml").build_model(DIGITS)
    assert model.told == (10, "hello") and model.labels is Labels.PARTIAL


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("Hierarchical", "expected model to be one of VAE, .*; did you mean HierarchicalVAE?"),
        ("Autoencoder", "expected model to be one of VAE, .*; got 'Autoencoder'"),
        ("torch.nn.Linear", "expected model to be an Autoencoder; got 'torch.nn.Linear', which"),
        ("pyro_vae.models.Autoencoder", "expected model to be an Autoencoder; got 'pyro_vae"),
        ("os.path", "expected model to name a class of .*; got 'os.path', which is not imported"),
        ("pyro_vae.models.VAEE", "module pyro_vae.models has no 'VAEE'; did you mean VAE"),
        ("pyro_vae.model.VAE", "expected model to name a class; there is no module pyro_vae.model"),
        ("HierarchicalVAE --model.latent_dim 3", "there is no option --model.latent_dim; did you"),
        ("HierarchicalVAE --model.encoders MLPP", "expected model.encoders to be one of MLP, "),
        ("HierarchicalVAE --model.encoders [MLPP]", "expected model.encoders to be .*mean MLP?"),
    ],
)
def test_a_program_that_there_is_not(words, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        spoken("--config", str(written(tmp_path, {})), "--model", *words.split())


def test_the_options_of_a_program(capsys):
    with pytest.raises(SystemExit) as exited:
        spoken("--model.help", "SemiSupervisedVAE")
    assert exited.value.code == 0
    printed = capsys.readouterr().out
    assert "--model.classifier" in printed and "one of MLP, ConvNet" in " ".join(printed.split())
    # what the data decide is not asked for
    assert "num_classes" not in printed and "--model.event_shape" not in printed


def test_what_an_objective_is_made_of_has_a_name(tmp_path):
    file = written(tmp_path, {})
    words = ["--objective.free_bits", "FreeBits", "--objective.free_bits.nats", "0.5"]
    first = spoken("--config", str(file), *words)
    assert first.objective.free_bits == FreeBits(0.5)
    file.write_text(first.to_yaml())
    assert experiment.parse(file).objective.free_bits == FreeBits(0.5)
