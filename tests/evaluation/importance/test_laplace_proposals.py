"""Importance sampling from Laplace proposals, against closed forms and quadrature."""

from __future__ import annotations

import math

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from components import POSTERIORS, PRIORS, small_vae
from gamma_poisson import gamma_poisson
from linear_gaussian import LinearGaussian

import pyro_vae as pv
from pyro_vae.evaluation import Laplace, laplace
from pyro_vae.evaluation.importance.laplace_proposals import predict_tail_index, sample_posteriors
from pyro_vae.programs.context import evaluating
from pyro_vae.programs.inputs import prepare


def _check(bounds, truth, errors=4.5):
    """Compare with the truth per example, within standard errors and rounding."""
    data = bounds.per_datum
    tolerance = errors * np.sqrt(data["laplace_variance"]) + 2e-3
    np.testing.assert_array_less(np.abs(data["laplace"] - np.asarray(truth)), tolerance)


def _quadrature(log_joint, low, high, count=200_001):
    """log ∫ exp(log_joint(z)) dz for each example, from z (count, 1) in float64."""
    z = torch.linspace(low, high, count, dtype=torch.float64)[:, None]
    return log_joint(z).double().logsumexp(0) + math.log((high - low) / (count - 1))


@pytest.mark.parametrize("shift", [0.0, 1.0])
def test_a_gaussian_posterior_is_exact(shift):
    # a normal posterior: the mode and the Hessian are exact, whatever the guide is
    program = LinearGaussian(5, shift=shift)
    x = program.sample(30)
    bounds = laplace(program, x, settings=Laplace(num_samples=500))
    _check(bounds, program.log_evidence(x))
    assert np.sqrt(bounds.per_datum["laplace_variance"]).max() < 0.05
    assert bounds.per_datum["laplace_ess"].min() > 250
    assert (bounds.per_datum["laplace_khat"] < 0.5).all()


def _bimodal():
    def model(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("x", dist.Normal(z**2, 0.3), obs=x)

    def guide(x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(0 * x, 1.0))

    x = torch.tensor([0.2, 1.0, 2.0, 3.0])
    truth = _quadrature(
        lambda z: dist.Normal(0.0, 1.0).log_prob(z) + dist.Normal(z**2, 0.3).log_prob(x), -6, 6
    )
    return model, guide, x, truth


def _heavy_tailed():
    def model(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.StudentT(3.0, 0.0, 1.0))
            pyro.sample("x", dist.Normal(z, 3.0), obs=x)

    def guide(x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(0 * x, 0.3))

    x = torch.tensor([-9.0, 0.0, 3.0])
    truth = _quadrature(
        lambda z: dist.StudentT(3.0, 0.0, 1.0).log_prob(z) + dist.Normal(z, 3.0).log_prob(x),
        -400,
        400,
    )
    return model, guide, x, truth


@pytest.mark.parametrize("problem", [gamma_poisson, _bimodal, _heavy_tailed])
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_posteriors_that_are_not_gaussian(problem, seed):
    model, guide, x, truth = problem()
    bounds = laplace((model, guide), x, settings=Laplace(num_samples=4000), seed=seed)
    good = bounds.per_datum["laplace_khat"] < 0.7
    # tails that no normal covers are flagged
    assert good.all() or problem is _heavy_tailed
    assert f"bad for {(~good).sum()} of {len(x)}" in str(bounds)
    _check(bounds, truth, np.where(good, 4.5, 10.0))


def test_both_modes_are_found():
    model, guide, x, _ = _bimodal()
    bounds = laplace((model, guide), x[2:], settings=Laplace(num_samples=500))
    assert (bounds.per_datum["laplace_modes"] >= 2).all()
    assert "several modes for 2" in str(bounds)


def test_the_mean_weight_is_unbiased():
    # few samples: the mean over repetitions of p̂, not of log p̂, is p(x)
    model, guide, x, truth = _bimodal()
    settings = Laplace(num_samples=20, num_rounds=1)
    bounds = laplace((model, guide), x.repeat(200), settings=settings)
    ratio = np.exp(bounds.per_datum["laplace"].reshape(200, 4) - np.asarray(truth))
    error = ratio.std(0, ddof=1) / math.sqrt(len(ratio))
    # four comparisons at 4.5 standard errors: false-alarm rate 3e-5
    np.testing.assert_array_less(np.abs(ratio.mean(0) - 1), 4.5 * error)


def test_many_latents_need_no_exact_hessian():
    # 150 latents of which 20 matter: the curvature is that of the prior plus a term of rank 20
    weight = torch.zeros(60, 150)
    weight[:, :20] = torch.randn(60, 20, generator=torch.Generator().manual_seed(0)) / 3

    def model(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(150), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(z @ weight.T, 0.5).to_event(1), obs=x)

    def guide(x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(torch.zeros(len(x), 150), 1.0).to_event(1))

    covariance = weight @ weight.T + 0.25 * torch.eye(60)
    truth = torch.distributions.MultivariateNormal(torch.zeros(60), covariance)
    torch.manual_seed(0)
    x = truth.sample((5,))
    bounds = laplace((model, guide), x, settings=Laplace(num_samples=500))
    _check(bounds, truth.log_prob(x))
    assert (bounds.per_datum["laplace_khat"] < 0.5).all()


@pytest.mark.parametrize("noise", [1e-2, 1e-3, 1e-4])
def test_a_likelihood_with_little_noise(noise):
    # float32 loses the curvature of the five directions that the data leave free
    weight = torch.randn(15, 20, generator=torch.Generator().manual_seed(0))

    def model(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(20), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(z @ weight.T, noise).to_event(1), obs=x)

    def guide(x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(torch.zeros(len(x), 20), 1.0).to_event(1))

    exact = weight.double()
    covariance = exact @ exact.T + noise**2 * torch.eye(15)
    truth = torch.distributions.MultivariateNormal(torch.zeros(15).double(), covariance)
    x = truth.sample((8,)).float()
    bounds = laplace((model, guide), x, settings=Laplace(num_samples=500))
    _check(bounds, truth.log_prob(x.double()))


@pytest.mark.parametrize("ratio", [0.25, 0.5, 1.0, 2.0])
def test_the_tail_index_of_a_gaussian_guide(ratio):
    # log w = (1 − c) t²/2 for a q with c times the variance of the posterior: tail index 1 − c
    def model(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(3), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(z, 1.0).to_event(1), obs=x)

    def guide(x):
        scale = torch.tensor([(ratio / 2) ** 0.5, 1.0, 1.5])
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(x / 2 + 0.3, scale).to_event(1))

    inputs = prepare((model, guide), torch.randn(5, 3), (), {}, 0)
    index = predict_tail_index(inputs, Laplace())
    np.testing.assert_allclose(index, 1 - min(ratio, 2.0), atol=1e-3)


def test_latents_of_several_sites_and_plates():
    def model(x):
        with pyro.plate("data", len(x), dim=-2):
            a = pyro.sample("a", dist.Normal(torch.zeros(1), 1.0))
            with pyro.plate("repeats", 3, dim=-1):
                b = pyro.sample("b", dist.Normal(a, 0.5))
                pyro.sample("x", dist.Normal(b, 0.5), obs=x)

    def guide(x):
        with pyro.plate("data", len(x), dim=-2):
            pyro.sample("a", dist.Normal(0 * x[:, :1], 1.0))
            with pyro.plate("repeats", 3, dim=-1):
                pyro.sample("b", dist.Normal(x, 0.5))

    x = torch.randn(6, 3)
    covariance = torch.ones(3, 3) + 0.5 * torch.eye(3)
    truth = torch.distributions.MultivariateNormal(torch.zeros(3), covariance).log_prob(x)
    _check(laplace((model, guide), x), truth)


def test_a_guide_that_only_scores_its_own_samples_is_replaced_by_the_prior():
    vae = small_vae(PRIORS["StandardNormal"], POSTERIORS["PlanarFlow"]).eval()
    x = torch.bernoulli(torch.full((6, 3), 0.5))
    bounds = laplace(vae, x, settings=Laplace(num_samples=2000))
    reference = pv.evaluate(vae, x, num_samples=20_000)
    difference = bounds.per_datum["laplace"] - reference.per_datum["log_evidence"]
    variance = bounds.per_datum["laplace_variance"] + reference.per_datum["log_evidence_variance"]
    np.testing.assert_array_less(np.abs(difference), 4.5 * np.sqrt(variance) + 1e-3)


def test_results_are_seeded_and_merge_with_those_of_evaluate():
    program = LinearGaussian(2, shift=0.5)
    x = program.sample(7)
    state = torch.get_rng_state()
    first, again, other = (laplace(program, x, seed=seed) for seed in (1, 1, 2))
    assert torch.equal(torch.get_rng_state(), state)
    assert np.array_equal(first.per_datum["laplace"], again.per_datum["laplace"])
    assert not np.array_equal(first.per_datum["laplace"], other.per_datum["laplace"])
    merged = pv.evaluate(program, x, num_samples=50, seed=1).merge(first)
    assert {"elbo", "log_evidence", "laplace", "laplace_gap"} <= merged.estimates.keys()
    assert merged.num_samples == 50


def test_discrete_latents_are_refused():
    def model(x):
        with pyro.plate("data", len(x)):
            k = pyro.sample("k", dist.Bernoulli(0.5))
            pyro.sample("x", dist.Normal(k, 1.0), obs=x)

    def guide(x):
        with pyro.plate("data", len(x)):
            pyro.sample("k", dist.Bernoulli(0.5 + 0 * x))

    with pytest.raises(ValueError, match="expected continuous latent sites; got site 'k'"):
        laplace((model, guide), torch.randn(3))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_samples": 0}, "expected num_samples to be a positive integer; got 0"),
        ({"num_steps": 0}, "expected num_steps to be a positive integer; got 0"),
        ({"num_rounds": -1}, "expected num_rounds to be .*; got -1"),
    ],
)
def test_settings_out_of_range(options, message):
    with pytest.raises(ValueError, match=message):
        Laplace(**options)


def test_weighted_samples_have_the_moments_of_the_posterior():
    program = LinearGaussian(3, shift=1.0)
    x = program.sample(4)
    inputs = prepare(program, x, (), {}, 0)
    torch.manual_seed(0)
    with evaluating(inputs.model, inputs.guide):
        latents, log_w = sample_posteriors(inputs, Laplace(num_samples=4000))
    shares = log_w.softmax(0)
    mean = torch.einsum("kn,knd->nd", shares, latents["z"])
    deviation = latents["z"] - mean
    covariance = torch.einsum("kn,knd,kne->nde", shares, deviation, deviation)
    exact = (x - program.b) @ program.W @ program.covariance / program.s**2
    # five standard errors for an effective sample size of 1000 and variances of about 0.3
    torch.testing.assert_close(mean, exact, atol=0.08, rtol=0.0)
    expected = program.covariance.expand_as(covariance)
    torch.testing.assert_close(covariance, expected, atol=0.08, rtol=0.0)


def test_errors_of_examples_are_independent():
    # samples that share their component would make the error of the mean over 100 examples
    # eight times too small in variance. A mean of eight squares above 3.3 has probability 1e-3
    program = LinearGaussian(10, data_dim=12)
    x = program.sample(100)
    truth = float(program.log_evidence(x).mean())
    settings = pv.Laplace(200, num_steps=2, num_rounds=0)
    squares = []
    for seed in range(8):
        row = laplace(program, x, settings=settings, seed=seed).estimates["laplace"]
        squares.append(((row.value - truth) / row.se_monte_carlo) ** 2)
    assert sum(squares) / 8 < 3.3
