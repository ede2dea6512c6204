"""The components that CONTRIBUTING shows are right as they stand there."""

from __future__ import annotations
import __future__

import dataclasses
import math
import re
import sys
import types
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pyro.distributions as dist
import pytest
import torch
import xarray
from components import SMALL, small_vae
from densities import density_grid
from linear_gaussian import LinearGaussian
from run_folders import TINY
from torch import nn

import pyro_vae as pv
from pyro_vae.cli import app
from pyro_vae.core.components import NetworkFactory, Shape
from pyro_vae.data import Dataset, Kind, sources
from pyro_vae.evaluation import EVALUATIONS, results, sections, slices
from pyro_vae.likelihoods.base import PixelLikelihood
from pyro_vae.networks.base import Init, Network
from pyro_vae.posteriors import Posterior
from pyro_vae.priors import Prior
from pyro_vae.programs import inputs
from pyro_vae.report import write_report

CODE = (Path(__file__).parents[1] / "CONTRIBUTING.md").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def shown():
    """The classes of the code blocks, in the names that their files import."""
    ours = (Kind, Network, PixelLikelihood, Posterior, Prior)
    scope = {cls.__name__: cls for cls in ours}
    scope |= {"math": math, "dist": dist, "torch": torch, "nn": nn, "Init": Init}
    scope |= {"NetworkFactory": NetworkFactory, "Shape": Shape}
    scope["Distribution"] = torch.distributions.Distribution
    scope |= {"SourceOptions": sources.SourceOptions, "RawData": sources.RawData}
    for module in (inputs, results, sections, slices):
        scope |= {name: getattr(module, name) for name in module.__all__}
    scope |= {"dataclass": dataclasses.dataclass, "np": np, "xarray": xarray, "Path": Path}
    scope |= {"Any": Any, "ClassVar": ClassVar, "Dataset": Dataset, "evaluate": pv.evaluate}
    module = types.ModuleType("contributing")
    vars(module).update(scope)
    sys.modules["contributing"] = module  # where dataclasses look up their annotations
    # the files have `from __future__ import annotations`
    flags = __future__.annotations.compiler_flag
    for block in re.findall(r"```python\n(.*?)```", CODE, re.DOTALL):
        exec(compile(block, "CONTRIBUTING.md", "exec", flags), vars(module))
    yield vars(module)
    del sys.modules["contributing"]


def test_the_prior(shown):
    fn = small_vae(shown["Logistic"], latent_dim=1).double().prior()
    along = density_grid(fn, -40.0, 40.0)
    assert along.integral == pytest.approx(1, abs=1e-3)
    with pytest.raises(ValueError, match=r"expected scale > 0; got 0\.0"):
        shown["Logistic"](2, scale=0.0)


def test_the_likelihood(shown):
    vae = small_vae(likelihood=shown["Exponential"])
    x = torch.rand(40, 3) * torch.tensor([0.5, 5.0, 50.0])
    vae.likelihood.network.forward = lambda z: vae.likelihood.initial_outputs(x).expand(len(z), 3)
    torch.testing.assert_close(vae.likelihood(torch.zeros(1, 2)).mean[0], x.mean(0))
    vae.check(x)
    with pytest.raises(ValueError, match=r"Exponential scores x ≥ 0; got -0\.5: use Gaussian"):
        vae.check(x - x.min() - 0.5)


def test_the_posterior_and_the_network(shown):
    parts = {"posterior": shown["ScaledStudentT"], "encoder": shown["Linear"], "decoder": SMALL}
    x = torch.bernoulli(torch.rand(1, 3)).expand(60, 3)
    vae = small_vae(**parts)
    history = pv.fit(vae, x, epochs=40, optimizer=lambda p: torch.optim.Adam(p, 0.02))
    # 60 copies of one datum have log p(x) → 0
    assert history["elbo"][0] < -1.5 and history["elbo"][-1] > -0.5
    assert -0.5 < pv.evaluate(vae, x[:5], num_samples=50).log_evidence < 0


def test_the_data_source(shown, monkeypatch):
    monkeypatch.setitem(sources.SOURCES, "wine", shown["wine"])
    data = pv.data.load("wine", binarize="none")
    assert data.event_shape == (13,) and len(data.train) + len(data.valid) + len(data.test) == 178
    assert data.train.labels.unique().tolist() == [0, 1, 2]


def test_the_evaluation(shown, monkeypatch, tmp_path):
    program = LinearGaussian(2)  # whose guide is exact, so that the ELBO is log p(x)
    x = program.sample(9)
    result = shown["spread"](program, x, num_samples=3)
    np.testing.assert_allclose(result.elbo, program.log_evidence(x), atol=1e-9)
    monkeypatch.setitem(EVALUATIONS, "spread", shown["SPREAD"])
    (tmp_path / "tiny.yaml").write_text(TINY)
    folder = str(tmp_path / "run")
    assert app.main(["fit", "--config", str(tmp_path / "tiny.yaml"), "--run", folder]) == 0
    run = pv.Run(folder)
    run.evaluate(num_samples=5, num_data=4)
    result = run.compute("spread", num_data=4)
    assert str(run.read_evaluation("spread")) == str(result) and len(result) == 4
    assert run.read_result()["spread"]["lowest"] == result.elbo.min()
    write_report(run)
    assert "Spread of the ELBO" in run.report.read_text(encoding="utf-8")
    assert (run.figures / "spread.png").is_file()
