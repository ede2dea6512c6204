"""Output of ``pyro-vae list``."""

from __future__ import annotations

import inspect
import re
from itertools import pairwise

import pytest
from components import LIKELIHOODS, NETWORKS, POSTERIORS, PRIORS

from pyro_vae import data, models
from pyro_vae.cli.app import main
from pyro_vae.config import catalogue
from pyro_vae.config.classes import component_names
from pyro_vae.data.sources import SOURCES
from pyro_vae.learning import objectives, trackers
from pyro_vae.learning.objectives import baselines


def test_list_shows_all_components(capsys):
    assert main(["list"]) == 0
    printed = capsys.readouterr().out
    printed, _, combinations = printed.strip().partition("\n\ncombinations:\n")
    assert combinations
    blocks = dict(block.split(":\n", 1) for block in printed.split("\n\n"))
    expected = {
        "data": SOURCES,
        "priors": PRIORS,
        "likelihoods": {**LIKELIHOODS, "Columns": None},
        "posteriors": POSTERIORS,
        "networks": NETWORKS,
        "models": dict.fromkeys(n for n in models.__all__ if n not in ("Autoencoder", "inference")),
        "objectives": dict.fromkeys(n for n in objectives.__all__ if n != "Objective"),
        "trackers": dict.fromkeys(n for n in trackers.__all__ if n != "Tracker"),
    }
    assert blocks.keys() == expected.keys()
    for kind, components in expected.items():
        block = blocks[kind].partition("\n  Options, ")[0]
        lines = [n for n in block.splitlines() if n[2] != " "]
        summaries = {line.split()[0]: line.split(maxsplit=1)[1] for line in lines}
        assert summaries.keys() == {name.split(",")[0].split(" ")[0] for name in components}
        # each has a summary, neither empty nor a signature
        assert all(
            text.endswith((".", ")", ":", "`")) or " " in text for text in summaries.values()
        )
    assert "VAE with a VampPrior (Tomczak & Welling, 2018), equation 9." in blocks["priors"]
    # one line per reference
    assert re.search(r"\n +Neural Spline Flows .*1906.04032\n", blocks["priors"])


@pytest.mark.parametrize("kind", catalogue.COMPONENT_KINDS)
def test_every_component_has_a_reference(kind):
    lines = catalogue.list_components(kind).splitlines()[1:]
    for line, after in pairwise([*lines, "  end"]):
        if line[2] != " ":
            assert after[2] == " " and "http" in after, line


def test_list_one_kind_and_one_component(capsys):
    assert main(["list", "posteriors"]) == 0
    assert capsys.readouterr().out.startswith("posteriors:\n  DiagonalNormal ")
    assert main(["list", "priors", "VampPrior"]) == 0
    printed = capsys.readouterr().out
    assert printed.startswith("VampPrior(components=500, interval=(0.0, 1.0), start='random')\n")
    assert "pseudo-inputs are clamped to this interval" in printed


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["prior"], "got 'prior'; did you mean priors?"),
        (["priors", "Vamp"], "got 'Vamp'; did you mean VampPrior?"),
        (["priors", "VampPrior", "more"], "expected a kind and a name; got priors VampPrior more"),
    ],
)
def test_unknown_names_are_rejected(args, message, capsys):
    assert main(["list", *args]) == 1
    assert message in capsys.readouterr().err


def test_list_data(capsys):
    assert main(["list", "data"]) == 0
    printed = capsys.readouterr().out
    assert re.search(r"\n  mnist5k +5000 MNIST digits, ", printed)
    for name in inspect.signature(data.load).parameters:
        assert f"\n    {name}: " in printed
    assert main(["list", "data", "array"]) == 0
    assert "labels_key" in capsys.readouterr().out


@pytest.mark.parametrize("kind", catalogue.COMPONENT_KINDS)
def test_every_argument_is_explained(kind):
    module = catalogue.COMPONENT_KINDS[kind]
    for name in component_names(module):
        options = catalogue.component_options(getattr(module, name))
        printed = catalogue.describe_component(kind, name)
        signature = printed.splitlines()[0]
        for option in options:
            assert option.help, f"{name}.{option.name} is not explained"
            assert option.name in signature and f"\n    {option.name}: " in printed


def test_component_kinds():
    assert set(catalogue.COMPONENT_KINDS) == {
        *("priors", "likelihoods", "posteriors", "networks", "models", "objectives", "trackers")
    }


def test_baselines_are_objectives():
    assert {*baselines.__all__} <= {*objectives.__all__}


def test_signatures_omit_arguments_set_by_the_data(capsys):
    assert main(["list", "models", "SemiSupervisedVAE"]) == 0
    assert capsys.readouterr().out.startswith("SemiSupervisedVAE(latent_dim, prior=StandardNormal")
