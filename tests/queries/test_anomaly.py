"""Anomaly scores and the area under their ROC curve."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from linear_gaussian import LinearGaussian

import pyro_vae as pv
from pyro_vae import queries


def test_auroc_matches_pairwise_comparison():
    # of 3 × 4 pairs the normal example is higher in 7 and tied in 2
    normal, anomalous = [3.0, 1.0, 2.0], [0.0, 2.0, 3.0, 1.0]
    pairs = [(a > b) + 0.5 * (a == b) for a in normal for b in anomalous]
    area = queries.auroc(normal, anomalous)
    assert area.value == pytest.approx(np.mean(pairs)) == pytest.approx(7.5 / 12)
    table = np.array(pairs).reshape(3, 4)
    by_rows, by_columns = table.mean(1), table.mean(0)
    expected = (by_rows.var(ddof=1) / 3 + by_columns.var(ddof=1) / 4) ** 0.5
    assert area.se == pytest.approx(expected)


def test_auroc_of_separated_and_equal_scores():
    assert queries.auroc([2, 3], [0, 1]) == (1.0, 0.0)
    assert queries.auroc([0, 1], [2, 3]).value == 0.0
    assert queries.auroc([1, 1], [1, 1]).value == 0.5
    assert np.isnan(queries.auroc([1], [0, 2]).se)


def test_standard_error_covers_truth():
    generator = np.random.default_rng(0)
    truth = 0.7602499389065233  # Φ(1/√2)
    areas = [
        queries.auroc(generator.normal(1, 1, 40), generator.normal(0, 1, 60)) for _ in range(400)
    ]
    inside = np.mean([abs(a.value - truth) < 1.96 * a.se for a in areas])
    # 400 repetitions at a nominal 0.95 (slightly less for small samples): 4 binomial errors
    assert 0.89 < inside < 0.995


@pytest.mark.parametrize("bad", [[], [[1.0]], [float("nan")]])
def test_invalid_scores(bad):
    with pytest.raises(ValueError, match="expected scores as"):
        queries.auroc([1.0], bad)


def test_scores_agree_with_evaluate():
    program = LinearGaussian(2)
    x = program.sample(50)
    # the guide is the posterior, so both scores are log p(x) without noise
    for score in ("elbo", "log_evidence"):
        scores = queries.anomaly_scores(program, x, score=score, num_samples=5)
        np.testing.assert_allclose(scores, program.log_evidence(x).numpy(), rtol=1e-6)
    far = queries.anomaly_scores(program, x + 5, num_samples=5)
    assert queries.auroc(scores, far).value > 0.9
    with pytest.raises(ValueError, match="expected score to be 'elbo' or 'log_evidence'; got 'x'"):
        queries.anomaly_scores(program, x, score="x")


def test_scores_of_a_dynamic_split_are_seeded():
    vae = pv.VAE((4,), 2)
    split = pv.data.Split(torch.randint(0, 256, (20, 4)), 255.0, dynamic=True)
    first, again = (queries.anomaly_scores(vae, split, num_samples=5, seed=1) for _ in range(2))
    np.testing.assert_array_equal(first, again)
