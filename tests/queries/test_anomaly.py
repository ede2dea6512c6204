"""Scores of normality, and the area under the curve they draw."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from linear_gaussian import LinearGaussian

import pyro_vae as pv
from pyro_vae import queries


def test_area_by_hand():
    # of 3 × 4 pairs the normal datum is higher in 7 and level in 2
    normal, anomalous = [3.0, 1.0, 2.0], [0.0, 2.0, 3.0, 1.0]
    pairs = [(a > b) + 0.5 * (a == b) for a in normal for b in anomalous]
    area = queries.auroc(normal, anomalous)
    assert area.value == pytest.approx(np.mean(pairs)) == pytest.approx(7.5 / 12)
    table = np.array(pairs).reshape(3, 4)
    by_rows, by_columns = table.mean(1), table.mean(0)
    expected = (by_rows.var(ddof=1) / 3 + by_columns.var(ddof=1) / 4) ** 0.5
    assert area.se == pytest.approx(expected)


def test_areas_at_the_ends():
    assert queries.auroc([2, 3], [0, 1]) == (1.0, 0.0)
    assert queries.auroc([0, 1], [2, 3]).value == 0.0
    assert queries.auroc([1, 1], [1, 1]).value == 0.5
    assert np.isnan(queries.auroc([1], [0, 2]).se)


def test_the_standard_error_covers():
    generator = np.random.default_rng(0)
    truth = 0.7602499389065233  # Φ(1/√2)
    areas = [
        queries.auroc(generator.normal(1, 1, 40), generator.normal(0, 1, 60)) for _ in range(400)
    ]
    inside = np.mean([abs(a.value - truth) < 1.96 * a.se for a in areas])
    # of 400 at a nominal 0.95 (a little less for so few data): 4 binomial errors and the bias
    assert 0.89 < inside < 0.995


@pytest.mark.parametrize("bad", [[], [[1.0]], [float("nan")]])
def test_scores_that_are_none(bad):
    with pytest.raises(ValueError, match="expected scores as"):
        queries.auroc([1.0], bad)


def test_scores_are_those_of_evaluate():
    program = LinearGaussian(2)
    x = program.sample(50)
    # the guide is the posterior: both scores are log p(x), without noise
    for score in ("elbo", "log_evidence"):
        scores = queries.anomaly_scores(program, x, score=score, num_samples=5)
        np.testing.assert_allclose(scores, program.log_evidence(x).numpy(), rtol=1e-6)
    far = queries.anomaly_scores(program, x + 5, num_samples=5)
    assert queries.auroc(scores, far).value > 0.9
    with pytest.raises(ValueError, match="expected score to be 'elbo' or 'log_evidence'; got 'x'"):
        queries.anomaly_scores(program, x, score="x")


def test_a_split_is_scored_as_it_is_drawn():
    vae = pv.VAE((4,), 2)
    split = pv.data.Split(torch.randint(0, 256, (20, 4)), 255.0, dynamic=True)
    first, again = (queries.anomaly_scores(vae, split, num_samples=5, seed=1) for _ in range(2))
    np.testing.assert_array_equal(first, again)
