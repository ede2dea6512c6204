"""Tests of the defensive mixture against direct formulas and exact results."""

from __future__ import annotations

import math
from functools import partial

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from chain import Chain
from linear_gaussian import LinearGaussian
from repetitions import split_bounds
from scipy import stats

import pyro_vae as pv
from pyro_vae.evaluation import Defensive
from pyro_vae.evaluation.importance.defensive import DefensiveMixture, count_prior_samples
from pyro_vae.evaluation.importance.errors import MARK, estimate_errors

D = torch.float64


def direct_estimate(from_q, from_prior):
    """Return log p̂ and its variance from log p(x, z), log p(z) and log q of all samples."""
    counts = [len(from_q[0]), len(from_prior[0])]
    share = counts[1] / sum(counts)
    weights = []
    for log_joint, log_prior, log_q in (from_q, from_prior):
        mixture = torch.logaddexp(math.log1p(-share) + log_q, math.log(share) + log_prior)
        weights.append((log_joint - mixture).exp())
    mean = (1 - share) * weights[0].mean(0) + share * weights[1].mean(0)
    noise = [w.var(0) / len(w) for w in weights]
    return mean.log(), ((1 - share) ** 2 * noise[0] + share**2 * noise[1]) / mean**2


@pytest.mark.parametrize("chunk", [1, 7, 100, 997])
def test_result_does_not_depend_on_chunks(chunk):
    from_q = [0.3 * torch.randn(997, 5, dtype=D) - m for m in (10, 3, 4)]
    from_prior = [0.3 * torch.randn(111, 5, dtype=D) - m for m in (10, 3, 4)]
    mixture = DefensiveMixture(5, 997, 111)
    for stratum, terms in enumerate((from_q, from_prior)):
        for parts in zip(*(term.split(chunk) for term in terms), strict=True):
            mixture.add(stratum, *parts)
    result = mixture.result()
    value, variance = direct_estimate(from_q, from_prior)
    torch.testing.assert_close(result["defensive"], value)
    assert bool((result["defensive_khat"] < 0.6).all())
    torch.testing.assert_close(result[f"defensive{MARK}stratified"], variance)
    # light tails: the unseen weights add little
    ratio = estimate_errors(result, pool=False)["defensive_variance"] / variance
    assert bool(((ratio > 0.9) & (ratio < 1.5)).all())


@pytest.mark.parametrize("chunk", [1, 7, 100, 997])
def test_variance_between_tenths_where_khat_is_bad(chunk):
    # heavy tails and q = prior: w = p(x, z) / p(z)
    zero = torch.zeros(997, 3, dtype=D)
    from_q = -1.5 * torch.rand(997, 3, dtype=D).log()
    from_prior = -1.5 * torch.rand(111, 3, dtype=D).log()
    mixture = DefensiveMixture(3, 997, 111)
    for stratum, terms in enumerate((from_q, from_prior)):
        for part in terms.split(chunk):
            mixture.add(stratum, part, zero[: len(part)], zero[: len(part)])
    result = estimate_errors(mixture.result(), pool=False)
    assert bool((result["defensive_khat"] > 0.7).all())
    groups = []
    for group in range(10):
        parts = [
            v[len(v) * group // 10 : len(v) * (group + 1) // 10].exp() for v in (from_q, from_prior)
        ]
        shares = [997 / 1108, 111 / 1108]
        groups.append(sum(s * p.mean(0) for s, p in zip(shares, parts, strict=True)).log())
    _, delta = direct_estimate((from_q, zero, zero), (from_prior, zero[:111], zero[:111]))
    expected = torch.maximum(torch.stack(groups).var(0), delta)
    torch.testing.assert_close(result["defensive_variance"], expected)


@pytest.mark.parametrize(
    ("share", "draws", "expected"), [(0.5, 100, 100), (0.1, 900, 100), (0.01, 10, 1), (0.9, 10, 90)]
)
def test_prior_share_of_all_samples(share, draws, expected):
    assert count_prior_samples(share, draws) == expected


def assert_unbiased(values, truth):
    """Assert that the mean of p̂ / p is 1, with a false-alarm rate of 1e-5."""
    ratio = np.exp(values - truth)
    assert abs(ratio.mean() - 1) < 4.4 * ratio.std() / math.sqrt(len(ratio))
    # by Jensen's inequality log p̂ is a lower bound in expectation
    bias = values - truth
    assert bias.mean() < 4.4 * bias.std() / math.sqrt(len(bias))


@pytest.mark.parametrize("share", [0.1, 0.5])
def test_mean_of_few_samples_is_unbiased(share):
    program = LinearGaussian(2, shift=0.5, inflate=0.7)
    x = program.sample(20_000)
    bounds = pv.evaluate(program, x, num_samples=8, ks=(), estimators=[Defensive(share)])
    assert_unbiased(bounds.per_datum["defensive"], program.log_evidence(x).numpy())


def test_two_latents_in_opposite_order():
    program = Chain()
    scale = math.sqrt(1.3**2 * (0.8**2 + 0.6**2) + 0.7**2)
    x = scale * torch.randn(20_000, dtype=D)
    truth = dist.Normal(0.0, scale).log_prob(x).numpy()
    bounds = pv.evaluate(program, x, num_samples=8, ks=(), estimators=[Defensive(0.3)])
    assert_unbiased(bounds.per_datum["defensive"], truth)


def test_noise_sites_are_sampled_from_the_prior():
    # p(x) = N(x; 0, 1 + 1) from two sites, one of them noise
    def model(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros((), dtype=D), 0.6))
            e = pyro.sample(
                "e", dist.Normal(torch.zeros((), dtype=D), 0.8), infer={"is_noise": True}
            )
            pyro.sample("x", dist.Normal(z + e, 1.0), obs=x)

    def guide(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(x / 2, 0.4))
            pyro.sample("e", dist.Normal((x - z) / 2, 0.3), infer={"is_noise": True})

    x = math.sqrt(2) * torch.randn(20_000, dtype=D)
    bounds = pv.evaluate((model, guide), x, num_samples=8, ks=(), estimators=[Defensive(0.3)])
    truth = dist.Normal(0.0, math.sqrt(2)).log_prob(x).numpy()
    assert_unbiased(bounds.per_datum["defensive"], truth)


def test_narrow_guide():
    program = LinearGaussian(2, inflate=0.2)
    x = program.sample(30)
    truth = float(program.log_evidence(x).mean())
    bounds = pv.evaluate(program, x, num_samples=2000, ks=(), estimators=[Defensive(0.5)])
    rows = bounds.estimates
    # with q alone p̂ is too small, and k̂ shows that it is unreliable
    assert rows["log_evidence"].value < truth - 0.5
    # the true tail index is 0.96; with 2000 samples k̂ is below 0.7 for one example in ten, so that
    # 13 or more of 30 have probability 1e-6
    assert len(bounds.unreliable) >= 18
    row = rows["defensive"]
    # false-alarm rate 1e-5
    assert abs(row.value - truth) < 4.4 * row.se_monte_carlo < 0.25
    assert np.median(bounds.per_datum["defensive_khat"]) < 0.5
    assert "defensive mixture with 50.0% of samples from the prior: k̂ median" in str(bounds)


def test_standard_errors_cover_log_evidence_in_100_repetitions():
    program = LinearGaussian(3, shift=0.3, inflate=0.9)
    x = program.sample(1000)
    truth = program.log_evidence(x).numpy()
    low, high = stats.binom.ppf([5e-5, 1 - 5e-5], 100, 0.95) / 100
    hits = 0
    bounds = pv.evaluate(program, x, num_samples=400, ks=(), estimators=[Defensive(0.2)])
    for rows, part in split_bounds(bounds, 10):
        row = part.estimates["defensive"]
        hits += abs(row.value - truth[rows].mean()) < 1.96 * row.se_monte_carlo
    assert low <= hits / 100 <= high


@pytest.mark.parametrize("chunk_size", [None, 50, 7])
def test_samples_of_guide_are_unchanged(chunk_size):
    program = LinearGaussian(2, shift=0.5)
    x = program.sample(5)
    options = {"num_samples": 103, "seed": 3, "chunk_size": chunk_size}
    reference = pv.evaluate(program, x, **options)
    state = torch.random.get_rng_state()
    mixed = pv.evaluate(program, x, **options, estimators=[Defensive(0.3)])
    assert torch.equal(torch.random.get_rng_state(), state)
    for name, values in reference.per_datum.items():
        np.testing.assert_array_equal(mixed.per_datum[name], values)
    repeated = pv.evaluate(program, x, **options, estimators=[Defensive(0.3)])
    np.testing.assert_array_equal(repeated.per_datum["defensive"], mixed.per_datum["defensive"])


def test_tiled_program():
    program = LinearGaussian(2, shift=0.5, inflate=0.7)

    def guide(x):
        # reads batch dimensions by position
        torch.nn.functional.conv1d(x[:, None], torch.ones(1, 1, 2, dtype=D))
        assert x.ndim == 2
        return program.guide(x)

    def model(x):
        assert x.ndim == 2
        with pyro.plate("data", len(x)):
            zero = torch.zeros(len(x), 2, dtype=D)
            z = pyro.sample("z", dist.Normal(zero, 1.0).to_event(1))
            mean = torch.einsum("nd,pd->np", z, program.W) + program.b
            pyro.sample("x", dist.Normal(mean, program.s).to_event(1), obs=x)

    x = program.sample(2000)
    with pytest.warns(UserWarning, match="does not support a particle dimension"):
        bounds = pv.evaluate((model, guide), x, num_samples=8, ks=(), estimators=[Defensive(0.3)])
    assert_unbiased(bounds.per_datum["defensive"], program.log_evidence(x).numpy())


def test_discrete_latents():
    odds = torch.tensor([0.7, 0.2, 0.1], dtype=D)

    def model(x):
        with pyro.plate("data", len(x)):
            y = pyro.sample("y", dist.Categorical(odds))
            pyro.sample("x", dist.Normal(y.to(D), 1.0), obs=x)

    def guide(x):
        with pyro.plate("data", len(x)):
            pyro.sample("y", dist.Categorical(torch.tensor([0.01, 0.01, 0.98], dtype=D)))

    x = torch.zeros(20_000, dtype=D)
    bounds = pv.evaluate((model, guide), x, num_samples=8, ks=(), estimators=[Defensive(0.5)])
    parts = dist.Normal(torch.arange(3, dtype=D), 1.0).log_prob(torch.zeros(3, dtype=D))
    truth = float((parts + odds.log()).logsumexp(0))
    assert_unbiased(bounds.per_datum["defensive"], truth)


_SMALL = partial(pv.networks.MLP, hidden=(6,))
_PARTS = {"encoder": _SMALL, "decoder": _SMALL}
_LABELS = torch.full((32,), 2)

_PROGRAMS = {
    "plain": (lambda: pv.VAE((5,), latent_dim=2, **_PARTS), ()),
    "flow": (lambda: pv.VAE((5,), 2, posterior=pv.posteriors.SplineFlow, **_PARTS), ()),
    "conditional": (lambda: pv.ConditionalVAE((5,), 3, latent_dim=2, **_PARTS), (_LABELS,)),
    "semi-supervised": (
        lambda: pv.SemiSupervisedVAE((5,), 3, 2, classifier=_SMALL, **_PARTS),
        (),
    ),
    "Bayesian": (lambda: pv.BayesianVAE((5,), 2, **_PARTS), ()),
    "hierarchical": (lambda: pv.HierarchicalVAE((5,), latent_dims=(3, 2)), ()),
}


@pytest.mark.parametrize("name", _PROGRAMS)
def test_probabilities_of_all_examples_sum_to_one(name):
    make, args = _PROGRAMS[name]
    x = torch.cartesian_prod(*[torch.tensor([0.0, 1.0])] * 5)
    bounds = pv.evaluate(make(), x, *args, num_samples=1000, ks=(), estimators=[Defensive(0.5)])
    columns = bounds.per_datum
    p = np.exp(columns["defensive"])
    error = math.sqrt((p**2 * columns["defensive_variance"]).sum())
    # 6 programs: false-alarm rate 1e-5
    assert abs(p.sum() - 1) < 4.8 * error < 0.05


def test_flow_without_inverse_raises():
    vae = pv.VAE((6,), 2, posterior=pv.posteriors.PlanarFlow)
    x = torch.bernoulli(torch.full((5, 6), 0.5))
    with pytest.raises(
        ValueError, match=r"got a flow without an inverse, which only scores its own"
    ):
        pv.evaluate(vae, x, num_samples=30, estimators=[Defensive(0.2)])


def test_auxiliary_sites_raise():
    def model(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("x", dist.Normal(z, 1.0), obs=x)

    def guide(x):
        with pyro.plate("data", len(x)):
            a = pyro.sample("a", dist.Normal(0.0, 1.0), infer={"is_auxiliary": True})
            pyro.sample("z", dist.Delta(a))

    with pytest.raises(ValueError, match=r"without auxiliary sites, .*; got 'a': drop Defensive"):
        pv.evaluate((model, guide), torch.zeros(5), num_samples=30, estimators=[Defensive(0.2)])


@pytest.mark.parametrize("share", [0, 1, -0.2, math.nan])
def test_invalid_share_raises(share):
    program = LinearGaussian(1)
    with pytest.raises(ValueError, match=r"expected share, .*, between 0 and 1; got"):
        pv.evaluate(program, program.sample(3), num_samples=30, estimators=[Defensive(share)])
