"""Discrete latents of model and guide, summed out for methods that follow gradients."""

from __future__ import annotations

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch

import pyro_vae as pv
from pyro_vae.programs.arguments import ProgramInputs
from pyro_vae.programs.enumeration.discrete_latents import sum_out_discrete
from pyro_vae.programs.particles import run_particles

LOCS = torch.tensor([-2.0, 0.5, 2.5], dtype=torch.float64)
WEIGHTS = torch.tensor([0.2, 0.5, 0.3], dtype=torch.float64)
X = torch.tensor([-3.0, -0.4, 0.6, 1.5, 3.1], dtype=torch.float64)


def model(x):
    """z | y ~ N(m_y ± 0.5, 0.6²), x | z ~ N(z, 0.8²), with a fair sign."""
    with pyro.plate("data", len(x)):
        y = pyro.sample("y", dist.Categorical(WEIGHTS))
        sign = pyro.sample("sign", dist.Bernoulli(torch.tensor(0.5, dtype=x.dtype)))
        z = pyro.sample("z", dist.Normal(LOCS[y] + sign - 0.5, 0.6))
        pyro.sample("x", dist.Normal(z, 0.8), obs=x)


def guide(x):
    with pyro.plate("data", len(x)):
        y = pyro.sample("y", dist.Categorical(logits=-(x.unsqueeze(-1) - LOCS).square() / 4))
        sign = pyro.sample("sign", dist.Bernoulli(torch.tensor(0.4, dtype=x.dtype)))
        pyro.sample("z", dist.Normal((x + LOCS[y] + sign - 0.5) / 2, 0.7))


def log_evidence():
    locs = torch.stack([LOCS - 0.5, LOCS + 0.5])
    terms = dist.Normal(locs, 1.0).log_prob(X[:, None, None]) + (WEIGHTS / 2).log()
    return terms.flatten(1).logsumexp(1)


def test_densities_are_those_of_mixtures():
    """log p(x, z) and log q(z|x) at samples of the guide, against sums written by hand."""
    inputs = sum_out_discrete(ProgramInputs(model, guide, X, (), {}))
    particles = run_particles(inputs.model, inputs.guide, X, num_samples=3)
    assert particles.latents.keys() == {"z"}
    z = particles.latents["z"]
    signs = torch.tensor([-0.5, 0.5], dtype=X.dtype)
    centres = (LOCS[:, None] + signs).flatten()
    prior = (
        dist.Normal(centres, 0.6).log_prob(z[..., None]) + (WEIGHTS / 2).repeat_interleave(2).log()
    )
    log_p = prior.logsumexp(-1) + dist.Normal(z, 0.8).log_prob(X)
    classes = (-(X[:, None] - LOCS).square() / 4).log_softmax(-1)
    odds = torch.tensor([0.6, 0.4], dtype=X.dtype).log()
    shares = (classes[..., None] + odds).flatten(-2)
    q = dist.Normal((X[:, None] + centres) / 2, 0.7).log_prob(z[..., None]) + shares
    torch.testing.assert_close(particles.log_weights, log_p - q.logsumexp(-1))


@pytest.mark.parametrize("initial", ["guide", "prior"])
def test_ais(initial):
    annealing = pv.Annealing(40, 10, num_steps=3, initial=initial)
    bounds = pv.ais((model, guide), X, annealing=annealing, seed=1)
    error = np.sqrt(bounds.per_datum["ais_variance"])
    assert np.all(np.abs(bounds.per_datum["ais"] - log_evidence().numpy()) < 5 * error + 1e-3)
    assert error.max() < 0.3


def test_laplace_finds_the_modes():
    bounds = pv.evaluate((model, guide), X, num_samples=100, estimators=[pv.Laplace()])
    error = np.sqrt(bounds.per_datum["laplace_variance"])
    assert np.all(np.abs(bounds.per_datum["laplace"] - log_evidence().numpy()) < 5 * error + 1e-3)
    assert error.max() < 0.05


def test_continuous_and_discrete_programs_are_unchanged():
    def normal(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros_like(x), 1.0))
            if x is not None:
                pyro.sample("x", dist.Normal(z, 1.0), obs=x)

    inputs = ProgramInputs(normal, pyro.poutine.block(normal, hide=["x"]), X, (), {})
    assert sum_out_discrete(inputs) is inputs


def test_infinitely_many_values_are_refused():
    def counts(x):
        with pyro.plate("data", len(x)):
            n = pyro.sample("n", dist.Poisson(torch.tensor(2.0, dtype=x.dtype)))
            z = pyro.sample("z", dist.Normal(n, 1.0))
            pyro.sample("x", dist.Normal(z, 1.0), obs=x)

    def propose(x):
        with pyro.plate("data", len(x)):
            n = pyro.sample("n", dist.Poisson(torch.tensor(2.0, dtype=x.dtype)))
            pyro.sample("z", dist.Normal((n + x) / 2, 1.0))

    with pytest.raises(ValueError, match=r"site 'n' \(Poisson\).*infinitely many values"):
        pv.ais((counts, propose), X)
    printed = str(pv.evaluate((counts, propose), X, num_samples=20, reliable=True))
    assert "the ladder stops at the guide: expected continuous latents, or discrete ones" in printed
