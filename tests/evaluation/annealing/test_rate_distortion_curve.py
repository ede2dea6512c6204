"""Tests of rate–distortion curves against linear models with a known curve."""

from __future__ import annotations

import json
import math

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from chain import Chain
from components import PROGRAMS
from linear_gaussian import LinearGaussian
from pyro.nn import pyro_method

from pyro_vae.evaluation import Annealing, ais
from pyro_vae.evaluation.annealing.rate_distortion_curve import RateDistortion, rate_distortion
from pyro_vae.evaluation.latent_diagnostics.kl import divergences

D = torch.float64
BETAS = (0.05, 0.3, 1.0, 3.0, 10.0)


def settings(num_chains=8, num_temperatures=100, num_steps=5):
    return Annealing(num_chains, num_temperatures, num_steps, initial="prior", schedule="adaptive")


def exact(program, x, beta):
    """Return R, D and log Z of the normal channel p_β for each example."""
    size = program.latent_dim
    eye, noise = torch.eye(size, dtype=D), program.s**2
    covariance = torch.linalg.inv(eye + beta * program.W.T @ program.W / noise)
    residual = x - program.b
    mean = beta * residual @ program.W @ covariance / noise
    rate = (covariance.trace() + mean.square().sum(1) - size - covariance.logdet()) / 2
    square = (residual - mean @ program.W.T).square().sum(1)
    square = (square + (program.W @ covariance @ program.W.T).trace()) / noise
    distortion = (x.shape[1] * math.log(2 * math.pi * noise) + square) / 2
    return rate.numpy(), distortion.numpy(), (-rate - beta * distortion).numpy()


@pytest.fixture(scope="module")
def program():
    return LinearGaussian(3)


@pytest.fixture(scope="module")
def x(program):
    pyro.set_rng_seed(0)
    return program.sample(150)


@pytest.fixture(scope="module")
def curve(program, x):
    return rate_distortion(program, x, betas=BETAS, annealing=settings(16, 200), seed=2)


class TestTruth:
    @pytest.mark.parametrize("i", range(len(BETAS)))
    def test_linear_gaussian_model(self, curve, program, x, i):
        rate, distortion, log_z = exact(program, x, BETAS[i])
        rows = {name: row[i] for name, row in curve.estimates.items()}
        # a ratio of means of 16 chains is biased by about the variance of their weights
        bias = np.mean(curve.per_datum["log_normalizer_variance"][:, i]) / 2
        truth = {"rate": rate, "distortion": distortion, "log_normalizer": log_z}
        for name, values in truth.items():
            error = 5 * rows[name].se_monte_carlo  # false-alarm rate below 1e-6
            assert error < 0.1 + 0.1 * distortion.mean()
            assert abs(rows[name].value - values.mean()) < error + 3 * bias
        # log Ẑ is a lower bound in expectation
        value, _, error = rows["log_normalizer"]
        assert value < log_z.mean() + 5 * error

    @pytest.mark.parametrize("name", ["distortion", "log_normalizer"])
    def test_standard_errors_cover_exact_values(self, curve, program, x, name):
        for i, beta in enumerate(BETAS):
            _, distortion, log_z = exact(program, x, beta)
            truth = distortion if name == "distortion" else log_z
            z = curve.per_datum[name][:, i] - truth
            z = z / curve.per_datum[f"{name}_variance"][:, i] ** 0.5
            # 16 skewed weights per example: the median (0.67 for a normal) is robust to the tails.
            # Its standard error is 0.06: false-alarm rate below 1e-3
            assert 0.45 < np.median(np.abs(z)) < 1.1

    def test_point_at_beta_one_equals_ais(self, curve, program, x):
        i = BETAS.index(1.0)
        evidence = curve.estimates["log_normalizer"][i]
        assert evidence.value == pytest.approx(-curve.rate[i] - curve.distortion[i], rel=1e-9)
        assert abs(evidence.value - float(program.log_evidence(x).mean())) < (
            5 * evidence.se_monte_carlo + 0.03
        )
        bounds = ais(program, x[:40], annealing=settings(num_temperatures=60))
        row = bounds.estimates["ais"]
        log_z = curve.per_datum["log_normalizer"][:40, i].mean()
        error = math.hypot(row.se_monte_carlo, evidence.se_monte_carlo * (150 / 40) ** 0.5)
        assert abs(row.value - log_z) < 5 * error + 0.03

    def test_curve_is_convex_and_decreasing(self, curve):
        rate, distortion = curve.rate, curve.distortion
        assert (np.diff(rate) > 0).all() and (np.diff(distortion) < 0).all()
        slopes = np.diff(rate) / np.diff(distortion)
        assert (np.diff(slopes) < 0).all()  # steeper as distortion falls
        # the slope between two points is −β for a β between those of the points
        assert ((-slopes > BETAS[:-1]) & (-slopes < BETAS[1:])).all()

    def test_guide_lies_above_the_curve(self, curve, x):
        shifted = LinearGaussian(3, shift=0.7, inflate=1.3)
        point = divergences(shifted, x, num_samples=400)
        for i, beta in enumerate(BETAS):
            line = curve.rate[i] + beta * curve.distortion[i]
            best = -exact(shifted, x, beta)[2].mean()
            assert point.rate + beta * point.distortion > best
            if beta == 1:
                assert point.rate + point.distortion == pytest.approx(
                    best + shifted.divergence, 0.05
                )
                assert point.rate + point.distortion > line

    def test_hierarchical_model(self):
        chain, x = Chain(), torch.randn(100, dtype=D)
        betas = (0.5, 2.0)
        found = rate_distortion(chain, x, betas=betas, annealing=settings())
        w, v = float(chain.w.detach()), float(chain.v.detach())
        spread = v**2 + 0.36  # variance of z1; z2 adds nothing to the rate
        for i, beta in enumerate(betas):
            # p(x|z)^β is N(x; w z1, 0.49 / β) up to a constant
            scale = 0.5 * ((1 - beta) * math.log(2 * math.pi * 0.49) - math.log(beta))
            normal = dist.Normal(torch.zeros((), dtype=D), (w**2 * spread + 0.49 / beta) ** 0.5)
            log_z = float((normal.log_prob(x) + scale).mean())
            variance = 1 / (1 / spread + beta * w**2 / 0.49)
            mean = variance * beta * w * x / 0.49
            square = ((x - w * mean).square() + w**2 * variance) / 0.49
            distortion = float((math.log(2 * math.pi * 0.49) + square).mean()) / 2
            rows = {name: row[i] for name, row in found.estimates.items()}
            for name, truth in (("log_normalizer", log_z), ("distortion", distortion)):
                assert abs(rows[name].value - truth) < 5 * rows[name].se_monte_carlo + 0.01
                assert rows[name].se_monte_carlo < 0.05

    def test_single_temperature_is_importance_sampling_from_prior(self):
        program = LinearGaussian(1)
        x = program.sample(6)
        found = rate_distortion(program, x, betas=(1.0,), annealing=settings(1000, 1))
        rate, distortion, _ = exact(program, x, 1.0)
        for name, truth in (("rate", rate), ("distortion", distortion)):
            error = found.per_datum[f"{name}_variance"][:, 0] ** 0.5
            assert (np.abs(found.per_datum[name][:, 0] - truth) < 5 * error).all()
            assert (error < 0.4).all()
        assert np.isnan(found.acceptance).all()
        json.dumps(found.summary(), allow_nan=False)
        assert "acceptance" in str(found)

    def test_more_temperatures_tighten_the_bound(self, program, x):
        def log_normalizer(num_temperatures):
            annealing = settings(num_temperatures=num_temperatures, num_steps=3)
            row = rate_distortion(program, x[:50], betas=(1.0,), annealing=annealing)
            return row.estimates["log_normalizer"][0]

        few, many = log_normalizer(2), log_normalizer(60)
        error = math.hypot(few.se_monte_carlo, many.se_monte_carlo)
        assert many.value - few.value > 2 * error


class Positional(LinearGaussian):
    """A program whose decoder requires exactly one batch dimension."""

    @pyro_method
    def model(self, x):
        with pyro.plate("data", len(x)):
            zero = torch.zeros(self.latent_dim, dtype=x.dtype)
            z = pyro.sample("z", dist.Normal(zero, 1.0).to_event(1))
            if z.ndim != 2:
                raise RuntimeError("expected 2 dimensions")
            pyro.sample("x", dist.Normal(z @ self.W.T + self.b, self.s).to_event(1), obs=x)


@pytest.mark.filterwarnings("ignore:the program does not support a particle dimension")
def test_program_with_positional_batch_dimension(x, program):
    positional, annealing = Positional(3), settings(4, 20, 3)
    found, plain = (
        rate_distortion(p, x[:9], betas=(0.5, 2.0), annealing=annealing)
        for p in (positional, program)
    )
    assert found.rate == pytest.approx(plain.rate, abs=1e-9)


def test_seed_is_reproducible_and_global_generator_is_unaffected(program, x):
    def run(seed):
        return rate_distortion(program, x[:9], betas=(1.0,), annealing=settings(3, 9, 2), seed=seed)

    state = torch.get_rng_state()
    first, repeated, other = map(run, (0, 0, 1))
    assert torch.equal(torch.get_rng_state(), state)
    assert (first.rate == repeated.rate).all() and first.rate != other.rate


def test_checkpoint_of_other_betas_raises(program, x, tmp_path):
    def run(*betas):
        file = tmp_path / "kept.npz"
        return rate_distortion(
            program, x[:9], betas=betas, annealing=settings(3, 9, 2), checkpoint=file
        )

    first = run(1.0, 2.0)
    assert (run(2.0, 1.0).rate == first.rate).all()
    with pytest.raises(ValueError, match="got one with other settings, data or weights"):
        run(1.0, 3.0)


def test_summary_table_and_netcdf(curve, tmp_path):
    summary = json.loads(json.dumps(curve.summary(), allow_nan=False))
    assert summary["betas"] == list(BETAS) and summary["num_data"] == 150
    assert [row["value"] for row in summary["rate"]] == pytest.approx(curve.rate)
    lines = str(curve).splitlines()
    assert len(lines) == 2 + len(BETAS) + 1
    assert f"{curve.rate[2]:.3f}" in lines[4] and lines[0].startswith(
        "150 examples × 16 chains, 200"
    )
    curve.to_netcdf(tmp_path / "rate_distortion.nc")
    loaded = RateDistortion.from_netcdf(tmp_path / "rate_distortion.nc")
    assert str(loaded) == str(curve) and loaded.summary() == curve.summary()
    assert (loaded.per_datum["ess"] == curve.per_datum["ess"]).all()
    (tmp_path / "other.nc").write_text("no")
    with pytest.raises(ValueError, match="to contain a rate–distortion curve saved by pyro_vae"):
        RateDistortion.from_netcdf(tmp_path / "other.nc")
    with pytest.raises(FileNotFoundError):
        RateDistortion.from_netcdf(tmp_path / "missing.nc")


class TestInvalidInput:
    @pytest.mark.parametrize("betas", [(), (0.0, 1.0), (-1.0,), (math.inf,), (math.nan,)])
    def test_betas(self, program, x, betas):
        with pytest.raises(ValueError, match="expected one or more β > 0 and finite; got"):
            rate_distortion(program, x, betas=betas)

    @pytest.mark.parametrize(
        "annealing", [Annealing(), Annealing(initial="prior"), Annealing(schedule="adaptive")]
    )
    def test_other_annealing_settings(self, program, x, annealing):
        with pytest.raises(ValueError, match="expected annealing from the prior with the adapt"):
            rate_distortion(program, x, annealing=annealing)

    def test_discrete_latents(self):
        semi = PROGRAMS["SemiSupervisedVAE"]((3,), num_classes=3)
        with pytest.raises(ValueError, match=r"site 'y' .* is discrete"):
            rate_distortion(semi, torch.zeros(4, 3))
