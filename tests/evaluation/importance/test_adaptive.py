"""Tests of the number of samples per example that ``tolerance`` chooses."""

from __future__ import annotations

import math

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from linear_gaussian import LinearGaussian
from uneven import Uneven

import pyro_vae as pv
from pyro_vae.evaluation import AdaptiveSamples, Corrected, Defensive
from pyro_vae.evaluation.importance import adaptive, sampling
from pyro_vae.evaluation.importance.streaming import StreamingEstimates

D = torch.float64


@pytest.mark.parametrize(
    ("max_samples", "expected"),
    [
        (5000, [313, 625, 1250, 2500, 5000]),
        (1600, [200, 400, 800, 1600]),
        (401, [201, 401]),
        (399, [200, 399]),
        (398, [398]),
        (1, [1]),
    ],
)
def test_candidates_are_halved_down_to_200(max_samples, expected):
    assert adaptive.candidate_sample_counts(max_samples) == expected


def test_pilot_error_determines_sample_count():
    # the error of n samples is c / √n
    constants = torch.tensor([0.1, 1.7, 2.0, 2.7, 60.0, 1.7, 0.0, math.nan])
    bad = torch.tensor([0, 0, 0, 0, 0, 1, 0, 0], dtype=torch.bool)
    calls = []

    def errors(num_samples, rows):
        calls.append((num_samples, rows.tolist()))
        khat = torch.where(bad[rows], 0.9, 0.1)
        return constants[rows] / num_samples**0.5, khat

    counts, pilot_total = adaptive.choose_sample_counts(
        errors, 8, [200, 400, 800, 1600], tolerance=0.1
    )
    # (c / 0.09)² samples are needed: 1, 357, 494, 900, 444444; unknown where k̂ is bad
    assert counts.tolist() == [200, 400, 800, 1600, 1600, 1600, 200, 1600]
    assert calls == [
        (200, list(range(8))),
        (400, [2, 3, 4, 5, 7]),
        (800, [3, 4, 5, 7]),
    ]
    assert pilot_total == sum(count * len(rows) for count, rows in calls)


def test_worse_guides_get_more_samples_and_errors_reach_tolerance():
    program = Uneven(2, inflate=1.15)
    x = program.sample(60)
    shift = torch.tensor([0.1, 0.5, 0.9], dtype=D).repeat(20)
    bounds = pv.evaluate(
        program, x, shift, num_samples=6400, ks=(5,), estimators=[AdaptiveSamples(0.03)]
    )
    counts, error = (
        bounds.per_datum["num_samples"],
        bounds.per_datum["log_evidence_variance"] ** 0.5,
    )
    means = [counts[i::3].mean() for i in range(3)]
    assert means[0] < means[1] < means[2] and counts.max() <= 6400 and counts.min() >= 200
    # pilots aim 10 % below the tolerance; the error of an error is a few per cent
    assert (error <= 0.03).mean() > 0.9
    # no example has twice the samples it needs, and pilots cost less than the reported samples
    assert (error > 0.03 * 0.9 / math.sqrt(2) * 0.85)[counts > 200].all()
    assert bounds.settings["total_draws"] < 2 * counts.sum() + 200 * 60
    deviation = bounds.per_datum["log_evidence"] - program.log_evidence(x).numpy()
    assert abs(deviation / error).max() < 5  # false-alarm rate 4e-5
    assert bounds.num_samples == 6400 and list(bounds.iwae) == [5, 200]
    assert bounds.warning is None
    above = int((error > 0.03).sum())
    assert f"standard error of log p̂ above 0.03 for {above} of 60 examples" in str(bounds)
    assert f"{counts.min()} to {counts.max()} samples per example" in str(bounds)
    assert str(bounds).startswith("60 examples × up to 6400 samples;")


def test_choice_of_sample_counts_does_not_bias_estimates():
    # heavy-tailed weights: samples that miss the largest weights have a small estimated error.
    # Reporting them for that would make p̂ too small on average
    program = LinearGaussian(1, shift=1.3, inflate=1.0)
    x = program.sample(3000)
    truth = program.log_evidence(x).numpy()
    bounds = pv.evaluate(program, x, num_samples=1600, ks=(), estimators=[AdaptiveSamples(0.13)])
    counts = bounds.per_datum["num_samples"]
    assert len(np.unique(counts)) > 2
    ratio = np.exp(bounds.per_datum["log_evidence"] - truth)
    error = ratio.std() / math.sqrt(len(ratio))
    assert abs(ratio.mean() - 1) < 4.4 * error  # false-alarm rate 1e-5
    # the same holds for examples with the fewest samples, whose pilots had the smallest errors
    fewest = ratio[counts == counts.min()]
    assert abs(fewest.mean() - 1) < 4.4 * fewest.std() / math.sqrt(len(fewest))
    # stopping by the error of the reported samples would be biased by many standard errors
    stopped = pv.evaluate(program, x, num_samples=200, ks=()).per_datum
    selected = stopped["log_evidence_variance"] <= 0.13**2
    assert selected.sum() > 50
    ratio = np.exp(stopped["log_evidence"] - truth)[selected]
    assert ratio.mean() - 1 < -5 * ratio.std() / math.sqrt(len(ratio))


def test_pilot_samples_are_not_reported(monkeypatch):
    # all examples need only the number of samples of the pilot, so only the seeds differ
    recorded, original = [], sampling.stream_particles

    def record(*args, **kwargs):
        for chunk in original(*args, **kwargs):
            recorded.append(chunk.particles.log_weights)
            yield chunk

    monkeypatch.setattr(sampling, "stream_particles", record)
    program = LinearGaussian(2, inflate=1.1)
    x = program.sample(5)
    bounds = pv.evaluate(program, x, num_samples=1600, ks=(), estimators=[AdaptiveSamples(1.0)])
    pilot, reported = recorded
    assert pilot.shape == reported.shape == (200, 5)
    assert not (pilot == reported).any()
    means = reported.logsumexp(0) - math.log(200)
    np.testing.assert_allclose(bounds.per_datum["log_evidence"], means)


def test_hopeless_examples_get_maximum_and_are_counted():
    program = Uneven(4, inflate=0.5)
    x = program.sample(10)
    shift = torch.full((10,), 2.0, dtype=D)
    bounds = pv.evaluate(program, x, shift, num_samples=800, estimators=[AdaptiveSamples(0.05)])
    assert (bounds.per_datum["num_samples"] == 800).all()
    assert bounds.settings == {"tolerance": 0.05, "total_draws": 10 * (200 + 400 + 800)}
    assert "standard error of log p̂ above 0.05 for 10 of 10 examples" in str(bounds)
    assert "800 samples per example, 14000 in total" in str(bounds)
    assert bounds.warning.startswith("k̂ > 0.66 for 10 of 10 examples")


def test_khat_thresholds_depend_on_sample_counts():
    columns = {
        "log_evidence": np.zeros(3),
        "log_evidence_variance": np.zeros(3),
        "khat": np.array([0.6, 0.6, 0.72]),
        "num_samples": np.array([200, 5000, 5000]),
    }
    bounds = pv.Bounds(5000, columns)
    np.testing.assert_allclose(bounds.khat_thresholds, [1 - 1 / math.log10(200), 0.7, 0.7])
    assert bounds.unreliable.tolist() == [0, 2]
    assert "k̂ above its threshold (0.57–0.7) for 2 of 3 examples" in bounds.warning


def test_tolerance_is_reproducible_and_combines_with_other_options(tmp_path):
    program = Uneven(2, inflate=1.15)
    x = program.sample(12)
    shift = torch.tensor([0.1, 0.5, 0.9], dtype=D).repeat(4)
    estimators = [AdaptiveSamples(0.05), Corrected(), Defensive(0.2)]
    options = {"num_samples": 1600, "estimators": estimators}
    torch.manual_seed(1)
    expected = torch.rand(3)
    torch.manual_seed(1)
    first = pv.evaluate(program, x, shift, **options)
    assert torch.equal(torch.rand(3), expected)
    repeated = pv.evaluate(program, x, shift, **options)
    assert {"psis", "jackknife", "defensive"} <= first.estimates.keys()
    for name, values in first.per_datum.items():
        np.testing.assert_array_equal(repeated.per_datum[name], values)
    first.to_netcdf(tmp_path / "bounds.nc")
    assert str(pv.Bounds.from_netcdf(tmp_path / "bounds.nc")) == str(first)
    truth = program.log_evidence(x).numpy()
    for name in ("psis", "jackknife", "defensive"):
        deviation = first.per_datum[name] - truth
        # 36 comparisons: false-alarm rate 1e-4
        assert (abs(deviation) < 4.7 * first.per_datum[f"{name}_variance"] ** 0.5).all()


def test_guide_of_the_full_data_set_raises():
    def model(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros((), dtype=D), 1.0))
            pyro.sample("x", dist.Normal(z, 1.0), obs=x)

    def guide(x):
        mean = pyro.param("mean", torch.zeros(20, dtype=D))
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(mean + x, 1.0))

    x = torch.linspace(-6, 6, 20, dtype=D)
    with pytest.raises(
        ValueError, match=r"expected a program that runs on a subset of the examples"
    ):
        pv.evaluate((model, guide), x, num_samples=1600, estimators=[AdaptiveSamples(0.02)])


def test_error_names_index_in_full_data_set():
    program = LinearGaussian(1, shift=1.3)
    x = program.sample(7)
    x[5, 2] = math.nan
    with (
        pyro.validation_enabled(False),
        pytest.raises(
            ValueError, match=r"expected finite log weights; got NaN or \+inf for example 5"
        ),
    ):
        pv.evaluate(program, x, num_samples=400, estimators=[AdaptiveSamples(0.1)])
    log_w = torch.zeros(30, 2, dtype=D)
    log_w[3, 1] = math.nan
    with pytest.raises(
        ValueError, match=r"expected finite log weights; got NaN or \+inf for example 8"
    ):
        StreamingEstimates(2, 30, ()).update(log_w, 0, rows=torch.tensor([2, 8]))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"keep_log_weights": True}, r"expected keep_log_weights or AdaptiveSamples; got both"),
        ({"num_samples": 0}, r"expected num_samples to be an integer ≥ 1; got 0"),
    ],
)
def test_invalid_options(options, message):
    program, options = LinearGaussian(1), {"num_samples": 400, **options}
    with pytest.raises(ValueError, match=message):
        pv.evaluate(program, program.sample(3), estimators=[AdaptiveSamples(0.1)], **options)


@pytest.mark.parametrize("tolerance", [0.0, -1, math.nan])
def test_invalid_tolerance(tolerance):
    with pytest.raises(ValueError, match=f"expected tolerance > 0, in nats; got {tolerance}"):
        AdaptiveSamples(tolerance)
