"""Evaluations and queries of a model with an enumerated class, against closed forms.

The class y selects the mean of z ~ N(m_y, 1) and the shift of x ~ N(z + m_y / 2, 1), so that
x ~ N(3 m_y / 2, 2) given y. The guide samples z alone.
"""

from __future__ import annotations

import math

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import config_enumerate

import pyro_vae as pv
from pyro_vae import queries
from pyro_vae.evaluation import Defensive
from pyro_vae.evaluation.annealing import Annealing

MEANS, WEIGHTS = torch.tensor([-2.0, 0.5, 2.0]), torch.tensor([0.2, 0.5, 0.3])


@config_enumerate
def model(x=None, size=None):
    with pyro.plate("data", size if x is None else len(x)):
        y = pyro.sample("y", dist.Categorical(WEIGHTS))
        z = pyro.sample("z", dist.Normal(MEANS[y], 1.0))
        return pyro.sample("x", dist.Normal(z + MEANS[y] / 2, 1.0), obs=x)


def guide(x):
    with pyro.plate("data", len(x)):
        pyro.sample("z", dist.Normal(x / 2, 1.0))


PROGRAM = (model, guide)
X = torch.linspace(-4.0, 4.0, 24)


def _mixture(values, means, std):
    return (dist.Normal(means, std).log_prob(values[..., None]) + WEIGHTS.log()).logsumexp(-1)


LOG_EVIDENCE = _mixture(X, 1.5 * MEANS, math.sqrt(2)).double().numpy()
SHORT = Annealing(num_chains=16, num_temperatures=30, num_steps=3)


def _check(bounds, row):
    """The false-alarm rate of the mean at four standard errors is below 10⁻⁴."""
    error = bounds.per_datum[row] - LOG_EVIDENCE
    variance = bounds.per_datum[f"{row}_variance"]
    assert abs(error.mean()) < 4 * np.sqrt(variance.sum()) / len(X) + 0.01
    assert (abs(error) < 6 * np.sqrt(variance) + 0.05).all()


@pytest.mark.parametrize("row", ["log_evidence", "defensive", "laplace"])
def test_importance_sampling(row):
    estimators = {"defensive": [Defensive()], "laplace": [pv.Laplace(num_samples=500)]}.get(row, [])
    _check(pv.evaluate(PROGRAM, X, num_samples=2000, estimators=estimators), row)


@pytest.mark.parametrize("initial", ["guide", "prior"])
def test_annealing(initial):
    """The path from the prior separates p(z) = Σ_y p(y) p(z|y) from p(x|z)."""
    settings = Annealing(16, 30, 3, initial=initial)
    _check(pv.ais(PROGRAM, X, annealing=settings), "ais")


def test_bounds_on_simulated_data():
    bounds = pv.bdmc(PROGRAM, 24, annealing=SHORT, num_samples=0)
    gap = bounds.estimates["bdmc_gap"]
    assert abs(gap.value) < 4 * gap.se_monte_carlo + 0.05


def test_divergence_from_the_mixture_prior():
    """KL(q ‖ p) by quadrature."""
    grid = torch.linspace(-12, 12, 2401, dtype=torch.float64)
    log_q = dist.Normal(X[:, None].double() / 2, 1.0).log_prob(grid)
    kl = ((log_q - _mixture(grid, MEANS, 1.0)) * log_q.exp()).sum(1) * 0.01
    latents = pv.latents(PROGRAM, X, num_samples=2000, num_draws=500)
    rate = latents.divergences.estimates["rate"]
    assert abs(rate.value - float(kl.mean())) < 4 * rate.se_monte_carlo + 1e-3


def test_reconstructions_have_the_posterior_class():
    """The class of a reconstruction is from p(y | z, x), and its mean is that of this class."""
    x = X.repeat(500)
    made = queries.reconstruct(PROGRAM, x)
    z, y = made.latents["z"], made.latents["y"]
    torch.testing.assert_close(made.mean, z + MEANS[y] / 2)
    log_p = dist.Normal(MEANS, 1.0).log_prob(z[:, None]) + WEIGHTS.log()
    log_p = log_p + dist.Normal(z[:, None] + MEANS / 2, 1.0).log_prob(x[:, None])
    for value in range(3):
        # four standard errors of a share of 12,000 examples are at most 0.02
        expected = log_p.softmax(-1)[:, value].mean()
        assert float((y == value).float().mean()) == pytest.approx(float(expected), abs=0.02)


def test_samples_and_codes_include_the_class():
    made = queries.sample(PROGRAM, 4000)
    shares = torch.stack([(made.latents["y"] == value).float().mean() for value in range(3)])
    torch.testing.assert_close(shares, WEIGHTS, atol=0.04, rtol=0)
    codes = queries.encode(PROGRAM, X)
    z = torch.from_numpy(codes["z.mean"])
    log_p = dist.Normal(MEANS, 1.0).log_prob(z[:, None]) + WEIGHTS.log()
    log_p = log_p + dist.Normal(z[:, None] + MEANS / 2, 1.0).log_prob(X[:, None])
    assert (codes["y.mode"] == log_p.argmax(-1).numpy()).all()
