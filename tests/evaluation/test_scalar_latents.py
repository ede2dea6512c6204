"""Evaluations and queries of a program with scalar latent sites, against closed forms.

z, y ~ N(0, 1) and x | z, y ~ N(z + y / 2, s²), with the guides N(a x, t²) and N(b x, t²): the
posterior is normal, and the sites have no event dimension.
"""

from __future__ import annotations

import math

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch

import pyro_vae as pv
from pyro_vae import evaluation, queries
from pyro_vae.evaluation import Corrected, Defensive
from pyro_vae.evaluation.annealing import Annealing

NOISE, SLOPES, SPREAD = 0.5, {"z": 0.7, "y": 0.2}, 0.9
#: Standard deviation of x, and the loadings of the latents.
STD, LOADING = math.sqrt(1.25 + NOISE**2), {"z": 1.0, "y": 0.5}


def model(x=None, size=None):
    with pyro.plate("data", size if x is None else len(x)):
        mean = 0.0
        for name, loading in LOADING.items():
            mean = mean + loading * pyro.sample(name, dist.Normal(0.0, 1.0))
        return pyro.sample("x", dist.Normal(mean, NOISE), obs=x)


def guide(x):
    with pyro.plate("data", len(x)):
        for name, slope in SLOPES.items():
            pyro.sample(name, dist.Normal(slope * x, SPREAD))


PROGRAM = (model, guide)
X = STD * torch.linspace(-1.8, 1.8, 40)
LOG_EVIDENCE = dist.Normal(0.0, STD).log_prob(X).numpy()


def _kl_to_prior(name):
    mean, variance = SLOPES[name] * X.numpy(), SPREAD**2
    return (variance + mean**2 - 1 - math.log(variance)) / 2


def _kl_to_posterior():
    """KL of the guide to the exact posterior of (z, y), for each example."""
    loading = torch.tensor(list(LOADING.values()))
    precision = torch.eye(2) + loading[:, None] * loading / NOISE**2
    posterior = dist.MultivariateNormal((loading / STD**2) * X[:, None], precision_matrix=precision)
    loc = torch.stack([slope * X for slope in SLOPES.values()], -1)
    q = dist.MultivariateNormal(loc, SPREAD**2 * torch.eye(2))
    return torch.distributions.kl_divergence(q, posterior).numpy()


def test_bounds():
    bounds = pv.evaluate(PROGRAM, X, num_samples=2000, estimators=[Corrected(), Defensive(0.1)])
    for column in ("log_evidence", "psis", "jackknife", "defensive"):
        error = bounds.per_datum[f"{column}_variance"] ** 0.5
        # 160 comparisons at 5 standard errors: false-alarm rate 1e-4
        assert (np.abs(bounds.per_datum[column] - LOG_EVIDENCE) < 5 * error + 2e-3).all()
    error = bounds.per_datum["elbo_variance"] ** 0.5
    assert (np.abs(bounds.per_datum["elbo"] - LOG_EVIDENCE + _kl_to_posterior()) < 5 * error).all()


def test_active_units():
    units = pv.active_units(PROGRAM, X, num_samples=2000)
    for name, slope in SLOPES.items():
        assert units.variance[name].shape == (1,)
        assert float(units.variance[name][0]) == pytest.approx(slope**2 * float(X.var()), rel=0.05)
    assert units.counts == {"z": 1, "y": 1}


def test_latents():
    result = pv.latents(PROGRAM, X, num_samples=500, num_draws=8000)
    for name, site in result.divergences.sites.items():
        assert site.closed_form and site.dimensions.shape == (1,)
        assert site.total.value == pytest.approx(float(_kl_to_prior(name).mean()), rel=1e-5)
    rate = _kl_to_prior("z") + _kl_to_prior("y")
    np.testing.assert_allclose(result.divergences.per_datum["rate"], rate, rtol=1e-5)
    expected = -LOG_EVIDENCE + _kl_to_posterior() - rate
    assert result.divergences.distortion == pytest.approx(float(expected.mean()), abs=0.05)
    # the mutual information of x and N(c x, t² I) depends only on the direction c
    scale = math.hypot(*SLOPES.values())
    u = torch.linspace(-6, 6, 4001, dtype=torch.float64)
    q = dist.Normal(scale * X.double(), SPREAD).log_prob(u[:, None])
    density = q.logsumexp(1) - math.log(len(X))
    entropy = -torch.trapezoid(density.exp() * density, u)
    information = entropy - dist.Normal(0.0, SPREAD).entropy()
    assert result.surgery.mutual_information == pytest.approx(float(information), abs=0.05)
    assert result.surgery.marginal == pytest.approx(
        float(rate.mean()) - result.surgery.mutual_information, abs=1e-3
    )


def test_gaps():
    result = pv.gaps(PROGRAM, X[::4], num_samples=500, annealing=None)
    # a full covariance contains the exact posterior
    refitted = result.bounds.per_datum["refitted"]
    np.testing.assert_allclose(refitted, LOG_EVIDENCE[::4], atol=0.02)


def test_annealing_and_its_upper_bound():
    annealing = Annealing(num_chains=10, num_temperatures=100, num_steps=5)
    ais = pv.ais(PROGRAM, X[::4], annealing=annealing)
    error = ais.per_datum["ais_variance"] ** 0.5
    # 10 comparisons at 5 standard errors
    assert (np.abs(ais.per_datum["ais"] - LOG_EVIDENCE[::4]) < 5 * error + 0.02).all()
    bounds = pv.bdmc(PROGRAM, 20, annealing=annealing, num_samples=2000)
    per_datum = bounds.per_datum
    for column in ("ais", "upper"):
        difference = per_datum[column] - per_datum["log_evidence"]
        assert abs(difference.mean()) < 0.05, column


def test_reciprocal_importance_sampling():
    result = evaluation.reciprocal(PROGRAM, X[::4], num_chains=10, num_samples=100)
    np.testing.assert_allclose(result.per_datum["reciprocal"], LOG_EVIDENCE[::4], atol=0.1)


def test_rate_distortion_curve():
    """p_β(z|x) ∝ p(z) p(x|z)^β is the posterior of the same model with noise s² / β."""
    betas = (0.25, 1.0, 2.0)
    annealing = Annealing(
        num_chains=20, num_temperatures=200, num_steps=5, initial="prior", schedule="adaptive"
    )
    curve = pv.rate_distortion(PROGRAM, X[::4], betas=betas, annealing=annealing)
    x = X[::4].numpy()
    for column, beta in enumerate(betas):
        noise = NOISE**2 / beta
        # of the mean of x, z + y / 2, given x
        gain = 1.25 / (1.25 + noise)
        error = x**2 * (1 - gain) ** 2 + 1.25 * (1 - gain)
        distortion = math.log(2 * math.pi * NOISE**2) / 2 + error / (2 * NOISE**2)
        _check_estimate(curve.estimates["distortion"][column], distortion.mean())
        rate = (gain**2 * x**2 / 1.25 + (1 - gain) - 1 - math.log(1 - gain)) / 2
        _check_estimate(curve.estimates["rate"][column], rate.mean())


def _check_estimate(estimate, expected):
    """Check an estimate at 5 standard errors, with an allowance for the bias of annealing."""
    assert abs(estimate.value - expected) < 5 * estimate.se_monte_carlo + 0.02


def test_queries():
    columns = queries.encode(PROGRAM, X)
    for name, slope in SLOPES.items():
        np.testing.assert_allclose(columns[f"{name}.mean"], slope * X.numpy(), rtol=1e-6)
        np.testing.assert_allclose(columns[f"{name}.std"], SPREAD)
    x = X[:3]
    centre = {name: slope * x for name, slope in SLOPES.items()}
    mean = sum(LOADING[name] * value for name, value in centre.items())
    torch.testing.assert_close(queries.reconstruct(PROGRAM, x).mean.shape, x.shape)
    traversal = queries.traverse(PROGRAM, x, latent="z", values=[-1.0, 2.0])
    for row, value in enumerate((-1.0, 2.0)):
        torch.testing.assert_close(traversal.mean[0, row], mean + value - centre["z"])
    # quantiles of the prior by default
    default = queries.traverse(PROGRAM, x, latent="y")
    assert default.mean.shape == (1, 9, 3)
    levels = default.latents["y"].reshape(9, 3)
    torch.testing.assert_close(
        levels[:, 0], dist.Normal(0.0, 1.0).icdf((torch.arange(9) + 0.5) / 9), atol=0.3, rtol=0
    )
    for path in ("spherical", "straight"):
        line = queries.interpolate(PROGRAM, X[:2], X[-2:], steps=5, path=path)
        start, end = (SLOPES["z"] * part for part in (X[:2], X[-2:]))
        t = torch.linspace(0, 1, 5)[:, None]
        torch.testing.assert_close(line.latents["z"], start + t * (end - start))
    imputed = queries.impute(PROGRAM, x, num_samples=4000)
    np.testing.assert_allclose(imputed.log_evidence, LOG_EVIDENCE[:3], atol=0.05)
    # a missing example has the prior as its posterior
    missing = queries.impute(PROGRAM, X, observed=torch.tensor(False), draws=400)
    assert float(missing.x.std()) == pytest.approx(STD, rel=0.05)
