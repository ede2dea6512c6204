"""Examples in the docstrings of public names."""

from __future__ import annotations

import doctest
import inspect
from functools import partial

import pyro.distributions as dist
import pytest
import torch
from run_folders import TINY

import pyro_vae as pv
from pyro_vae.cli.app import main

PACKAGES = (
    *(pv, pv.data, pv.models, pv.priors, pv.likelihoods, pv.posteriors, pv.networks),
    *(pv.learning, pv.objectives, pv.evaluation, pv.queries, pv.interop, pv.distributed),
)
#: Names that an example shows how to use.
SHOWN = {
    *("fit", "evaluate", "log_weights", "ais", "bdmc", "gaps", "latents", "active_units", "load"),
    *("VAE", "Pair", "Prior", "Likelihood", "Posterior", "sample", "impute", "encode"),
}


def examples():
    """The examples of the public names, by name."""
    found = {}
    for package in PACKAGES:
        names = getattr(package, "__all__", None) or [n for n in dir(package) if n[0] != "_"]
        for name in names:
            value = getattr(package, name)
            if callable(value) and str(getattr(value, "__module__", "")).startswith("pyro_vae"):
                title = f"{package.__name__}.{name}"
                for test in doctest.DocTestFinder(recurse=False).find(value, title):
                    if test.examples:
                        found[value] = test
    return {test.name: test for test in found.values()}


EXAMPLES = examples()


@pytest.fixture(scope="module")
def names(tmp_path_factory):
    """The names that the examples use: a small VAE, its data and a run."""
    torch.manual_seed(0)
    data = pv.data.load("digits", binarize="static")
    network = partial(pv.networks.MLP, hidden=(16,))
    vae = pv.VAE(data.event_shape, latent_dim=2, encoder=network, decoder=network)
    pv.fit(vae, data.train.head(200), epochs=1)
    folder = tmp_path_factory.mktemp("doctests")
    (folder / "tiny.yaml").write_text(TINY, encoding="utf-8")
    args = ["--config", str(folder / "tiny.yaml"), "--run", str(folder / "runs" / "first")]
    assert main(["fit", *args]) == 0
    scope = {"pv": pv, "torch": torch, "dist": dist, "partial": partial}
    return folder, {**scope, "data": data, "vae": vae, "x": data.test.materialize(0)[:20]}


def test_main_names_have_examples():
    assert {name.rpartition(".")[2] for name in EXAMPLES} >= SHOWN
    texts = [inspect.getdoc(pv.fit), inspect.getdoc(pv.VAE)]
    assert all(text and ">>> " in text for text in texts)


@pytest.mark.parametrize("name", EXAMPLES)
def test_example(name, names, monkeypatch):
    folder, scope = names
    monkeypatch.chdir(folder)
    test = EXAMPLES[name]
    test.globs = dict(scope)
    printed: list[str] = []
    result = doctest.DocTestRunner(optionflags=doctest.ELLIPSIS).run(test, out=printed.append)
    assert result.failed == 0, "".join(printed)
