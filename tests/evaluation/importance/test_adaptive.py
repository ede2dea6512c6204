"""As many draws for each datum as it needs."""

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
from pyro_vae.evaluation import evaluator
from pyro_vae.evaluation.importance import adaptive
from pyro_vae.evaluation.importance.streaming import Block

D = torch.float64


@pytest.mark.parametrize(
    ("most", "expected"),
    [
        (5000, [313, 625, 1250, 2500, 5000]),
        (1600, [200, 400, 800, 1600]),
        (401, [201, 401]),
        (399, [200, 399]),
        (398, [398]),
        (1, [1]),
    ],
)
def test_stages_halve_as_often_as_leaves_200(most, expected):
    assert adaptive.stages(most) == expected


def test_a_pilot_chooses_what_its_error_asks_for():
    # the error of n draws is c / √n
    constants = torch.tensor([0.1, 1.7, 2.0, 2.7, 60.0, 1.7, 0.0, math.nan])
    bad = torch.tensor([0, 0, 0, 0, 0, 1, 0, 0], dtype=torch.bool)
    asked = []

    def errors(num_samples, rows):
        asked.append((num_samples, rows.tolist()))
        khat = torch.where(bad[rows], 0.9, 0.1)
        return constants[rows] / num_samples**0.5, khat

    draws, spent = adaptive.chosen(errors, 8, [200, 400, 800, 1600], tolerance=0.1)
    # (c / 0.09)² draws are needed: 1, 357, 494, 900, 444444; nothing is known where k̂ is bad
    assert draws.tolist() == [200, 400, 800, 1600, 1600, 1600, 200, 1600]
    assert asked == [
        (200, list(range(8))),
        (400, [2, 3, 4, 5, 7]),
        (800, [3, 4, 5, 7]),
    ]
    assert spent == sum(count * len(rows) for count, rows in asked)


def test_draws_go_where_the_guide_is_worse_and_reach_the_tolerance():
    program = Uneven(2, inflate=1.15)
    x = program.sample(60)
    shift = torch.tensor([0.1, 0.5, 0.9], dtype=D).repeat(20)
    bounds = pv.evaluate(program, x, shift, num_samples=6400, ks=(5,), tolerance=0.03)
    draws, error = (
        bounds.per_datum["num_samples"],
        bounds.per_datum["log_evidence_variance"] ** 0.5,
    )
    means = [draws[i::3].mean() for i in range(3)]
    assert means[0] < means[1] < means[2] and draws.max() <= 6400 and draws.min() >= 200
    # the pilots aim a tenth below; the error of an error is a few per cent
    assert (error <= 0.03).mean() > 0.9
    # no datum has twice the draws that it needs, and pilots cost less than all that is reported
    assert (error > 0.03 * 0.9 / math.sqrt(2) * 0.85)[draws > 200].all()
    assert bounds.settings["total_draws"] < 2 * draws.sum() + 200 * 60
    off = bounds.per_datum["log_evidence"] - program.log_evidence(x).numpy()
    assert abs(off / error).max() < 5  # false alarm 4e-5
    assert bounds.num_samples == 6400 and list(bounds.iwae) == [5, 200]
    assert bounds.warning is None
    short = int((error > 0.03).sum())
    assert f"for {short} of 60 data the standard error of log p̂ is above 0.03" in str(bounds)
    assert f"{draws.min()} to {draws.max()} draws for a datum" in str(bounds)
    assert str(bounds).startswith("60 data × at most 6400 draws;")


def test_a_datum_s_own_draws_have_no_say_in_how_many_they_are():
    # heavy weights: draws that miss the largest promise a small error. Were they reported when
    # they promise enough, p̂ would be too small on average
    program = LinearGaussian(1, shift=1.3, inflate=1.0)
    x = program.sample(6000)
    truth = program.log_evidence(x).numpy()
    bounds = pv.evaluate(program, x, num_samples=1600, ks=(), tolerance=0.13)
    draws = bounds.per_datum["num_samples"]
    assert len(np.unique(draws)) > 2
    ratio = np.exp(bounds.per_datum["log_evidence"] - truth)
    error = ratio.std() / math.sqrt(len(ratio))
    assert abs(ratio.mean() - 1) < 4.4 * error  # false alarm 1e-5
    # the same holds of those with the fewest draws, whose pilots promised most
    few = ratio[draws == draws.min()]
    assert abs(few.mean() - 1) < 4.4 * few.std() / math.sqrt(len(few))
    # what stopping by a datum's own error would have done: many standard errors below
    promised = pv.evaluate(program, x, num_samples=200, ks=()).per_datum
    lucky = promised["log_evidence_variance"] <= 0.13**2
    assert lucky.sum() > 100
    kept = np.exp(promised["log_evidence"] - truth)[lucky]
    assert kept.mean() - 1 < -6 * kept.std() / math.sqrt(len(kept))


def test_what_a_pilot_drew_is_not_reported(monkeypatch):
    # all data settle for the pilot's own number of draws, so that only the seed parts the two
    drawn, plainly = [], evaluator.stream_particles

    def noted(*args, **kwargs):
        for chunk in plainly(*args, **kwargs):
            drawn.append(chunk.particles.log_weights)
            yield chunk

    monkeypatch.setattr(evaluator, "stream_particles", noted)
    program = LinearGaussian(2, inflate=1.1)
    x = program.sample(5)
    bounds = pv.evaluate(program, x, num_samples=1600, ks=(), tolerance=1.0)
    pilot, reported = drawn
    assert pilot.shape == reported.shape == (200, 5)
    assert not torch.isclose(pilot, reported).any()
    means = reported.logsumexp(0) - math.log(200)
    np.testing.assert_allclose(bounds.per_datum["log_evidence"], means)


def test_hopeless_data_get_the_most_and_are_counted():
    program = Uneven(4, inflate=0.5)
    x = program.sample(10)
    shift = torch.full((10,), 2.0, dtype=D)
    bounds = pv.evaluate(program, x, shift, num_samples=800, tolerance=0.05)
    assert (bounds.per_datum["num_samples"] == 800).all()
    assert bounds.settings == {"tolerance": 0.05, "total_draws": 10 * (200 + 400 + 800)}
    assert "for 10 of 10 data the standard error of log p̂ is above 0.05" in str(bounds)
    assert "800 draws for every datum, 14000 in all" in str(bounds)
    assert bounds.warning.startswith("For 10 of 10 data k̂ is above 0.66")


def test_limits_of_khat_are_those_of_each_datum_s_draws():
    columns = {
        "log_evidence": np.zeros(3),
        "log_evidence_variance": np.zeros(3),
        "khat": np.array([0.6, 0.6, 0.72]),
        "num_samples": np.array([200, 5000, 5000]),
    }
    bounds = pv.Bounds(5000, columns)
    np.testing.assert_allclose(bounds.khat_limits, [1 - 1 / math.log10(200), 0.7, 0.7])
    assert bounds.unreliable.tolist() == [0, 2]
    assert "For 2 of 3 data k̂ is above its limit, 0.57 to 0.70" in bounds.warning


def test_results_repeat_and_other_options_go_along(tmp_path):
    program = Uneven(2, inflate=1.15)
    x = program.sample(12)
    shift = torch.tensor([0.1, 0.5, 0.9], dtype=D).repeat(4)
    options = {"num_samples": 1600, "tolerance": 0.05, "corrected": True, "defensive": 0.2}
    torch.manual_seed(1)
    expected = torch.rand(3)
    torch.manual_seed(1)
    first = pv.evaluate(program, x, shift, **options)
    assert torch.equal(torch.rand(3), expected)
    again = pv.evaluate(program, x, shift, **options)
    assert {"psis", "jackknife", "defensive"} <= first.estimates.keys()
    for name, values in first.per_datum.items():
        np.testing.assert_array_equal(again.per_datum[name], values)
    first.to_netcdf(tmp_path / "bounds.nc")
    assert str(pv.Bounds.from_netcdf(tmp_path / "bounds.nc")) == str(first)
    truth = program.log_evidence(x).numpy()
    for name in ("psis", "jackknife", "defensive"):
        off = first.per_datum[name] - truth
        # 36 comparisons: false alarm 1e-4
        assert (abs(off) < 4.7 * first.per_datum[f"{name}_variance"] ** 0.5).all()


def test_a_guide_that_knows_its_data_alone_is_refused():
    def model(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros((), dtype=D), 1.0))
            pyro.sample("x", dist.Normal(z, 1.0), obs=x)

    def guide(x):
        mean = pyro.param("mean", torch.zeros(20, dtype=D))
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(mean + x, 1.0))

    x = torch.linspace(-6, 6, 20, dtype=D)
    with pytest.raises(ValueError, match=r"expected a program that can be run on some of the data"):
        pv.evaluate((model, guide), x, num_samples=1600, tolerance=0.02)


def test_a_datum_without_a_weight_is_named_as_the_caller_counts():
    program = LinearGaussian(1, shift=1.3)
    x = program.sample(7)
    x[5, 2] = math.nan
    with (
        pyro.validation_enabled(False),
        pytest.raises(ValueError, match=r"log weights of datum 5 are NaN or \+inf"),
    ):
        pv.evaluate(program, x, num_samples=400, tolerance=0.1)
    log_w = torch.zeros(30, 2, dtype=D)
    log_w[3, 1] = math.nan
    with pytest.raises(ValueError, match=r"log weights of datum 8 are NaN"):
        Block(2, 30, (), 9).update(log_w, 0, rows=torch.tensor([2, 8]))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"tolerance": 0.0}, r"expected tolerance > 0, in nats; got 0.0"),
        ({"tolerance": -1}, r"expected tolerance > 0, in nats; got -1"),
        ({"tolerance": math.nan}, r"expected tolerance > 0, in nats; got nan"),
        (
            {"tolerance": 0.1, "keep_log_weights": True},
            r"expected keep_log_weights or tolerance; got both",
        ),
        (
            {"tolerance": 0.1, "num_samples": 0},
            r"expected num_samples to be an integer ≥ 1; got 0",
        ),
    ],
)
def test_bad_numbers(options, message):
    program = LinearGaussian(1)
    with pytest.raises(ValueError, match=message):
        pv.evaluate(program, program.sample(3), **{"num_samples": 400, **options})
