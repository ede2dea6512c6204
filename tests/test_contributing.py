"""The components that CONTRIBUTING shows are right as they stand there."""

from __future__ import annotations

import math
import re
from pathlib import Path

import pyro.distributions as dist
import pytest
import torch
from components import SMALL, small_vae
from densities import density_grid
from torch import nn

import pyro_vae as pv
from pyro_vae.core.components import NetworkFactory, Shape
from pyro_vae.data import Kind
from pyro_vae.likelihoods.base import PixelLikelihood
from pyro_vae.networks.base import Init, Network
from pyro_vae.posteriors import Posterior
from pyro_vae.priors import Prior

CODE = (Path(__file__).parents[1] / "CONTRIBUTING.md").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def shown():
    """The classes of the code blocks, in the names that their files import."""
    ours = (Kind, Network, PixelLikelihood, Posterior, Prior)
    scope = {cls.__name__: cls for cls in ours}
    scope |= {"math": math, "dist": dist, "torch": torch, "nn": nn, "Init": Init}
    scope |= {"NetworkFactory": NetworkFactory, "Shape": Shape}
    scope["Distribution"] = torch.distributions.Distribution
    for block in re.findall(r"```python\n(.*?)```", CODE, re.DOTALL):
        exec(compile(block, "CONTRIBUTING.md", "exec"), scope)
    return scope


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
