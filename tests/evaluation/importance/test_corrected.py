"""Tests of the PSIS and jackknife estimates against direct formulas and exact results."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from arviz_stats.base import array_stats
from linear_gaussian import LinearGaussian
from repetitions import split_bounds
from scipy import stats

import pyro_vae as pv
from pyro_vae.evaluation import Corrected
from pyro_vae.evaluation.importance.jackknife import MIN_EXACT_WEIGHTS, jackknife_estimate
from pyro_vae.evaluation.importance.psis import ParetoTail
from pyro_vae.evaluation.importance.streaming import StreamingEstimates

D = torch.float64


def fit_tail(log_w, chunk=None):
    tail = ParetoTail(len(log_w), log_w.shape[1], keep=MIN_EXACT_WEIGHTS)
    for part in log_w.split(chunk or len(log_w)):
        tail.update(part)
    return tail


def jackknife(log_w, chunk=None):
    return jackknife_estimate(fit_tail(log_w, chunk).largest, len(log_w))


def leave_one_out(log_w):
    """Return J and its variance by leaving each sample out in turn."""
    count = len(log_w)
    full = log_w.logsumexp(0) - math.log(count)
    each = torch.stack(
        [
            torch.cat([log_w[:i], log_w[i + 1 :]]).logsumexp(0) - math.log(count - 1)
            for i in range(count)
        ]
    )
    value = count * full - (count - 1) * each.mean(0)
    return value, each.var(0, correction=0) * (count - 1)


@pytest.mark.parametrize("draws", [2, 3, 10, 64, 65, 69, 70, 226, 997])
@pytest.mark.parametrize("spread", [0.0, 0.3, 3.0])
def test_jackknife_equals_leave_one_out(draws, spread):
    log_w = spread * torch.randn(draws, 4, dtype=D) - 1000
    value, variance = leave_one_out(log_w)
    for chunk in (1, 7, draws):
        actual = jackknife(log_w, chunk)
        torch.testing.assert_close(actual[0], value, rtol=0, atol=2e-9)
        torch.testing.assert_close(actual[1], variance, rtol=1e-6, atol=1e-9)


def test_jackknife_of_degenerate_weights():
    log_w = torch.full((3, 2), -5.0, dtype=D)
    log_w[1:, 0] = -math.inf
    log_w[:, 1] = -math.inf
    value, variance = jackknife(log_w)
    # one nonzero weight: the sum without it is zero; all weights zero: nothing to correct
    assert value.tolist() == [math.inf, -math.inf]
    assert variance.isnan().all()
    assert all(v.isnan().all() for v in jackknife(torch.zeros(1, 3, dtype=D)))
    # 1 − r is rounded to zero here: the sum of the others is kept separately
    log_w = torch.tensor([[0.0], [-60.0], [-61.0]], dtype=D)
    value, variance = leave_one_out(log_w)
    actual = jackknife(log_w)
    torch.testing.assert_close(actual[0], value)
    torch.testing.assert_close(actual[1], variance)
    assert float(value) > 30  # far off, as is the direct formula


def expectations(count, high=9.0, chance=0.2):
    """Return E L_K − log E w and E J_K − log E w for weights 1 and ``high``, exactly."""
    m = np.arange(count + 1)
    log_w = torch.zeros(count, count + 1, dtype=D)
    for column in range(count + 1):
        log_w[:column, column] = math.log(high)
    value, _ = jackknife(log_w)
    bound = log_w.logsumexp(0) - math.log(count)
    probabilities = torch.from_numpy(stats.binom.pmf(m, count, chance))
    truth = math.log(1 + chance * (high - 1))
    return [float((probabilities * v).sum()) - truth for v in (bound, value)]


def test_jackknife_bias_is_of_order_one_over_k_squared():
    (bound, actual), (bound_2, actual_2) = map(expectations, (400, 800))
    assert bound / bound_2 == pytest.approx(2, rel=0.02)
    assert actual / actual_2 == pytest.approx(4, rel=0.1)
    assert abs(actual) < abs(bound) / 100


def test_jackknife_corrects_bias_of_shifted_guide_with_ten_samples():
    # the weights of all examples have the same distribution relative to p(x)
    program = LinearGaussian(2, shift=0.5, inflate=1.1)
    x = program.sample(40_000)
    rows = pv.evaluate(program, x, num_samples=10, ks=(), estimators=[Corrected()]).per_datum
    truth = program.log_evidence(x).numpy()
    bias, corrected = (rows[name] - truth for name in ("log_evidence", "jackknife"))
    error = bias.std() / 200
    assert bias.mean() < -15 * error
    # false-alarm rate 1e-5; the remaining bias is below 1/4 of that of L_10
    assert abs(corrected.mean()) < 4.4 * corrected.std() / 200 < abs(bias.mean()) / 4
    assert rows["jackknife_variance"].mean() > 0.9 * corrected.var()
    assert (
        "psis"
        not in pv.evaluate(program, x[:5], num_samples=10, estimators=[Corrected()]).estimates
    )


def arviz_log_evidence(log_w):
    """Return log p̂ of the weights that ArviZ smooths, from all weights."""
    smoothed, _ = array_stats.psislw(-log_w.numpy())
    lowest = int(log_w.argmin())  # is not smoothed
    return float(log_w[lowest]) - smoothed[lowest] - math.log(len(log_w))


@pytest.mark.parametrize("draws", [25, 100, 225, 226, 997, 5000])
@pytest.mark.parametrize("spread", [0.5, 3.0])
def test_smoothed_estimate_equals_arviz(draws, spread):
    log_w = spread * torch.randn(draws, 3, dtype=D) - 1000
    expected = [arviz_log_evidence(column) for column in log_w.T]
    for chunk in (1, 7, draws):
        tail = fit_tail(log_w, chunk)
        value, variance = tail.estimate()
        np.testing.assert_allclose(value, expected, rtol=0, atol=1e-9)
        assert bool((value <= log_w.max(0).values).all())
        _, khat = array_stats.psislw(-log_w.T.numpy(), axis=-1)
        np.testing.assert_allclose(tail.khat, khat, rtol=1e-6)
    smoothed, _ = array_stats.psislw(-log_w.T.numpy(), axis=-1)
    shares = np.exp(smoothed)
    expected_variance = ((shares**2).sum(1) * draws - 1) / (draws - 1)
    np.testing.assert_allclose(variance, expected_variance, rtol=1e-6)


def test_weights_without_tail_are_not_smoothed():
    log_w = torch.randn(24, 2, dtype=D)
    assert all(v.isnan().all() for v in fit_tail(log_w).estimate())
    equal = torch.full((100, 2), -3.0, dtype=D)
    value, variance = fit_tail(equal).estimate()
    torch.testing.assert_close(value, equal[0])
    torch.testing.assert_close(variance, torch.zeros_like(variance))
    rare = torch.zeros(500, 1, dtype=D)
    rare[:4] = 9.0
    value, _ = fit_tail(rare).estimate()
    torch.testing.assert_close(value, rare.logsumexp(0) - math.log(500))


def test_dominating_weight_is_truncated_and_others_are_kept():
    # subtraction would lose all weights but the largest
    log_w = torch.randn(500, 1, dtype=D)
    log_w[17] = 60.0
    value, _ = fit_tail(log_w).estimate()
    assert float(value) == pytest.approx(arviz_log_evidence(log_w[:, 0]), abs=1e-9)
    assert float(value) < 60 - math.log(500)


def test_smoothing_reduces_error_for_heavy_tails():
    shape, repetitions = 0.6, 2000
    log_w = -shape * torch.rand(500, repetitions, dtype=D).log()
    truth = -math.log(1 - shape)
    smoothed = (fit_tail(log_w).estimate()[0] - truth).square()
    raw = (log_w.logsumexp(0) - math.log(500) - truth).square()
    gain = raw - smoothed
    # false-alarm rate 1e-4; the gain is 7 standard errors
    assert float(gain.mean()) > 3.7 * float(gain.std()) / math.sqrt(repetitions)
    assert float(smoothed.mean()) < 0.7 * float(raw.mean())


def test_standard_errors_cover_log_evidence_in_100_repetitions():
    program = LinearGaussian(3, shift=0.3, inflate=1.1)
    x = program.sample(1000)
    truth = program.log_evidence(x).numpy()
    low, high = stats.binom.ppf([5e-5, 1 - 5e-5], 100, 0.95) / 100
    hits = {"psis": 0, "jackknife": 0}
    bounds = pv.evaluate(program, x, num_samples=200, ks=(), estimators=[Corrected()])
    for rows, part in split_bounds(bounds, 10):
        for name in hits:
            row = part.estimates[name]
            hits[name] += abs(row.value - truth[rows].mean()) < 1.96 * row.se_monte_carlo
    for name, count in hits.items():
        assert low <= count / 100 <= high, (name, count)


def test_standard_errors_of_hopeless_guide_are_not_understated():
    # as for log p̂: the spread within a run does not show the spread between runs
    program = LinearGaussian(6, shift=3.0)
    x = program.sample(2000)
    truth = program.log_evidence(x).numpy()
    parts = list(
        split_bounds(pv.evaluate(program, x, num_samples=200, estimators=[Corrected()]), 10)
    )
    for name in ("psis", "jackknife"):
        rows = [(part.estimates[name], truth[r].mean()) for r, part in parts]
        deviation = np.std([row.value - exact for row, exact in rows])
        # 200 repetitions estimate a standard deviation to 5 %; smoothed weights vary half as much
        # as the raw ones, from which the error is computed
        assert 0.8 < np.mean([row.se_monte_carlo for row, _ in rows]) / deviation < 2.5, name


def test_corrected_adds_columns_and_changes_none():
    log_w = torch.randn(500, 3, dtype=D)
    plain, corrected = (
        StreamingEstimates(3, 500, (5,)),
        StreamingEstimates(3, 500, (5,), corrected=True),
    )
    for part in log_w.split(70):
        plain.update(part, 0)
        corrected.update(part, 0)
    columns, extended = plain.result(), corrected.result()
    assert extended.keys() - columns.keys() == {
        "psis",
        "psis_variance",
        "psis_bias",
        "jackknife",
        "jackknife_variance",
        "jackknife_bias",
    }
    for name, value in columns.items():
        assert torch.equal(value, extended[name])


def test_corrected_rows_are_in_the_table():
    program = LinearGaussian(2, shift=0.3, inflate=1.1)
    bounds = pv.evaluate(
        program, program.sample(5), num_samples=300, ks=(5,), estimators=[Corrected()]
    )
    assert list(bounds.estimates) == [
        *("elbo", "iwae_5", "iwae_300", "log_evidence", "psis", "jackknife", "gap")
    ]
    assert "log p̂ PSIS" in str(bounds) and "log p̂ JVI" in str(bounds)
