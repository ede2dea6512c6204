"""Configurations: resolution, round trips through YAML, programs by name, and errors."""

from __future__ import annotations

import inspect
from types import SimpleNamespace

import pytest
import torch
import yaml

import pyro_vae as pv
from pyro_vae.cli.app import main
from pyro_vae.config import experiment
from pyro_vae.config.classes import class_types
from pyro_vae.config.signatures import signature_options
from pyro_vae.core.components import Labels
from pyro_vae.learning.objectives.free_bits import FreeBits

BASE = {"data": {"name": "digits", "binarize": "dynamic"}, "model": {"latent_dim": 2}}

#: The attributes that programs read from a data set.
DIGITS = SimpleNamespace(event_shape=(1, 8, 8), num_classes=10, condition=10)

#: Changes to BASE, with a key of the resolved configuration and its expected value.
CASES = {
    "defaults": ({}, "fit.schedule", None),
    "null overrides a default": (
        {"model": {"prior": {"class_path": "VampPrior", "init_args": {"interval": None}}}},
        "model.prior.init_args.interval",
        None,
    ),
    "short name": ({"model": {"prior": "VampPrior"}}, "model.prior.init_args.components", 500),
    "short name of torch": (
        {"model": {"encoder": {"class_path": "MLP", "init_args": {"activation": "ELU"}}}},
        "model.encoder.init_args.activation.class_path",
        "torch.nn.ELU",
    ),
    "union": (
        {"model": {"likelihood": {"class_path": "Gaussian", "init_args": {"scale": 0.5}}}},
        "model.likelihood.init_args.scale",
        0.5,
    ),
    "optimizer": (
        {"fit": {"optimizer": {"class_path": "Adagrad", "init_args": {"lr": 0.02}}}},
        "fit.optimizer.init_args.lr",
        0.02,
    ),
    "schedule": (
        {"fit": {"schedule": {"class_path": "StepLR", "init_args": {"step_size": 5}}}},
        "fit.schedule.init_args.gamma",
        0.1,
    ),
    "mapping": (
        {"model": {"prior": {"class_path": "ZukoPrior", "init_args": {"options": {"bins": 4}}}}},
        "model.prior.init_args.options",
        {"bins": 4},
    ),
    "one plugin": ({"plugin": "colorsys"}, "plugin", None),
}


def write_config(tmp_path, changes):
    """Write BASE with changes to a YAML file."""
    tree = {k: dict(v) for k, v in BASE.items()}
    for key, value in changes.items():
        tree[key] = {**tree.get(key, {}), **value} if isinstance(value, dict) else value
    file = tmp_path / "x.yaml"
    file.write_text(yaml.safe_dump(tree))
    return file


@pytest.mark.parametrize("case", CASES)
def test_resolution_and_round_trip(case, tmp_path):
    changes, path, expected = CASES[case]
    plugin = changes.get("plugin", [])
    first = experiment.load_experiment(write_config(tmp_path, changes), plugin)
    (tmp_path / "again.yaml").write_text(first.to_yaml())
    again = experiment.load_experiment(tmp_path / "again.yaml", plugin)
    assert again.to_yaml() == first.to_yaml()
    assert again.differences(first) == []
    value = first.settings_dict()
    for key in path.split("."):
        assert key in value, f"{path} is missing"
        value = value[key]
    if case != "one plugin":
        assert value == expected


def class_names():
    """Return the short names of the classes that each option accepts."""
    options = {f"model.{o.name}": o for o in signature_options(pv.VAE)}
    options |= {o.name: o for o in experiment.EXPERIMENT_OPTIONS if o.name == "objective"}
    types = {name: class_types(option.hint) for name, option in options.items()}
    return {name: found[0].names for name, found in types.items() if found}


@pytest.mark.parametrize(
    ("option", "name"),
    [(option, name) for option, names in class_names().items() for name in names],
)
def test_every_class_by_name(option, name, tmp_path):
    part = option.rpartition(".")[2]
    changes = {"model": {part: name}} if option != "objective" else {"objective": name}
    if name == "UniformSphere":
        changes["model"]["posterior"] = "PowerSpherical"
    if name == "PowerSpherical":
        changes["model"]["prior"] = "UniformSphere"
    if name == "Columns":
        pytest.skip("has required arguments: tests/likelihoods/test_columns.py")
    first = experiment.load_experiment(write_config(tmp_path, changes))
    (tmp_path / "again.yaml").write_text(first.to_yaml())
    again = experiment.load_experiment(tmp_path / "again.yaml")
    assert again.differences(first) == [] and again.to_yaml() == first.to_yaml()
    if option == "objective":
        assert type(again.objective).__name__ == name
        return
    vae, same = first.build_model(DIGITS), again.build_model(DIGITS)
    component = {"encoder": vae.posterior, "decoder": vae.likelihood}.get(part)
    component = component.network if component else getattr(vae, part)
    assert type(component).__name__.removeprefix("Pyro") == name
    state, twin = vae.state_dict(), same.state_dict()
    assert state.keys() == twin.keys()
    assert all(torch.equal(state[key], twin[key]) for key in state)


def test_nested_variational_family(tmp_path):
    family = {"class_path": "PlanarFlow", "init_args": {"flows": 3}}
    posterior = {"class_path": "SemiAmortized", "init_args": {"family": family, "steps": 2}}
    first = experiment.load_experiment(write_config(tmp_path, {"model": {"posterior": posterior}}))
    (tmp_path / "again.yaml").write_text(first.to_yaml())
    vae = experiment.load_experiment(tmp_path / "again.yaml").build_model(DIGITS)
    assert vae.posterior.family.flows == 3 and vae.posterior.steps == 2


def test_all_options_are_written(tmp_path):
    settings = experiment.load_experiment(write_config(tmp_path, {})).settings_dict()
    assert set(settings) == {"plugin", "data", "model", "objective", "fit"}
    assert set(settings["data"]) == set(inspect.signature(pv.data.load).parameters)
    expected = set(inspect.signature(pv.VAE).parameters) - {"event_shape"}
    assert set(settings["model"]) == expected
    set_by_the_run = {"program", "train", "valid", "objective"}
    set_by_the_run |= {"checkpoint", "resume", "on_epoch", "progress", "log"}
    set_by_the_run |= {"args", "kwargs", "arguments", "plate"}  # of programs in Python
    assert set(settings["fit"]) == set(inspect.signature(pv.fit).parameters) - set_by_the_run


def test_short_names_are_those_of_public_components(tmp_path):
    class MLP(torch.nn.Module):
        """Has the name of a component, as ``torchvision.ops.MLP`` does."""

    changes = {"model": {"encoder": "MLP"}}
    settings = experiment.load_experiment(write_config(tmp_path, changes)).settings_dict()
    assert settings["model"]["encoder"]["class_path"] == "pyro_vae.networks.MLP"


def test_differences_are_keys(tmp_path):
    first = experiment.load_experiment(write_config(tmp_path, {}))
    other = experiment.load_experiment(
        write_config(tmp_path, {"fit": {"seed": 3}, "model": {"prior": "VampPrior"}})
    )
    assert other.differences(first) == [
        "fit.seed",
        "model.prior.class_path",
        "model.prior.init_args.components",
        "model.prior.init_args.interval",
        "model.prior.init_args.start",
    ]


def test_experiment_seed_determines_initial_weights(tmp_path):
    first, same = (
        experiment.load_experiment(write_config(tmp_path, {"fit": {"seed": 5}})) for _ in range(2)
    )
    other = experiment.load_experiment(write_config(tmp_path, {"fit": {"seed": 6}}))
    weights = [
        next(e.build_model(DIGITS).parameters()).flatten()[:5].tolist()
        for e in (first, same, other)
    ]
    assert weights[0] == weights[1] != weights[2]


@pytest.mark.parametrize(
    "model",
    [
        {"prior": {"class_path": "VampPrior", "components": 7}},
        {"prior": "VampPrior", "prior.components": 7},
        {"prior.init_args.components": 7, "prior.class_path": "VampPrior"},
    ],
)
def test_short_forms_of_arguments(model, tmp_path):
    full = {"prior": {"class_path": "VampPrior", "init_args": {"components": 7}}}
    expected = experiment.load_experiment(write_config(tmp_path, {"model": full})).to_yaml()
    assert (
        experiment.load_experiment(write_config(tmp_path, {"model": model})).to_yaml() == expected
    )


def test_the_order_of_options_does_not_matter():
    base = ["--data.name=digits", "--data.binarize=none", "--model.latent_dim=2"]
    options = ["--model.prior.components=7", "--model.prior=VampPrior"]
    assert parse(*options, *base).to_yaml() == parse(*base, *options[::-1]).to_yaml()


def test_keys_of_a_mapping():
    base = ["--data.name=digits", "--data.binarize=none", "--model.latent_dim=2"]
    prior = ["--model.prior=ZukoPrior", '--model.prior.options={"bins": 4, "transforms": 2}']

    def options(*args):
        return parse(*base, *prior, *args).settings_dict()["model"]["prior"]["init_args"]["options"]

    assert options() == {"bins": 4, "transforms": 2}
    assert options("--model.prior.options.bins=6") == {"bins": 6, "transforms": 2}
    assert options("--model.prior.options=null") is None
    # mappings as values of a mapping
    assert options("--model.prior.options.network={depth: 2}")["network"] == {"depth": 2}
    for args, message in {
        "--model.prior.options.bins": r"a value after --model\.prior\.options\.bins; got nothing",
        "--model.prior.options": r"expected a value after --model\.prior\.options; got nothing",
        "--model.prior.options=3": "expected model.prior.options to be a mapping or null; got 3",
    }.items():
        with pytest.raises(ValueError, match=message):
            options(args)


PLUGIN = """\
from pyro_vae.models import VAE
from pyro_vae.core.components import Labels
from pyro_vae.learning.objectives.free_bits import FreeBits

class WithNote(VAE):
    \"\"\"A VAE that stores its arguments.

    Arguments:
        event_shape: the shape of one datum.
        latent_dim: the number of latents.
        note: any string.
    \"\"\"

    from_data = ("event_shape", "num_classes")
    labels = Labels.PARTIAL

    def __init__(self, event_shape, num_classes, latent_dim: int = 3, note: str = "none"):
        super().__init__(event_shape, latent_dim)
        self.arguments = (num_classes, note)
"""


def parse(*args):
    return experiment.parse(args)


NESTED = {"class_path": "HierarchicalVAE", "init_args": {"latent_dims": [4, 3]}}
LIST = "[{class_path: MLP, init_args: {hidden: [5]}}, GatedMLP]"


@pytest.mark.parametrize(
    "args",
    [
        ["--model", "HierarchicalVAE", "--model.latent_dims", "[4,3]"],
        ["--model=pyro_vae.models.HierarchicalVAE", "--model.latent_dims=[4,3]"],
        ["--model.class_path", "HierarchicalVAE", "--model.init_args.latent_dims", "[4,3]"],
        None,
    ],
)
def test_program_by_name(args, tmp_path):
    """In YAML, or on the command line, where it replaces a VAE and its arguments."""
    file = write_config(tmp_path, {"model": {"prior": "VampPrior"}})
    if args is None:
        file.write_text(yaml.safe_dump({**BASE, "model": NESTED}))
    first = parse("--config", str(file), *(args or []), "--model.encoders", LIST)
    settings = first.settings_dict()["model"]
    assert settings["class_path"] == "pyro_vae.models.HierarchicalVAE"
    assert settings["init_args"]["latent_dims"] == [4, 3]
    assert settings["init_args"]["prior"] == {"class_path": "pyro_vae.priors.StandardNormal"}
    assert settings["init_args"]["decoders"]["init_args"]["hidden"] == [200, 200]
    (tmp_path / "again.yaml").write_text(first.to_yaml())
    again = experiment.load_experiment(tmp_path / "again.yaml")
    assert again.differences(first) == [] and again.to_yaml() == first.to_yaml()
    model, same = first.build_model(DIGITS), again.build_model(DIGITS)
    assert type(model) is pv.models.HierarchicalVAE and model.latent_dims == (4, 3)
    kinds = [type(m).__name__ for m in model.inference.modules()]
    assert "GatedMLP" in kinds and "MLP" in kinds
    state, twin = model.state_dict(), same.state_dict()
    assert state.keys() == twin.keys()
    assert all(torch.equal(state[key], twin[key]) for key in state)


def test_vae_is_the_default_program_and_written_without_a_name(tmp_path):
    plain = experiment.load_experiment(write_config(tmp_path, {}))
    named = {"class_path": "pyro_vae.models.VAE", "init_args": {"latent_dim": 2}}
    assert "class_path" not in plain.settings_dict()["model"]
    file = tmp_path / "named.yaml"
    file.write_text(yaml.safe_dump({**BASE, "model": named}))
    assert experiment.load_experiment(file).to_yaml() == plain.to_yaml()
    # switching back to it drops the arguments of the other program
    file.write_text(yaml.safe_dump({**BASE, "model": NESTED}))
    back = parse("--config", str(file), "--model", "VAE", "--model.latent_dim", "2")
    assert back.to_yaml() == plain.to_yaml()


def test_different_programs_differ_in_the_key_model(tmp_path):
    base = ["--data.name", "digits", "--data.binarize", "none"]
    vae = parse(*base, "--model.latent_dim", "2")
    hierarchical = parse(
        *base, "--model", "HierarchicalVAE", "--model.latent_dims", "[4,2]", "--fit.seed", "1"
    )
    conditional = parse(*base, "--model", "ConditionalVAE", "--model.latent_dim", "2")
    assert vae.differences(hierarchical) == hierarchical.differences(vae) == ["fit.seed", "model"]
    assert vae.differences(conditional) == ["model"]


def test_class_paths_of_the_same_class_are_equal(tmp_path):
    base = ["--data.name", "digits", "--data.binarize", "none", "--model.latent_dim", "2"]
    public = parse(*base, "--objective.beta", "LinearWarmUp")
    assert "pyro_vae.learning.LinearWarmUp" in public.to_yaml()
    file = tmp_path / "before.yaml"
    before = public.to_yaml().replace("learning.Linear", "learning.schedules.Linear")
    file.write_text(before, encoding="utf-8")
    assert public.differences(experiment.load_experiment(file)) == []
    other = parse(*base, "--objective.beta", "Cyclical")
    assert "objective.init_args.beta.class_path" in public.differences(other)


def test_print_config_selects_the_same_program(tmp_path, capsys):
    file = tmp_path / "again.yaml"
    base = ["--data.name", "digits", "--data.binarize", "none"]
    for model in (["VAE"], ["ConditionalVAE"], ["HierarchicalVAE", "--model.inference", "TopDown"]):
        size = ["--model.latent_dim" + "s" * (len(model) > 1), "[4,2]" if len(model) > 1 else "2"]
        args = [*base, "--model", *model, *size]
        assert main(["fit", *args, "--print_config"]) == 0
        file.write_text(capsys.readouterr().out)
        assert experiment.load_experiment(file).to_yaml() == parse(*args).to_yaml()


def test_program_in_a_plugin(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "my_models.py").write_text(PLUGIN)
    base = ["--data.name", "digits", "--data.binarize", "none", "--plugin", "my_models"]
    first = parse(*base, "--model", "my_models.WithNote", "--model.note", "hello")
    assert first.settings_dict()["model"] == {
        "class_path": "my_models.WithNote",
        "init_args": {"latent_dim": 3, "note": "hello"},
    }
    (tmp_path / "again.yaml").write_text(first.to_yaml())
    model = experiment.load_experiment(tmp_path / "again.yaml", "my_models").build_model(DIGITS)
    assert model.arguments == (10, "hello") and model.labels is Labels.PARTIAL


@pytest.mark.parametrize(
    ("args", "message"),
    [
        ("Hierarchical", "expected model to be one of VAE, .*; did you mean HierarchicalVAE?"),
        ("3", "expected model to be the name of a class; got '3'"),
        ("Autoencoder", "expected model to be one of VAE, .*; got 'Autoencoder'"),
        (
            "torch.nn.Linear",
            "expected model to be a concrete subclass of Autoencoder; got 'torch.nn.L",
        ),
        (
            "pyro_vae.models.Autoencoder",
            "expected model to be a concrete subclass of .*; got 'pyro_vae",
        ),
        (
            "os.path",
            "expected model to be a class of .*; got 'os.path': to use your own module add",
        ),
        ("pyro_vae.models.VAEE", "module pyro_vae.models has no 'VAEE'; did you mean VAE"),
        (
            "pyro_vae.model.VAE",
            "expected model to be the path of a class; cannot import module pyro_vae.m",
        ),
        ("HierarchicalVAE --model.latent_dim 3", "unknown option --model.latent_dim; did you"),
        ("HierarchicalVAE --model.encoders MLPP", "expected model.encoders to be one of MLP, "),
        ("HierarchicalVAE --model.encoders [MLPP]", "expected model.encoders to be .*mean MLP?"),
    ],
)
def test_unknown_programs_are_rejected(args, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        parse("--config", str(write_config(tmp_path, {})), "--model", *args.split())


def test_help_of_a_program(capsys):
    with pytest.raises(SystemExit) as exited:
        parse("--model.help", "SemiSupervisedVAE")
    assert exited.value.code == 0
    printed = capsys.readouterr().out
    assert "--model.classifier" in printed and "one of MLP, ConvNet" in " ".join(printed.split())
    # arguments set by the data are not options
    assert "num_classes" not in printed and "--model.event_shape" not in printed


def test_short_name_within_an_objective(tmp_path):
    file = write_config(tmp_path, {})
    args = ["--objective.free_bits", "FreeBits", "--objective.free_bits.nats", "0.5"]
    first = parse("--config", str(file), *args)
    assert first.objective.free_bits == FreeBits(0.5)
    file.write_text(first.to_yaml())
    assert experiment.load_experiment(file).objective.free_bits == FreeBits(0.5)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"data": {"valid": None}}, "expected data.valid to have a value; got null: leave it out"),
        ({"model": {"latent_dim": None}}, "expected model.latent_dim to have a value; got null"),
        ({"plugin": 3}, "expected plugin to be a list or a string; got 3"),
        (
            {
                "objective": {
                    "class_path": "ELBO",
                    "beta": {"class_path": "LinearWarmUp", "epochs": -1},
                }
            },
            "^expected epochs > 0 and finite; got -1.0$",
        ),
        (
            {"fit": {"schedule": {"class_path": "LambdaLR", "lr_lambda": "os.getpid"}}},
            "^expected functions and classes of pyro_vae, torch.nn, torch.optim or a --plugin; got "
            "'.*getpid': to use your own module add --plugin .*$",
        ),
    ],
)
def test_errors_are_sentences_of_ours(changes, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        _ = experiment.load_experiment(write_config(tmp_path, changes)).objective
