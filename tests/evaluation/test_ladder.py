"""Reliable log p̂ per example, against closed forms and quadrature."""

from __future__ import annotations

import math

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from components import PROGRAMS, program_for
from gamma_poisson import gamma_poisson
from linear_gaussian import LinearGaussian
from uneven import Uneven

import pyro_vae as pv
from pyro_vae.evaluation import (
    AdaptiveSamples,
    Annealing,
    Corrected,
    Defensive,
    Estimator,
    Ladder,
    Laplace,
)

D = torch.float64
#: Enough chains for a normal mean, with a standard error known to an eighth.
SHORT = Annealing(num_chains=32, num_temperatures=40, num_steps=4)
#: The examples with a bad guide.
BAD = [1, 4, 9]


@pytest.fixture
def uneven():
    program = Uneven(3, inflate=1.1)
    shift = torch.zeros(12, dtype=D)
    shift[BAD] = 4.0
    return program, program.sample(12), shift


def check_truth(bounds, truth, errors=4.9):
    """Compare log p̂ of every example; 12 comparisons have a false-alarm rate of 1e-5."""
    data = bounds.per_datum
    deviation = np.abs(data["log_evidence"] - np.asarray(truth))
    np.testing.assert_array_less(deviation, errors * np.sqrt(data["log_evidence_variance"]) + 1e-3)


def test_only_examples_with_a_bad_guide_climb(uneven, tmp_path):
    program, x, shift = uneven
    truth = program.log_evidence(x)
    plain = pv.evaluate(program, x, shift, num_samples=1000)
    assert plain.unreliable.tolist() == BAD and plain.proposals == {}
    assert plain.log_evidence < float(truth.mean()) - 0.3
    bounds = pv.evaluate(program, x, shift, num_samples=1000, reliable=True)
    assert bounds.proposals == {"guide": 9, "Laplace": 3, "adapted": 0, "AIS": 0}
    assert np.flatnonzero(bounds.per_datum["proposal"]).tolist() == BAD
    assert not len(bounds.unreliable) and bounds.warning is None
    check_truth(bounds, truth)
    # the bounds of the guide are the same bits, and its log p̂ is kept
    assert bounds.iwae == plain.iwae and bounds.elbo == plain.elbo
    np.testing.assert_array_equal(bounds.iwae_variance[1000], plain.iwae_variance[1000])
    good = np.setdiff1d(np.arange(12), BAD)
    for name in ("log_evidence", "log_evidence_variance", "khat", "ess"):
        old = plain.per_datum[name]
        np.testing.assert_array_equal(bounds.per_datum[f"guide_{name}"], old)
        np.testing.assert_array_equal(bounds.per_datum[name][good], old[good])
    # errors of the gap: joint samples for the guide, independent ones for the others
    data = bounds.per_datum
    expected = plain.per_datum["gap_variance"].copy()
    expected[BAD] = (data["elbo_variance"] + data["log_evidence_variance"])[BAD]
    np.testing.assert_array_equal(data["gap_variance"], expected)
    gap = bounds.estimates["gap"]
    assert abs(gap.value - (float(truth.mean()) - bounds.elbo)) < 4.4 * gap.se_monte_carlo
    assert "log p̂ from: guide 9, Laplace 3 of 12 examples" in str(bounds)
    labels = [label for label, _ in bounds.labels.values()]
    assert labels == ["ELBO", "L_5", "L_50", "L_500", "L_1000", "log p̂", "log p̂ − ELBO"]
    bounds.to_netcdf(tmp_path / "bounds.nc")
    read = pv.Bounds.from_netcdf(tmp_path / "bounds.nc")
    assert str(read) == str(bounds) and read.summary() == bounds.summary()
    variable = bounds.to_datatree()["bounds"]["proposal"]
    assert variable.attrs["flag_meanings"] == "guide Laplace adapted AIS"
    assert variable.attrs["flag_values"].tolist() == [0, 1, 2, 3]


def test_a_seed_reproduces_the_result(uneven):
    program, x, shift = uneven
    ladder = Ladder(Laplace(100, num_rounds=0), SHORT, max_error=0.06)
    options = {"num_samples": 500, "seed": 3, "estimators": [ladder]}
    torch.manual_seed(1)
    expected = torch.rand(3)
    torch.manual_seed(1)
    first, second = (pv.evaluate(program, x, shift, **options) for _ in range(2))
    assert torch.equal(torch.rand(3), expected)
    for name, values in first.per_datum.items():
        np.testing.assert_array_equal(second.per_datum[name], values)
    assert first.settings == second.settings


def test_reported_samples_are_fresh_when_there_are_more():
    # examples whose first samples have a large error get more, from another stream
    program = LinearGaussian(3, shift=5.0)
    x = program.sample(40)
    truth = program.log_evidence(x).numpy()
    ladder = Ladder(Laplace(100, num_rounds=0), None, max_error=0.05)
    bounds = pv.evaluate(program, x, num_samples=100, estimators=[ladder])
    counts = bounds.per_datum["num_samples"]
    assert {*counts} <= {100, 400, 1600} and (counts > 100).any()
    errors = np.sqrt(bounds.per_datum["log_evidence_variance"])
    assert errors[counts > 100].max() < 0.06
    check_truth(bounds, truth, 5.2)


def test_ais_is_the_last_rung(uneven):
    program, x, shift = uneven
    # k̂ needs 25 samples, also of a repetition with more: no example stays with Laplace
    ladder = Ladder(Laplace(5, num_rounds=0), SHORT, max_error=1.0)
    bounds = pv.evaluate(program, x, shift, num_samples=1000, estimators=[ladder])
    assert bounds.proposals == {"guide": 9, "Laplace": 0, "adapted": 0, "AIS": 3}
    data = bounds.per_datum
    assert np.flatnonzero(np.isnan(data["khat"])).tolist() == BAD
    assert np.flatnonzero(~np.isnan(data["ais_ess"])).tolist() == BAD
    assert data["num_samples"][BAD].tolist() == [32, 32, 32]
    assert not len(bounds.unreliable)
    check_truth(bounds, program.log_evidence(x))
    assert "AIS of 3 of 12 examples, 32 chains each; ESS median" in str(bounds)
    assert "nan" not in str(bounds)
    assert bounds.summary()["proposals"]["AIS"] == 3


def test_a_last_rung_that_is_not_good_is_reported(uneven):
    program, x, shift = uneven
    short = Annealing(num_chains=4, num_temperatures=2, num_steps=1)
    ladder = Ladder(Laplace(5, num_rounds=0), short, max_error=0.05)
    bounds = pv.evaluate(program, x, shift, num_samples=5000, estimators=[ladder])
    assert bounds.unreliable.tolist() == BAD
    assert "AIS is not good for 3 of 12 examples: the standard error is above 0.05" in str(bounds)
    assert bounds.warning.endswith(
        "Ladder(annealing=Annealing(num_temperatures=…)) (see docs/how-to/read-khat.md)."
    )


def test_max_error_makes_examples_climb():
    program = LinearGaussian(3, inflate=1.3)
    x = program.sample(10)
    loose, tight = (
        pv.evaluate(program, x, num_samples=300, estimators=[Ladder(max_error=error)])
        for error in (1.0, 0.03)
    )
    assert loose.proposals["guide"] == 10
    assert tight.proposals["guide"] < 10
    assert np.sqrt(tight.per_datum["log_evidence_variance"]).max() <= 0.03
    check_truth(tight, program.log_evidence(x))


def _hard_and_easy():
    """A bimodal posterior for large x, of which the guide has one mode; a normal one for x < 0."""

    def model(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros((), dtype=D), 1.0))
            pyro.sample("x", dist.Normal(torch.where(x < 0, z, z**2), 0.3), obs=x)

    def guide(x):
        with pyro.plate("data", len(x)):
            mean = torch.where(x < 0, x / 1.09, 0 * x)
            scale = torch.where(x < 0, 0.3 / math.sqrt(1.09), 1.0)
            pyro.sample("z", dist.Normal(mean, scale))

    x = torch.tensor([-1.0, 3.0, -0.5, 4.0, -2.0, 5.0], dtype=D)
    z = torch.linspace(-6, 6, 100_001, dtype=D)[:, None]
    observed = torch.where(x < 0, z, z**2)
    joint = dist.Normal(0.0, 1.0).log_prob(z) + dist.Normal(observed, 0.3).log_prob(x)
    return model, guide, x, joint.logsumexp(0) + math.log(12 / 100_000)


def test_easy_and_hard_examples_in_one_data_set():
    model, guide, x, truth = _hard_and_easy()
    ladder = Ladder(max_error=0.03)
    bounds = pv.evaluate(model, guide, x, num_samples=500, estimators=[ladder])
    proposal = bounds.per_datum["proposal"]
    assert (proposal[x.numpy() < 0] == 0).all() and (proposal[x.numpy() > 0] > 0).all()
    check_truth(bounds, truth)


def test_skewed_posteriors():
    model, guide, x, truth = gamma_poisson()
    plain = pv.evaluate(model, guide, x, num_samples=1000)
    # q is too narrow for x = 1, which its k̂ does not show
    assert plain.per_datum["khat"][1] < plain.khat_thresholds[1]
    bounds = pv.evaluate(model, guide, x, num_samples=1000, reliable=True)
    assert bounds.proposals["guide"] == 0 and not len(bounds.unreliable)
    check_truth(bounds, truth)


def test_tails_that_get_heavier_beyond_the_samples():
    """A funnel: k̂ of q, a standard normal, is good, but the errors of log p̂ are too small."""

    def sample(scale):
        v = pyro.sample("v", dist.Normal(torch.zeros((), dtype=D), 1.0))
        pyro.sample("y", dist.Normal(torch.zeros((), dtype=D), scale(v)))

    def model(x):
        with pyro.plate("data", len(x)):
            sample(lambda v: (v / 2).exp())
            pyro.sample("x", dist.Normal(torch.zeros_like(x), 1.0), obs=x)

    def guide(x):
        with pyro.plate("data", len(x)):
            sample(lambda v: torch.ones_like(v))

    x = torch.linspace(-1, 1, 40, dtype=D)
    plain = pv.evaluate(model, guide, x, num_samples=1000)
    assert len(plain.unreliable) < 5
    bounds = pv.evaluate(model, guide, x, num_samples=1000, reliable=True)
    assert bounds.proposals["guide"] < 5 and not len(bounds.unreliable)
    check_truth(bounds, dist.Normal(0.0, 1.0).log_prob(x))


def test_a_mode_that_the_guide_never_draws_is_found():
    """p(x|z) knows |z| only, and q covers one of the two modes: its k̂ is good."""

    def model(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros((), dtype=D), 1.0))
            pyro.sample("x", dist.Normal(z.abs(), 0.1), obs=x)

    def guide(x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(x / 1.01, 0.11))

    x = torch.linspace(0.7, 1.2, 10, dtype=D)
    # the normal's tail across zero is below e^−24
    truth = math.log(2) + dist.Normal(0.0, 1.01**0.5).log_prob(x)
    plain = pv.evaluate(model, guide, x, num_samples=1000)
    assert not len(plain.unreliable) and abs(plain.log_evidence - float(truth.mean())) > 0.6
    bounds = pv.evaluate(model, guide, x, num_samples=1000, reliable=True)
    assert bounds.proposals["guide"] == 0 and not len(bounds.unreliable)
    check_truth(bounds, truth)


def discrete():
    def model(x):
        with pyro.plate("data", len(x)):
            y = pyro.sample("y", dist.Bernoulli(torch.full((), 0.5, dtype=D)))
            pyro.sample("x", dist.Normal(3 * y, 1.0), obs=x)

    def guide(x):
        with pyro.plate("data", len(x)):
            pyro.sample("y", dist.Bernoulli(torch.full((), 1e-9, dtype=D)))

    return model, guide


def test_discrete_latents_stop_at_the_guide():
    x = torch.tensor([0.0, 3.0], dtype=D)
    plain = pv.evaluate(*discrete(), x, num_samples=100)
    bounds = pv.evaluate(*discrete(), x, num_samples=100, reliable=True)
    assert bounds.proposals["guide"] == 2
    assert bounds.unreliable.tolist() == plain.unreliable.tolist() != []
    assert bounds.log_evidence == plain.log_evidence
    sentence = (
        "the ladder stops at the guide: expected continuous latent sites; got site 'y' "
        "(Bernoulli), which is discrete and has no gradient for HMC"
    )
    assert sentence in str(bounds) and str(bounds).count("expected continuous latent sites") == 1


def test_a_guide_for_the_whole_data_set_stops_at_the_guide():
    def model(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros((), dtype=D), 1.0))
            pyro.sample("x", dist.Normal(z, 1.0), obs=x)

    def guide(x):
        mean = pyro.param("mean", torch.zeros(6, dtype=D))
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(mean + x / 2, torch.where(x > 0, 0.7, 0.05)))

    x = torch.linspace(-2, 2, 6, dtype=D)
    bounds = pv.evaluate(model, guide, x, num_samples=400, reliable=True)
    assert bounds.proposals["guide"] == 6 and len(bounds.unreliable)
    assert "the ladder stops at the guide: expected a program that runs on a subset" in str(bounds)


def test_many_latents_leave_out_laplace():
    """Above 500 latents the ladder goes from the guide to AIS."""

    def model(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(501, dtype=D), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(z[..., 0], 0.3), obs=x)

    def guide(x):
        with pyro.plate("data", len(x)):
            mean = torch.zeros(len(x), 501, dtype=D)
            pyro.sample("z", dist.Normal(mean, 1.0).to_event(1))

    x = torch.tensor([0.5, 4.5], dtype=D)
    bounds = pv.evaluate(model, guide, x, num_samples=200, estimators=[Ladder(annealing=SHORT)])
    assert bounds.proposals == {"guide": 1, "Laplace": 0, "adapted": 0, "AIS": 1}
    assert "expected at most 500 latent dimensions per example" in str(bounds)
    check_truth(bounds, dist.Normal(0.0, 1.09**0.5).log_prob(x))


def test_angles_leave_out_laplace():
    def model(x):
        with pyro.plate("data", len(x)):
            angle = pyro.sample("angle", dist.VonMises(torch.zeros((), dtype=D), 0.5))
            pyro.sample("x", dist.Normal(angle.cos(), 0.2), obs=x)

    def guide(x):
        with pyro.plate("data", len(x)):
            pyro.sample("angle", dist.VonMises(0 * x + 1.0, 30.0))

    x = torch.tensor([0.5, 0.0], dtype=D)
    ladder = Ladder(annealing=SHORT, max_error=1.0)
    bounds = pv.evaluate(model, guide, x, num_samples=300, estimators=[ladder])
    assert "the ladder leaves out Laplace: expected latents on the real line" in str(bounds)
    assert bounds.proposals["AIS"] > 0


def test_estimators_of_all_examples_are_used_by_the_ladder(uneven, monkeypatch):
    program, x, shift = uneven
    estimators = [Laplace(200), Ladder(annealing=None)]
    bounds = pv.evaluate(program, x, shift, num_samples=1000, estimators=estimators)
    data = bounds.per_datum
    np.testing.assert_array_equal(data["log_evidence"][BAD], data["laplace"][BAD])
    assert data["num_samples"][BAD].tolist() == [200, 200, 200]
    alone = pv.evaluation.laplace(program, x, shift, settings=Laplace(200))
    np.testing.assert_array_equal(alone.per_datum["laplace"], data["laplace"])
    assert {"laplace", "laplace_gap"} <= bounds.estimates.keys()


def test_annealing_gives_the_rows_of_ais(uneven):
    program, x, shift = uneven
    alone = pv.ais(program, x, shift, annealing=SHORT, seed=3)
    bounds = pv.evaluate(program, x, shift, num_samples=500, seed=3, estimators=[SHORT])
    for name, values in alone.per_datum.items():
        np.testing.assert_array_equal(bounds.per_datum[name], values)
    assert bounds.num_samples == 500 and bounds.seed == 3 and bounds.settings == alone.settings
    rows = bounds.estimates
    truth = float(program.log_evidence(x).mean())
    # false-alarm rate 1e-5
    assert abs(rows["ais"].value - truth) < 4.4 * rows["ais"].se_monte_carlo
    assert rows["ais_gap"].value == pytest.approx(rows["ais"].value - rows["elbo"].value)


def test_ladder_with_other_estimators(uneven):
    program, x, shift = uneven
    estimators = [Ladder(), AdaptiveSamples(0.1), Corrected(), Defensive(0.2)]
    bounds = pv.evaluate(program, x, shift, num_samples=800, estimators=estimators)
    assert np.flatnonzero(bounds.per_datum["proposal"]).tolist() == BAD
    assert (bounds.per_datum["guide_num_samples"][BAD] == 800).all()
    assert bounds.per_datum["num_samples"][BAD].tolist() == [Laplace().num_samples] * 3
    settings = {"tolerance", "total_draws", "defensive", "ladder", "proposals"}
    assert bounds.settings.keys() == settings
    assert "standard error of log p̂ above 0.1 for 3 of 12 examples" in str(bounds)
    assert {"psis", "jackknife", "defensive"} <= bounds.estimates.keys()
    check_truth(bounds, program.log_evidence(x))


class Twice(Estimator):
    """An estimator of a user: log p̂ + log p̂."""

    def estimate(self, task, bounds):
        assert len(task) == len(bounds)
        return bounds.merge(pv.Bounds(1, {"twice": 2 * bounds.per_datum["log_evidence"]}))


def test_estimators_of_users():
    program = LinearGaussian(2)
    bounds = pv.evaluate(program, program.sample(3), num_samples=50, estimators=(Twice(),))
    data = bounds.per_datum
    np.testing.assert_array_equal(data["twice"], 2 * data["log_evidence"])


def test_errors_of_estimators_occur_before_sampling(monkeypatch):
    def fail(*args, **kwargs):
        raise AssertionError

    monkeypatch.setattr("pyro_vae.evaluation.importance.sampling.stream_particles", fail)
    for estimator in (SHORT, Laplace()):
        with pytest.raises(ValueError, match="expected continuous latent sites; got site 'y'"):
            pv.evaluate(*discrete(), torch.zeros(5, dtype=D), estimators=[estimator])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"estimators": SHORT}, r"expected estimators to be a list.*put it into a list"),
        ({"estimators": "ais"}, r"expected estimators to be a list, such as \[Annealing\(\)\]"),
        ({"estimators": ["ais"]}, r"expected estimators to be objects such as .*; got 'ais'"),
        ({"estimators": [Laplace]}, r"got the class Laplace: write Laplace\(…\)"),
        ({"estimators": [SHORT, Annealing()]}, r"one estimator of each class; got 2 of Annealing"),
        ({"reliable": Ladder()}, r"expected reliable to be true or false; got Ladder"),
        ({"reliable": 1}, r"expected reliable to be true or false; got 1"),
        ({"ais": True}, r"no argument ais: use estimators=\[Annealing\(\)\]"),
        ({"escalate": SHORT}, r"no argument escalate: use reliable=True"),
        ({"corrected": True}, r"no argument corrected: use estimators=\[Corrected\(\)\]"),
        ({"defensive": 0.1}, r"no argument defensive: use estimators=\[Defensive\(share\)\]"),
        ({"tolerance": 0.1}, r"no argument tolerance: use estimators=\[AdaptiveSamples"),
    ],
)
def test_bad_arguments(options, message):
    program = LinearGaussian(1)
    with pytest.raises(ValueError, match=message):
        pv.evaluate(program, program.sample(3), num_samples=50, **options)


@pytest.mark.parametrize("error", [0.0, -1.0, math.nan])
def test_max_error_must_be_positive(error):
    with pytest.raises(ValueError, match="expected max_error > 0, in nats"):
        Ladder(max_error=error)


@pytest.mark.parametrize(
    "name", ["BayesianVAE", "ConditionalVAE", "HierarchicalVAE, top down", "SemiSupervisedVAE"]
)
def test_programs_of_the_package(name):
    data = pv.data.load("digits", binarize="dynamic")
    program = program_for(PROGRAMS[name], data)
    ladder = Ladder(Laplace(200, num_steps=4), Annealing(4, 5, 2))
    # k̂ needs 25 samples, so every example climbs if it can
    plain, bounds = (
        pv.evaluate(program, data.test.head(6), num_samples=20, estimators=estimators)
        for estimators in ([], [ladder])
    )
    assert bounds.iwae == plain.iwae and bounds.elbo == plain.elbo
    assert bounds.proposals["guide"] == 0
    # the class of SemiSupervisedVAE is summed out
    assert "the ladder stops at the guide" not in str(bounds)
