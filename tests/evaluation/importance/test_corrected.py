"""The smoothed and the jackknife-corrected estimate, against plain formulas and the truth."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from arviz_stats.base import array_stats
from linear_gaussian import LinearGaussian
from scipy import stats

import pyro_vae as pv
from pyro_vae.evaluation.importance.jackknife import KEPT, jackknife_estimate
from pyro_vae.evaluation.importance.psis import ParetoTail
from pyro_vae.evaluation.importance.streaming import Block

D = torch.float64


def tail_of(log_w, chunk=None):
    tail = ParetoTail(len(log_w), log_w.shape[1], keep=KEPT)
    for part in log_w.split(chunk or len(log_w)):
        tail.update(part)
    return tail


def corrected(log_w, chunk=None):
    return jackknife_estimate(tail_of(log_w, chunk).largest, len(log_w))


def left_out(log_w):
    """J and its variance, every draw left out in turn."""
    count = len(log_w)
    whole = log_w.logsumexp(0) - math.log(count)
    each = torch.stack(
        [
            torch.cat([log_w[:i], log_w[i + 1 :]]).logsumexp(0) - math.log(count - 1)
            for i in range(count)
        ]
    )
    value = count * whole - (count - 1) * each.mean(0)
    return value, each.var(0, correction=0) * (count - 1)


@pytest.mark.parametrize("draws", [2, 3, 10, 64, 65, 69, 70, 226, 997])
@pytest.mark.parametrize("spread", [0.0, 0.3, 3.0])
def test_jackknife_is_that_of_leaving_each_draw_out(draws, spread):
    log_w = spread * torch.randn(draws, 4, dtype=D) - 1000
    value, variance = left_out(log_w)
    for chunk in (1, 7, draws):
        ours = corrected(log_w, chunk)
        torch.testing.assert_close(ours[0], value, rtol=0, atol=2e-9)
        torch.testing.assert_close(ours[1], variance, rtol=1e-6, atol=1e-9)


def test_jackknife_of_weights_that_it_cannot_judge():
    alone = torch.full((3, 2), -5.0, dtype=D)
    alone[1:, 0] = -math.inf
    alone[:, 1] = -math.inf
    value, variance = corrected(alone)
    # one weight that is not zero: nothing is left without it; none at all: nothing to correct
    assert value.tolist() == [math.inf, -math.inf]
    assert variance.isnan().all()
    assert all(v.isnan().all() for v in corrected(torch.zeros(1, 3, dtype=D)))
    # 1 − r would be zero here: the others' sum is kept by itself
    log_w = torch.tensor([[0.0], [-60.0], [-61.0]], dtype=D)
    value, variance = left_out(log_w)
    ours = corrected(log_w)
    torch.testing.assert_close(ours[0], value)
    torch.testing.assert_close(ours[1], variance)
    assert float(value) > 30  # as wild as the jackknife itself


def expectations(count, high=9.0, chance=0.2):
    """E L_K − log E w and E J_K − log E w of weights 1 and ``high``, by the binomial."""
    m = np.arange(count + 1)
    log_w = torch.zeros(count, count + 1, dtype=D)
    for column in range(count + 1):
        log_w[:column, column] = math.log(high)
    value, _ = corrected(log_w)
    bound = log_w.logsumexp(0) - math.log(count)
    probabilities = torch.from_numpy(stats.binom.pmf(m, count, chance))
    truth = math.log(1 + chance * (high - 1))
    return [float((probabilities * v).sum()) - truth for v in (bound, value)]


def test_jackknife_s_bias_is_of_lower_order():
    (bound, ours), (bound_2, ours_2) = map(expectations, (400, 800))
    assert bound / bound_2 == pytest.approx(2, rel=0.02)
    assert ours / ours_2 == pytest.approx(4, rel=0.1)
    assert abs(ours) < abs(bound) / 100


def test_jackknife_corrects_a_shifted_guide_at_ten_draws():
    # the weights of every datum have one and the same distribution beside log p(x)
    program = LinearGaussian(2, shift=0.5, inflate=1.1)
    x = program.sample(40_000)
    rows = pv.evaluate(program, x, num_samples=10, ks=(), corrected=True).per_datum
    truth = program.log_evidence(x).numpy()
    off, ours = (rows[name] - truth for name in ("log_evidence", "jackknife"))
    error = off.std() / 200
    assert off.mean() < -15 * error
    # false alarm 1e-5; what is left is below a fifth of what L_10 was off
    assert abs(ours.mean()) < 4.4 * ours.std() / 200 < abs(off.mean()) / 4
    assert rows["jackknife_variance"].mean() > 0.9 * ours.var()
    assert "psis" not in pv.evaluate(program, x[:5], num_samples=10, corrected=True).estimates


def whole(log_w):
    """log p̂ of ArviZ's smoothed weights, from all of them."""
    smoothed, _ = array_stats.psislw(-log_w.numpy())
    lowest = int(log_w.argmin())  # which is left as it is
    return float(log_w[lowest]) - smoothed[lowest] - math.log(len(log_w))


@pytest.mark.parametrize("draws", [25, 100, 225, 226, 997, 5000])
@pytest.mark.parametrize("spread", [0.5, 3.0])
def test_smoothed_estimate_is_arviz_s(draws, spread):
    log_w = spread * torch.randn(draws, 3, dtype=D) - 1000
    expected = [whole(column) for column in log_w.T]
    for chunk in (1, 7, draws):
        tail = tail_of(log_w, chunk)
        value, variance = tail.estimate()
        np.testing.assert_allclose(value, expected, rtol=0, atol=1e-9)
        assert bool((value <= log_w.max(0).values).all())
        _, khat = array_stats.psislw(-log_w.T.numpy(), axis=-1)
        np.testing.assert_allclose(tail.khat, khat, rtol=1e-6)
    smoothed, _ = array_stats.psislw(-log_w.T.numpy(), axis=-1)
    shares = np.exp(smoothed)
    expected_variance = ((shares**2).sum(1) * draws - 1) / (draws - 1)
    np.testing.assert_allclose(variance, expected_variance, rtol=1e-6)


def test_nothing_is_smoothed_where_there_is_no_tail():
    few = torch.randn(24, 2, dtype=D)
    assert all(v.isnan().all() for v in tail_of(few).estimate())
    equal = torch.full((100, 2), -3.0, dtype=D)
    value, variance = tail_of(equal).estimate()
    torch.testing.assert_close(value, equal[0])
    torch.testing.assert_close(variance, torch.zeros_like(variance))
    rare = torch.zeros(500, 1, dtype=D)
    rare[:4] = 9.0
    value, _ = tail_of(rare).estimate()
    torch.testing.assert_close(value, rare.logsumexp(0) - math.log(500))


def test_a_weight_that_outshines_all_is_tamed_without_losing_the_others():
    # ArviZ is told at most 700 nats; sums that subtract would have lost all but one weight
    log_w = torch.randn(500, 1, dtype=D)
    log_w[17] = 60.0
    value, _ = tail_of(log_w).estimate()
    assert float(value) == pytest.approx(whole(log_w[:, 0]), abs=1e-9)
    assert float(value) < 60 - math.log(500)


def test_smoothing_beats_raw_weights_where_the_tail_is_heavy():
    shape, repetitions = 0.6, 2000
    log_w = -shape * torch.rand(500, repetitions, dtype=D).log()
    truth = -math.log(1 - shape)
    smoothed = (tail_of(log_w).estimate()[0] - truth).square()
    raw = (log_w.logsumexp(0) - math.log(500) - truth).square()
    better = raw - smoothed
    # false alarm 1e-4; it is 7 standard errors
    assert float(better.mean()) > 3.7 * float(better.std()) / math.sqrt(repetitions)
    assert float(smoothed.mean()) < 0.7 * float(raw.mean())


def test_stated_errors_of_both_cover_the_truth_over_200_seeds():
    program = LinearGaussian(3, shift=0.3, inflate=1.1)
    x = program.sample(10)
    truth = float(program.log_evidence(x).mean())
    low, high = stats.binom.ppf([5e-5, 1 - 5e-5], 200, 0.95) / 200
    hits = {"psis": 0, "jackknife": 0}
    for seed in range(200):
        rows = pv.evaluate(program, x, num_samples=200, ks=(), seed=seed, corrected=True).estimates
        for name in hits:
            hits[name] += abs(rows[name].value - truth) < 1.96 * rows[name].se_monte_carlo
    for name, count in hits.items():
        assert low <= count / 200 <= high, (name, count)


def test_a_hopeless_guide_has_a_large_error_not_a_small_one():
    # as for log p̂: within a run nothing is seen of the spread between runs
    program = LinearGaussian(6, shift=3.0)
    x = program.sample(10)
    values, stated = {"psis": [], "jackknife": []}, {"psis": [], "jackknife": []}
    for seed in range(40):
        bounds = pv.evaluate(program, x, num_samples=200, seed=seed, corrected=True)
        for name in values:
            values[name].append(bounds.estimates[name].value)
            stated[name].append(bounds.estimates[name].se_monte_carlo)
    for name, found in values.items():
        # 40 seeds know a standard deviation to 11 %; smoothed weights vary less than raw ones,
        # of which the error is stated
        assert 0.6 < np.mean(stated[name]) / np.std(found) < 2.5, name


def test_what_is_not_asked_for_costs_and_changes_nothing():
    log_w = torch.randn(500, 3, dtype=D)
    plain, more = Block(3, 500, (5,), 3), Block(3, 500, (5,), 3, corrected=True)
    for part in log_w.split(70):
        plain.update(part, 0)
        more.update(part, 0)
    columns, others = plain.result(), more.result()
    assert others.keys() - columns.keys() == {
        "psis",
        "psis_variance",
        "jackknife",
        "jackknife_variance",
    }
    for name, value in columns.items():
        assert torch.equal(value, others[name])


def test_rows_are_shown_when_asked_for():
    program = LinearGaussian(2, shift=0.3, inflate=1.1)
    bounds = pv.evaluate(program, program.sample(5), num_samples=300, ks=(5,), corrected=True)
    assert list(bounds.estimates) == [
        *("elbo", "iwae_5", "iwae_300", "psis", "jackknife", "log_evidence", "gap")
    ]
    assert "log p̂ PSIS" in str(bounds) and "log p̂ JVI" in str(bounds)
