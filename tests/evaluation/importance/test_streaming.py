"""Tests of the streaming estimates against direct formulas on all log weights."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from arviz_stats.base import array_stats

from pyro_vae.evaluation.importance.streaming import (
    GroupedBound,
    ParetoTail,
    WeightMoments,
    khat_threshold,
)

K, N = 997, 5  # K is prime: no chunk size and no k divides it


@pytest.fixture
def log_w():
    return 3 * torch.randn(K, N, dtype=torch.float64) - 1000


@pytest.mark.parametrize("chunk", [1, 7, 100, K])
def test_estimates_do_not_depend_on_chunks(log_w, chunk):
    mean, bound, tail = WeightMoments(N), GroupedBound(10, K, N), ParetoTail(K, N)
    for part in log_w.split(chunk):
        for estimate in (mean, bound, tail):
            estimate.update(part)
    torch.testing.assert_close(mean.mean, log_w.mean(0))
    torch.testing.assert_close(mean.variance_of_mean, log_w.var(0) / K)
    torch.testing.assert_close(mean.log_mean_exp, log_w.logsumexp(0) - math.log(K))
    w = (log_w - log_w.amax(0)).exp()
    torch.testing.assert_close(mean.effective_sample_size, w.sum(0) ** 2 / (w**2).sum(0))
    torch.testing.assert_close(mean.variance_of_log_mean_exp, w.var(0) / w.mean(0) ** 2 / K)
    torch.testing.assert_close(mean.variance_of_gap, (w / w.mean(0) - log_w).var(0) / K)
    # 997 = 99 × 10 + 7: the first three samples complete the last group
    padded = torch.cat([log_w, log_w[:3]])
    groups = padded.unflatten(0, (-1, 10)).logsumexp(1) - math.log(10)
    torch.testing.assert_close(bound.mean, groups.mean(0))
    # of 100 groups, the first and the last share 3 of 10 samples: their correlation is 0.3, so
    # the variance of the mean is 1 + 0.6 / 100 times that of independent groups, and the expected
    # spread between groups is 1 − 0.6 / 9900 times theirs
    overlap = (1 + 0.6 / 100) / (1 - 0.6 / 9900)
    expected = groups.var(0) / len(groups) * overlap
    torch.testing.assert_close(bound.variance_of_mean, expected)
    _, khat = array_stats.psislw(-log_w.T.numpy(), axis=-1)
    np.testing.assert_allclose(tail.khat, khat, rtol=1e-6)


def test_all_samples_are_used():
    # k just above K/2 gives two groups that together use all samples
    log_w = torch.zeros(100, 1, dtype=torch.float64)
    log_w[99] = 10.0
    bound = GroupedBound(60, 100, 1)
    bound.update(log_w)
    second = math.log((59 + math.exp(10.0)) / 60)
    assert float(bound.mean) == pytest.approx(second / 2)


@pytest.mark.parametrize("num_samples", [25, 100, 225, 226, 1000, 5000, 20_000])
def test_khat_equals_arviz(num_samples):
    log_w = torch.randn(num_samples, 3, dtype=torch.float64) * torch.tensor([0.3, 1.0, 4.0])
    tail = ParetoTail(num_samples, 3)
    tail.update(log_w)
    _, khat = array_stats.psislw(-log_w.T.numpy(), axis=-1)
    np.testing.assert_allclose(tail.khat, khat, rtol=1e-6)


@pytest.mark.parametrize("shape", [0.2, 0.5, 0.9])
def test_khat_of_pareto_tail(shape):
    # weights u^(−k) have exactly this shape; the standard error of k̂ is about 0.06 for this K
    log_w = -shape * torch.rand(50_000, 4, dtype=torch.float64).log()
    tail = ParetoTail(50_000, 4)
    tail.update(log_w)
    assert float(tail.khat.mean()) == pytest.approx(shape, abs=0.12)


def test_khat_without_a_tail():
    short = ParetoTail(20, 2)
    short.update(torch.randn(20, 2, dtype=torch.float64))
    assert short.khat.isnan().all()
    zeros = ParetoTail(100, 1)
    weights = torch.full((100, 1), -math.inf, dtype=torch.float64)
    weights[:15] = torch.randn(15, 1, dtype=torch.float64)
    zeros.update(weights)
    assert (zeros.khat == math.inf).all()
    equal = ParetoTail(100, 2)
    equal.update(torch.full((100, 2), -3.0, dtype=torch.float64))
    assert (equal.khat == -math.inf).all()


@pytest.mark.parametrize("num_samples", [25, 100, 227, 500, 5000])
@pytest.mark.parametrize("common", [0.5, 0.9, 0.98])
def test_khat_of_two_values_is_low(num_samples, common):
    # as for discrete latents: ties at the maximum are a bounded tail
    count = max(5, round((1 - common) * num_samples))
    log_w = torch.full((num_samples, 1), -70.0, dtype=torch.float64)
    log_w[:count] = -69.0
    # differences at the level of float32 rounding
    noisy = log_w + 1e-6 * torch.randn_like(log_w)
    for weights in (log_w, noisy):
        tail = ParetoTail(num_samples, 1)
        tail.update(weights[torch.randperm(num_samples)])
        # the tail has one value, or the fit includes both: never a heavy tail
        assert float(tail.khat) < 0.1


def test_khat_of_few_weights_above_ties_is_infinite():
    log_w = torch.zeros(500, 1, dtype=torch.float64)
    log_w[:4] = 9.0
    tail = ParetoTail(500, 1)
    tail.update(log_w)
    assert float(tail.khat) == math.inf


def test_ties_below_the_tail_are_excluded():
    # 30 samples of a Pareto tail above 470 ties: only the 30 are fitted
    above = 0.4 * torch.rand(30, dtype=torch.float64).log().neg() + 1e-3
    log_w = torch.cat([above, torch.zeros(470, dtype=torch.float64)])
    tail = ParetoTail(500, 1)
    tail.update(log_w[:, None])
    _, expected = array_stats.psislw(-log_w[:150].numpy())
    assert expected == pytest.approx(float(tail.khat), rel=1e-9)


@pytest.mark.parametrize("spread", [50.0, 300.0, 3000.0, 1e6])
def test_khat_of_weights_beyond_float_range(spread):
    # one weight dominates: ArviZ alone would report k̂ = 0.06 for the two largest spreads
    tail = ParetoTail(500, 3)
    tail.update(spread * torch.randn(500, 3, dtype=torch.float64))
    assert bool((tail.khat > 5).all())
    # negligible weights do not change k̂
    log_w = torch.randn(500, 1, dtype=torch.float64)
    reference, negligible = ParetoTail(500, 1), ParetoTail(500, 1)
    reference.update(log_w)
    negligible.update(torch.where(log_w < -1.5, log_w - 1e4 * spread, log_w))
    torch.testing.assert_close(reference.khat, negligible.khat)


def test_variance_of_single_sample_is_nan():
    mean = WeightMoments(2)
    mean.update(torch.tensor([[-1.0, -2.0]], dtype=torch.float64))
    assert mean.mean.tolist() == mean.log_mean_exp.tolist() == [-1, -2]
    for variance in (mean.variance_of_mean, mean.variance_of_log_mean_exp, mean.variance_of_gap):
        assert variance.isnan().all()


@pytest.mark.parametrize(
    ("num_samples", "threshold"), [(10, 0.0), (100, 0.5), (5000, 0.7), (10**6, 0.7)]
)
def test_khat_threshold(num_samples, threshold):
    assert khat_threshold(num_samples) == pytest.approx(threshold)
