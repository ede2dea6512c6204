"""Tests of AIS in ``evaluate``, for all examples or those with a bad k̂."""

from __future__ import annotations

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from linear_gaussian import LinearGaussian
from uneven import Uneven

import pyro_vae as pv
from pyro_vae.evaluation import Annealing, ais

D = torch.float64
#: Enough chains for a normal mean, with a standard error known to an eighth.
SHORT = Annealing(num_chains=40, num_temperatures=60, num_steps=5)
#: The examples with a bad guide.
BAD = [1, 4, 9]


@pytest.fixture
def uneven():
    program = Uneven(3, inflate=1.1)
    shift = torch.zeros(12, dtype=D)
    shift[BAD] = 4.0
    return program, program.sample(12), shift


def test_examples_with_bad_khat_use_ais(uneven, tmp_path):
    program, x, shift = uneven
    reference = pv.evaluate(program, x, shift, num_samples=1000)
    assert reference.unreliable.tolist() == BAD
    bounds = pv.evaluate(program, x, shift, num_samples=1000, escalate=SHORT)
    columns, truth = bounds.per_datum, program.log_evidence(x).numpy()
    # importance sampling is unchanged
    for name, values in reference.per_datum.items():
        np.testing.assert_array_equal(columns[name], values)
    assert np.flatnonzero(~np.isnan(columns["ais"])).tolist() == BAD
    assert np.flatnonzero(~np.isnan(columns["ais_ess"])).tolist() == BAD
    good = np.setdiff1d(np.arange(12), BAD)
    for suffix in ("", "_variance"):
        escalated = columns[f"escalated{suffix}"]
        np.testing.assert_array_equal(escalated[BAD], columns[f"ais{suffix}"][BAD])
        np.testing.assert_array_equal(escalated[good], columns[f"log_evidence{suffix}"][good])
    row = bounds.estimates["escalated"]
    # log p̂ is far too low; false-alarm rate 1e-5
    assert reference.log_evidence < truth.mean() - 0.3
    assert abs(row.value - truth.mean()) < 4.4 * row.se_monte_carlo < 0.5
    assert "ais" not in bounds.estimates and "ais_gap" not in bounds.estimates
    assert "AIS used for 3 of 12 examples, 40 chains each; ESS median" in str(bounds)
    assert "k̂ > 0.67 for 3 of 12 examples: the importance weights" in str(bounds)
    assert str(bounds).endswith("AIS does not use these weights.")
    summary = bounds.summary()
    assert summary["escalated"] == 3 and summary["settings"]["annealing"]["num_temperatures"] == 60
    bounds.to_netcdf(tmp_path / "bounds.nc")
    assert str(pv.Bounds.from_netcdf(tmp_path / "bounds.nc")) == str(bounds)


def test_ais_of_all_examples_equals_ais(uneven):
    program, x, shift = uneven
    alone = ais(program, x, shift, annealing=SHORT, seed=3)
    bounds = pv.evaluate(program, x, shift, num_samples=500, seed=3, ais=SHORT, escalate=True)
    for name, values in alone.per_datum.items():
        np.testing.assert_array_equal(bounds.per_datum[name], values)
    assert bounds.num_samples == 500 and bounds.seed == 3
    assert bounds.settings == alone.settings
    rows = bounds.estimates
    truth = float(program.log_evidence(x).mean())
    # false-alarm rate 1e-5 each
    assert abs(rows["ais"].value - truth) < 4.4 * rows["ais"].se_monte_carlo
    assert rows["ais_gap"].value == pytest.approx(rows["ais"].value - rows["elbo"].value)
    assert list(rows)[-5:] == ["log_evidence", "ais", "escalated", "gap", "ais_gap"]
    np.testing.assert_array_equal(bounds.per_datum["escalated"][BAD], alone.per_datum["ais"][BAD])


def test_no_example_to_escalate():
    program = LinearGaussian(2, inflate=1.1)
    x = program.sample(6)
    bounds = pv.evaluate(program, x, num_samples=500, escalate=SHORT)
    np.testing.assert_array_equal(bounds.per_datum["escalated"], bounds.per_datum["log_evidence"])
    assert "AIS used for 0 of 6 examples, 40 chains each" in str(bounds)
    assert bounds.summary()["settings"]["annealing"]["num_chains"] == 40


def test_escalation_with_adaptive_sample_counts(uneven):
    program, x, shift = uneven
    bounds = pv.evaluate(
        program, x, shift, num_samples=800, tolerance=0.1, escalate=SHORT, defensive=0.2
    )
    assert bounds.unreliable.tolist() == BAD
    assert (bounds.per_datum["num_samples"][BAD] == 800).all()
    assert bounds.settings.keys() == {"tolerance", "total_draws", "defensive", "annealing"}
    row = bounds.estimates["escalated"]
    truth = float(program.log_evidence(x).mean())
    assert abs(row.value - truth) < 4.4 * row.se_monte_carlo  # false-alarm rate 1e-5


def test_true_uses_default_annealing(uneven, monkeypatch):
    program, x, shift = uneven
    calls = []

    def fake_ais(program, data, *args, annealing, **kwargs):
        calls.append((annealing, len(data), *map(len, args)))
        return pv.Bounds(
            annealing.num_chains,
            {"ais": np.zeros(len(data)), "ais_variance": np.zeros(len(data))},
        )

    monkeypatch.setattr("pyro_vae.evaluation.escalation.ais", fake_ais)
    pv.evaluate(program, x, shift, num_samples=500, escalate=True)
    # a short trial on two examples comes first
    trial, (annealing, *sizes) = calls
    assert (trial[0].num_temperatures, *trial[1:]) == (1, 2, 2)
    assert annealing == Annealing() and sizes == [3, 3]


def test_ais_errors_occur_before_sampling(monkeypatch):
    def model(x):
        with pyro.plate("data", len(x)):
            y = pyro.sample("y", dist.Bernoulli(torch.full((), 0.5, dtype=D)))
            pyro.sample("x", dist.Normal(y, 1.0), obs=x)

    def guide(x):
        with pyro.plate("data", len(x)):
            pyro.sample("y", dist.Bernoulli(torch.full((), 0.5, dtype=D)))

    def fail(*args, **kwargs):
        raise AssertionError

    monkeypatch.setattr("pyro_vae.evaluation.importance.sampling.stream_particles", fail)
    for option in ("ais", "escalate"):
        with pytest.raises(ValueError, match=r"continuous|discrete"):
            pv.evaluate((model, guide), torch.zeros(5, dtype=D), **{option: SHORT})


def test_conflicting_annealing_settings_raise():
    program = LinearGaussian(1)
    with pytest.raises(
        ValueError, match=r"expected the same Annealing for ais and escalate; got two"
    ):
        pv.evaluate(program, program.sample(3), ais=SHORT, escalate=Annealing())
