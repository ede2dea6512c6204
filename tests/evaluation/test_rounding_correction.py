"""Correction of bounds from bfloat16 networks by examples in float32."""

from __future__ import annotations

import math

import numpy as np
import pyro
import pytest
import streams
import torch
from components import small_vae
from torch import nn

import pyro_vae as pv
from pyro_vae.data import containers
from pyro_vae.evaluation import AdaptiveSamples, Annealing, Corrected, Defensive, Ladder
from pyro_vae.evaluation import precision as precision_module
from pyro_vae.evaluation.estimates import estimate_mean
from pyro_vae.evaluation.precision import choose_rescored, correct_rounding


@pytest.fixture(scope="module")
def vae():
    """A VAE with a weight of 40.12 from a hidden unit of 1 to all pixels, 40 in bfloat16."""
    vae = small_vae(event_shape=(20,), latent_dim=2)
    generator = streams.generator(0)
    with torch.no_grad():
        for parameter in vae.parameters():
            parameter.copy_(0.3 * torch.randn(parameter.shape, generator=generator))
        layers = [m for m in vae.likelihood.modules() if isinstance(m, nn.Linear)]
        layers[-2].bias[0] = 20.0
        layers[-1].weight[:, 0] = 40.12
    return vae


X = torch.bernoulli(torch.full((120, 20), 0.7), generator=streams.generator(1))


def test_means_are_those_of_float32(vae):
    k = 20
    pyro.set_rng_seed(1)
    log_w = pv.log_weights(vae.model, vae.guide, X, num_samples=100 * k).double()
    groups = {n: log_w.unflatten(0, (-1, n)).logsumexp(1) - math.log(n) for n in (1, 5, k)}
    gap = groups[k] - log_w.unflatten(0, (-1, k)).mean(1)
    rows = {"elbo": groups[1], "iwae_5": groups[5], "log_evidence": groups[k], "gap": gap}
    truth = {name: row.mean(0).numpy() for name, row in rows.items()}
    errors = {name: math.sqrt((r.var(0) / len(r)).sum()) / 120 for name, r in rows.items()}
    for seed in range(3):
        bounds = pv.evaluate(vae, X, num_samples=k, ks=(5,), seed=seed, precision="bfloat16")
        rescored = bounds.per_datum["rescored"]
        assert rescored.sum() == 50 and np.array_equal(rescored, choose_rescored(120, seed))
        settings = bounds.settings["precision"]
        for name, expected in truth.items():
            estimate = bounds.estimates[name]
            # false-alarm rate of all: 1e-3
            error = math.hypot(estimate.se_monte_carlo, errors[name])
            assert abs(estimate.value - expected.mean()) < 4.2 * error, name
        # without the correction, the ELBO and L_k are wrong by many standard errors
        for name in ("elbo", "iwae_5", "log_evidence"):
            shift = settings["rows"][name]["shift"]
            assert abs(shift) > 0.4 and abs(shift) > 8 * bounds.estimates[name].se_monte_carlo
        for part, error in ((rescored, 0.0), (~rescored, settings["rows"]["elbo"]["spread"])):
            difference = (bounds.per_datum["elbo"] - truth["elbo"])[part]
            variance = bounds.per_datum["elbo_variance"][part]
            assert (variance > error**2).all()
            # a mean of 50 squares or more, of nearly normal numbers
            assert 0.4 < np.mean(difference**2 / variance) < 2
    line = f"ELBO {settings['rows']['elbo']['shift']:+.4f} ± {bounds.correction_error('elbo'):.4f}"
    assert "for 70 of 120 examples, corrected by the other 50 in float32" in str(bounds)
    assert line in str(bounds)
    saved = pv.Bounds.from_datatree(bounds.to_datatree())
    assert saved.estimates == bounds.estimates and str(saved) == str(bounds)


def test_standard_errors_of_corrected_means():
    rng = np.random.default_rng(streams.shift_seed(0))
    size, repetitions = 150, 600
    noise, spread = 0.1, 0.3
    scores, examples, population, errors = [], [], [], []
    variances = ("elbo_variance", "log_evidence_variance", "gap_variance")
    for seed in range(repetitions):
        truth = rng.normal(0, 2, size)
        exact = truth + noise * rng.normal(size=size)
        rounding = rng.gamma(16.0, spread / 4, size)  # mean 1.2, slightly skewed
        rescored = choose_rescored(size, seed).numpy()
        column = np.full(size, noise**2)
        changes = {
            f"rounding_{name}": np.where(rescored, rounding, np.nan)
            for name in ("elbo", "log_evidence", "khat")
        }
        changes["rounding_gap"] = np.where(rescored, 0.0, np.nan)
        values = np.where(rescored, exact, exact - rounding)
        bounds = correct_rounding(
            pv.Bounds(
                1,
                {
                    "elbo": values,
                    "log_evidence": values,
                    **dict.fromkeys(variances, column),
                    **changes,
                    "rescored": rescored,
                },
            ),
            "bfloat16",
        )
        assert bounds.per_datum.keys().isdisjoint(changes)
        estimate = bounds.estimates["elbo"]
        assert estimate.value == pytest.approx(
            (exact - rounding).mean() + rounding[rescored].mean()
        )
        assert bounds.correction_error("elbo") == pytest.approx(
            rounding[rescored].std(ddof=1) * math.sqrt((1 - 50 / size) / 50)
        )
        scores.append((estimate.value - truth.mean()) / estimate.se_monte_carlo)
        population.append(estimate.value / estimate.se_data)
        difference = (bounds.per_datum["elbo"] - truth) ** 2 / bounds.per_datum["elbo_variance"]
        examples.append([difference[rescored].mean(), difference[~rescored].mean()])
        errors.append(bounds.estimates["gap"].se_monte_carlo)
    # false-alarm rate of each: 1e-3
    for values in (scores, population):
        assert abs(np.mean(values)) < 3.3 / math.sqrt(repetitions) + 0.03
        assert np.std(values) == pytest.approx(1, abs=3.3 / math.sqrt(2 * repetitions) + 0.03)
    np.testing.assert_allclose(np.mean(examples, 0), 1, atol=0.05)
    np.testing.assert_allclose(errors, noise / math.sqrt(size))


def test_shared_errors_are_a_covariance():
    variances, shared = np.array([1.0, 2.0, 3.0]), np.array([0.0, 0.5, 0.5])
    covariance = np.diag(variances - shared**2) + np.outer(shared, shared)
    estimate = estimate_mean(np.ones(3), variances, shared=shared)
    assert estimate.se_monte_carlo == pytest.approx(math.sqrt(covariance.sum()) / 3)
    assert estimate.se_data == pytest.approx(1 / 3)


def test_rows_from_other_samples_share_the_error_of_the_bound_below(vae):
    annealing = Annealing(num_chains=2, num_temperatures=2, num_steps=1)
    options = {"num_samples": 30, "estimators": [annealing, Corrected()]}
    bounds = pv.evaluate(vae, X, precision="bfloat16", **options)
    float32 = pv.evaluate(vae, X, **options)
    np.testing.assert_array_equal(bounds.per_datum["ais"], float32.per_datum["ais"])
    assert bounds.correction_error("ais") == 0
    assert bounds.correction_error("ais_gap") == bounds.correction_error("elbo") > 0
    for name in ("psis", "jackknife"):
        assert bounds.correction_error(name) > 0
        error = math.hypot(*(b.estimates[name].se_monte_carlo for b in (bounds, float32)))
        assert abs(bounds.estimates[name].value - float32.estimates[name].value) < 4 * error


def test_few_examples_are_scored_in_float32(vae):
    bounds = pv.evaluate(vae, X[:9], num_samples=30, precision="bfloat16", keep_log_weights=True)
    assert bounds.per_datum["rescored"].all() and bounds.correction_error() == 0
    assert "network layers in float32: 9 examples are too few for bfloat16" in str(bounds)
    assert bounds.log_weights.shape == (30, 9)
    with torch.no_grad():
        expected = pv.log_weights(vae.model, vae.guide, X[:9], num_samples=5000).mean(0)
    difference = bounds.per_datum["elbo"] - expected.numpy()
    # bfloat16 changes the ELBO by 0.6 nats
    assert np.abs(difference).mean() < 0.3
    assert pv.evaluate(vae, X[:9], num_samples=4).correction_error() == 0
    with pytest.raises(ValueError, match="expected the name of a row"):
        bounds.correction_error("elbow")


def test_blocks_of_large_data_have_one_correction(vae, monkeypatch, tmp_path):
    monkeypatch.setattr(containers, "RESIDENT_BYTES", 0)
    monkeypatch.setattr(containers, "_BLOCK_BYTES", 3 * 4 * 20)
    monkeypatch.setattr(precision_module, "_MIN_RESCORED", 4)
    stored = np.memmap(tmp_path / "x", mode="w+", dtype=np.float32, shape=(12, 20))
    stored[:] = X[:12].numpy()
    stored.flush()
    options = {"num_samples": 6, "precision": "bfloat16", "keep_log_weights": True}
    bounds = pv.evaluate(vae, stored, **options)
    rescored = bounds.per_datum["rescored"]
    assert np.array_equal(rescored, choose_rescored(12, 0)) and rescored.sum() == 4
    # the raw weights of each example are in its column
    elbo = bounds.log_weights.mean(0)
    shift = bounds.settings["precision"]["rows"]["elbo"]["shift"]
    np.testing.assert_allclose(bounds.per_datum["elbo"], elbo + ~rescored * shift, rtol=1e-5)


def test_rounding_that_is_too_large_is_flagged(vae, monkeypatch):
    monkeypatch.setattr(precision_module, "_MAX_ERROR_RATIO", 0.0)
    bounds = pv.evaluate(vae, X, num_samples=3, precision="bfloat16")
    assert "above a quarter of the data error: use float32" in str(bounds)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"reliable": True},
            "expected precision float32 with Ladder (reliable=True); got bfloat16, but its "
            "proposals other than q use float32, and k̂ decides on them: drop one of the two",
        ),
        ({"estimators": [Ladder()]}, "expected precision float32 with Ladder"),
        (
            {"estimators": [Defensive()]},
            "expected precision float32 with Defensive; got bfloat16, but the samples from the "
            "prior are weighted in float32: drop one of the two",
        ),
        (
            {"estimators": [AdaptiveSamples(0.1)]},
            "expected precision float32 with AdaptiveSamples; got bfloat16, whose rounding error "
            "of an example does not shrink with more samples: drop one of the two",
        ),
    ],
    ids=["reliable", "Ladder", "Defensive", "AdaptiveSamples"],
)
def test_estimators_that_need_float32(vae, options, message):
    with pytest.raises(ValueError) as error:
        pv.evaluate(vae, X, num_samples=50, precision="bfloat16", **options)
    assert str(error.value).startswith(message)


def test_float64_programs_are_refused():
    vae = small_vae().double()
    message = (
        "expected a float32 program with precision bfloat16, which rounds float32 layers; got "
        "float64: use precision float32, which keeps its dtype"
    )
    with pytest.raises(ValueError) as error:
        pv.evaluate(vae, torch.zeros(9, 3).double(), num_samples=4, precision="bfloat16")
    assert str(error.value) == message
