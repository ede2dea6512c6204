"""Configurations: resolved in full, and the same again after writing and reading."""

from __future__ import annotations

import inspect

import pytest
import torch
import yaml

import pyro_vae as pv
from pyro_vae import _parsing, config

BASE = {"data": {"name": "digits", "binarize": "dynamic"}, "model": {"latent_dim": 2}}

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
    first = config.parse(written(tmp_path, changes))
    (tmp_path / "again.yaml").write_text(first.to_yaml())
    again = config.parse(tmp_path / "again.yaml")
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
    [(slot, name) for slot, module in config._SLOTS.items() for name in _parsing.names(module)],
)
def test_every_class_by_its_name(slot, name, tmp_path):
    """One word in YAML is another model, and it is the same after writing and reading."""
    part = slot.rpartition(".")[2]
    words = {"model": {part: name}} if slot != "objective" else {"objective": name}
    if name == "UniformSphere":
        words["model"]["posterior"] = "PowerSpherical"
    if name == "PowerSpherical":
        words["model"]["prior"] = "UniformSphere"
    first = config.parse(written(tmp_path, words))
    (tmp_path / "again.yaml").write_text(first.to_yaml())
    again = config.parse(tmp_path / "again.yaml")
    assert again.differences(first) == [] and again.to_yaml() == first.to_yaml()
    if slot == "objective":
        assert type(again.objective).__name__ == name
        return
    vae, same = first.build_model((1, 8, 8)), again.build_model((1, 8, 8))
    made = {"encoder": vae.posterior, "decoder": vae.likelihood}.get(part) or getattr(vae, part)
    made = made.network if part in ("encoder", "decoder") else made
    assert type(made).__name__.removeprefix("Pyro") == name
    state, twin = vae.state_dict(), same.state_dict()
    assert state.keys() == twin.keys()
    assert all(torch.equal(state[key], twin[key]) for key in state)


def test_a_family_within_a_family(tmp_path):
    family = {"class_path": "PlanarFlow", "init_args": {"flows": 3}}
    words = {"class_path": "SemiAmortized", "init_args": {"family": family, "steps": 2}}
    first = config.parse(written(tmp_path, {"model": {"posterior": words}}))
    (tmp_path / "again.yaml").write_text(first.to_yaml())
    vae = config.parse(tmp_path / "again.yaml").build_model((1, 8, 8))
    assert vae.posterior.family.flows == 3 and vae.posterior.steps == 2


def test_every_option_is_written(tmp_path):
    settings = config.parse(written(tmp_path, {})).settings_dict()
    assert set(settings) == {"plugin", "data", "model", "objective", "fit"}
    assert set(settings["data"]) == set(inspect.signature(pv.data.load).parameters)
    expected = set(inspect.signature(pv.VAE).parameters) - {"event_shape"}
    assert set(settings["model"]) == expected
    given_by_the_run = {"program", "train", "valid", "objective"}
    given_by_the_run |= {"checkpoint", "resume", "on_epoch", "progress"}
    assert set(settings["fit"]) == set(inspect.signature(pv.fit).parameters) - given_by_the_run


def test_short_names_stay_unambiguous_beside_torchvision(tmp_path):
    # torchvision.ops.MLP is an nn.Module of the same name
    from pyro_vae.data import _torchvision

    _torchvision.datasets()
    settings = config.parse(written(tmp_path, {"model": {"encoder": "MLP"}})).settings_dict()
    assert settings["model"]["encoder"]["class_path"] == "pyro_vae.networks.MLP"


def test_differences_name_the_keys(tmp_path):
    first = config.parse(written(tmp_path, {}))
    other = config.parse(written(tmp_path, {"fit": {"seed": 3}, "model": {"prior": "VampPrior"}}))
    assert other.differences(first) == [
        "fit.seed",
        "model.prior.class_path",
        "model.prior.init_args.components",
        "model.prior.init_args.interval",
        "model.prior.init_args.start",
    ]


def test_the_seed_of_the_initial_weights_is_the_experiments(tmp_path):
    one, same = (config.parse(written(tmp_path, {"fit": {"seed": 5}})) for _ in range(2))
    other = config.parse(written(tmp_path, {"fit": {"seed": 6}}))
    weights = [
        next(e.build_model((1, 8, 8)).parameters()).flatten()[:5].tolist()
        for e in (one, same, other)
    ]
    assert weights[0] == weights[1] != weights[2]
