"""Approximation and amortisation gaps of models with known gaps."""

from __future__ import annotations

import importlib
import json
import math
from functools import partial

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from chain import Chain
from components import POSTERIORS, SMALL, component_class, small_vae
from linear_gaussian import LinearGaussian
from pyro.nn import PyroModule, pyro_method
from scipy.stats import chi2

import pyro_vae as pv
from pyro_vae import posteriors
from pyro_vae.evaluation import Bounds, evaluate
from pyro_vae.evaluation.annealing.sampler import Annealing
from pyro_vae.evaluation.inference_gaps import refitting
from pyro_vae.evaluation.inference_gaps.estimator import Gaps, gaps
from pyro_vae.evaluation.inference_gaps.result import select_tightest_bound
from pyro_vae.posteriors import DiagonalNormal, FullCovarianceNormal

D = torch.float64
#: A step takes the time of its Python code: few steps with large gradients of little noise.
FEW_STEPS = {"num_steps": 100, "step_size": 0.1, "num_draws": 16}
DEFAULT_STEPS = {"step_size": 0.05, "num_draws": 4}
quick = partial(gaps, annealing=None, num_samples=2000, **FEW_STEPS)
#: For refits that start far away, from the output of an untrained encoder.
long = partial(quick, num_steps=200)


def mean_field_gap(precision):
    """Return the KL of the best diagonal normal to a normal with this precision."""
    return float(precision.diagonal().log().sum() - precision.logdet()) / 2


def kl_normal(mean, covariance, other, precision):
    """Return KL(N(mean, covariance) ‖ N(other, precision⁻¹)) for each row of means."""
    offset = mean - other
    trace = (precision @ covariance).trace() - len(precision)
    squares = torch.einsum("nd,de,ne->n", offset, precision, offset)
    return (trace + squares - precision.logdet() - covariance.logdet()) / 2


def is_close(row, truth):
    """Compare within 0.01 nats and four Monte Carlo errors (false alarm rate 6e-5)."""
    return abs(row.value - truth) < min(0.01, 4 * row.se_monte_carlo + 2e-3)


class TestExactGaps:
    @pytest.mark.parametrize("shift", [0.0, 0.5])
    def test_exact_family_has_no_approximation_gap(self, shift):
        program = LinearGaussian(3, shift=shift, inflate=1.3)
        x = program.sample(60)
        result = quick(program, x, step_size=0.05, num_steps=200)
        rows = result.estimates
        assert result.family == "FullCovarianceNormal" and result.richer is None
        assert is_close(rows["approximation"], 0.0)
        assert is_close(rows["amortisation"], program.divergence)
        assert is_close(rows["total"], program.divergence)
        exact = program.log_evidence(x).numpy()
        np.testing.assert_allclose(result.bounds.per_datum["refitted"], exact, atol=1e-3)
        assert result.share.value == pytest.approx(1.0, abs=0.02)

    def test_full_covariance_closes_mean_field_gap_of_diagonal_family(self):
        program = LinearGaussian(3, shift=0.5, inflate=1.3)
        x = program.sample(60)
        result = quick(program, x, family=DiagonalNormal)
        gap = mean_field_gap(torch.linalg.inv(program.covariance))
        assert gap > 0.1
        rows = result.estimates
        assert is_close(rows["approximation"], gap)
        assert is_close(rows["amortisation"], program.divergence - gap)
        assert is_close(rows["closed"], gap)
        assert is_close(rows["remaining"], 0.0)
        # for each example
        each = program.log_evidence(x).numpy() - result.bounds.per_datum["refitted"]
        error = np.sqrt(result.bounds.per_datum["refitted_variance"])
        assert (abs(each - gap) < 5 * error + 5e-3).all()

    def test_standard_errors_cover_truth(self):
        program = LinearGaussian(2, shift=0.3, inflate=1.2)
        x = program.sample(5)
        squares = []
        for seed in range(16):
            result = quick(program, x, richer=None, num_samples=300, num_steps=30, seed=seed)
            row = result.estimates["amortisation"]
            squares.append(((row.value - program.divergence) / row.se_monte_carlo) ** 2)
        low, high = chi2.ppf([1e-4, 1 - 1e-4], len(squares))
        assert low < sum(squares) < high  # false alarm rate 2e-4

    @pytest.mark.parametrize("family", [None, DiagonalNormal])
    def test_two_layers_are_fitted_as_one_vector(self, family):
        chain = Chain()
        torch.manual_seed(0)
        x = 2 * torch.randn(40, dtype=D)
        # p(z1, z2 | x), and q(z1, z2 | x) of the guide
        a, b, s, t = (getattr(chain, n).detach() for n in "abst")
        w, v = chain.w.detach(), chain.v.detach()
        one = torch.ones((), dtype=D)
        precision = torch.stack(
            [
                torch.stack([1 / 0.36 + w**2 / 0.49, -v / 0.36]),
                torch.stack([-v / 0.36, one + v**2 / 0.36]),
            ]
        )
        load = torch.stack([w / 0.49, 0 * w])
        other = x[:, None] * torch.linalg.solve(precision, load)
        mean = torch.stack([a * x, a * b * x], -1)
        first = (2 * s).exp()
        covariance = torch.stack(
            [
                torch.stack([first, b * first]),
                torch.stack([b * first, b**2 * first + (2 * t).exp()]),
            ]
        )
        total = float(kl_normal(mean, covariance, other, precision).mean())
        result = quick(chain, x, family=family)
        # the order of the sites in the guide does not matter
        gap = mean_field_gap(precision) if family else 0.0
        assert result.family == (family or FullCovarianceNormal).__name__
        rows = result.estimates
        assert is_close(rows["approximation"], gap)
        assert (
            abs(rows["amortisation"].value - total + gap)
            < 4 * rows["amortisation"].se_monte_carlo + 2e-3
        )
        assert rows["amortisation"].se_monte_carlo < 0.02

    def test_positive_latents_are_transformed(self):
        program = _LogNormalProgram()
        x = torch.linspace(-2, 2, 20, dtype=D)
        result = quick(program, x)
        assert result.family == "FullCovarianceNormal"
        # log z is normal: posterior precision 1 + 1/0.25
        precision = torch.full((1, 1), 5.0, dtype=D)
        mean, covariance = 0.7 * x[:, None], torch.full((1, 1), 0.3**2, dtype=D)
        truth = kl_normal(mean, covariance, 0.8 * x[:, None], precision).mean()
        assert is_close(result.estimates["amortisation"], float(truth))
        assert is_close(result.estimates["approximation"], 0.0)

    def test_annealing_agrees_with_exact_evidence(self):
        program = LinearGaussian(2, shift=0.5)
        x = program.sample(20)
        annealing = Annealing(num_chains=4, num_temperatures=40, num_steps=5)
        result = quick(program, x, annealing=annealing)
        row = result.bounds.estimates["ais"]
        exact = float(program.log_evidence(x).mean())
        assert abs(row.value - exact) < 4 * row.se_monte_carlo + 0.01
        # importance sampling from the exact q has less noise
        assert result.evidence_estimator == "log_evidence"
        assert result.bounds.settings["annealing"]["num_chains"] == 4


class _LogNormalProgram(PyroModule):
    """z ~ LogNormal(0, 1), x ~ N(log z, 0.5²), with an inexact guide."""

    @pyro_method
    def model(self, x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.LogNormal(torch.zeros((), dtype=D), 1.0))
            pyro.sample("x", dist.Normal(z.log(), 0.5), obs=x)

    @pyro_method
    def guide(self, x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.LogNormal(0.7 * x, 0.3))


def make_linear_vae(make=pv.VAE, posterior=DiagonalNormal, latent_dim=2, **options):
    """Make a VAE with a known posterior: linear decoder and Gaussian noise."""
    torch.manual_seed(1)
    linear = partial(pv.networks.MLP, hidden=())
    vae = make(
        (4,),
        latent_dim=latent_dim,
        posterior=posterior,
        likelihood=partial(pv.likelihoods.Gaussian, scale=1.0),
        encoder=options.pop("encoder", linear),
        decoder=linear,
        **options,
    ).double()
    layer = vae.likelihood.network.layers[-1]
    with torch.no_grad():
        layer.weight[:, :latent_dim] = torch.randn(4, latent_dim, dtype=D)
    weight = layer.weight.detach()[:, :latent_dim]
    precision = torch.eye(latent_dim, dtype=D) + weight.T @ weight
    return vae.eval(), weight, precision


class TestPrograms:
    def test_vae_starts_from_encoder_output(self):
        vae, weight, precision = make_linear_vae()
        x = 0.3 * torch.randn(50, 4, dtype=D)
        result = quick(vae, x, num_steps=200)
        assert (result.family, result.richer) == ("DiagonalNormal", "FullCovarianceNormal")
        bias = vae.likelihood.network.layers[-1].bias.detach()
        covariance = weight @ weight.T + torch.eye(4, dtype=D)
        exact = torch.distributions.MultivariateNormal(bias, covariance).log_prob(x)
        mean, log_scale = vae.posterior.network(x).detach().unbind(-2)
        other = (x - bias) @ weight @ torch.linalg.inv(precision)
        kls = [
            kl_normal(m[None], s.exp().square().diag(), o[None], precision)
            for m, s, o in zip(mean, log_scale, other, strict=True)
        ]
        total, gap = float(torch.cat(kls).mean()), mean_field_gap(precision)
        rows = result.estimates
        assert result.bounds.log_evidence == pytest.approx(float(exact.mean()), abs=0.01)
        assert is_close(rows["approximation"], gap)
        assert is_close(rows["closed"], gap)
        error = rows["amortisation"].se_monte_carlo
        assert abs(rows["amortisation"].value - total + gap) < 4 * error + 2e-3

    def test_conditional_vae_with_labels(self):
        vae, _, precision = make_linear_vae(pv.ConditionalVAE, condition=3)
        vae = vae.float()
        x, labels = torch.randn(30, 4), torch.arange(30) % 3
        result = long(vae, pv.data.Split(x, labels=labels), richer=None)
        assert result.family == "DiagonalNormal"
        assert is_close(result.estimates["approximation"], mean_field_gap(precision))
        short = partial(quick, vae, num_steps=10, num_samples=100, block=20)
        result = short(pv.data.Split(x, labels=labels))
        assert str(short(x, labels)) == str(result)
        assert short(x, 2 - labels).bounds.elbo != result.bounds.elbo

    def test_semi_amortised_posterior_starts_from_refined_parameters(self):
        refined = partial(posteriors.SemiAmortized, steps=20, step_size=0.1)
        vae, _, precision = make_linear_vae(posterior=refined)
        x = torch.randn(30, 4, dtype=D)
        result = long(vae, x)
        assert result.family == "DiagonalNormal"
        assert is_close(result.estimates["approximation"], mean_field_gap(precision))
        plain = evaluate(vae, x, num_samples=2000)
        rows = result.bounds.estimates["elbo"], plain.estimates["elbo"]
        error = math.hypot(*(row.se_monte_carlo for row in rows))
        assert abs(rows[0].value - rows[1].value) < 4 * error
        # one step of size zero: the start is the posterior itself
        still = quick(vae, x, num_steps=1, step_size=1e-9)
        difference = still.estimates["amortisation"]
        assert abs(difference.value) < 4 * difference.se_monte_carlo
        assert result.estimates["amortisation"].value > 4 * difference.se_monte_carlo

    @pytest.mark.parametrize("name", [n for n in POSTERIORS if n != "PowerSpherical"])
    def test_all_program_families_are_refitted(self, name):
        vae, _, precision = make_linear_vae(posterior=POSTERIORS[name])
        x = 0.3 * torch.randn(20, 4, dtype=D)
        contains_posterior = {"FullCovarianceNormal", "LowRankNormal", "HouseholderFlow"}
        richer = None if name in contains_posterior else FullCovarianceNormal
        # an untrained encoder is far off, and these families must become exact
        # log σ² moves half as fast as log σ
        num_steps = 300 if name in {*contains_posterior, "DiagonalNormal, variance"} else 150
        result = quick(vae, x, richer=richer, num_steps=num_steps)
        row = result.estimates["approximation"]
        has_fixed_weights = {"InverseAutoregressiveFlow", "SplineFlow", "ZukoFlow"}
        assert row.value > -4 * row.se_monte_carlo - 1e-3
        assert result.estimates["amortisation"].value > 0
        if name in contains_posterior:
            assert row.value < 0.01
        elif name not in has_fixed_weights:  # random weights allow no prediction
            assert row.value < mean_field_gap(precision) + 0.02
        if richer is not None:
            # the samples may prefer a start that is 0.05 nats worse, for one example in twenty
            assert abs(result.estimates["remaining"].value) < 0.01

    @pytest.mark.parametrize(
        "family",
        [
            posteriors.LowRankNormal,
            partial(posteriors.HouseholderFlow, flows=3),
            partial(posteriors.PlanarFlow, flows=2),
            partial(posteriors.RadialFlow, flows=2),
            partial(posteriors.SylvesterFlow, flows=2, reflections=3),
        ],
        ids=component_class,
    )
    def test_families_without_additional_parameters_can_be_chosen(self, family):
        program = LinearGaussian(2, shift=0.5, inflate=1.3, seed=4)
        precision = torch.linalg.inv(program.covariance)
        x = program.sample(20)
        result = long(program, x, family=family, richer=None)
        row = result.estimates["approximation"]
        full = component_class(family) in {posteriors.LowRankNormal, posteriors.HouseholderFlow}
        limit = 0.01 if full else mean_field_gap(precision) + 0.02
        assert -4 * row.se_monte_carlo - 1e-3 < row.value < limit

    def test_spherical_latents(self):
        vae = small_vae(posterior=posteriors.PowerSpherical).double().eval().requires_grad_(False)
        x = torch.bernoulli(torch.full((12, 3), 0.5, dtype=D))
        with pytest.raises(ValueError, match=r"got latents of PowerSpherical .* set richer=None"):
            quick(vae, x)
        result = quick(vae, x, richer=None)
        angles = torch.linspace(0, 2 * math.pi, 2001, dtype=D)[:-1]
        z = torch.stack([angles.cos(), angles.sin()], -1)
        scores = vae.likelihood(z[:, None]).log_prob(x)
        exact = float((scores.logsumexp(0) - math.log(2000)).mean())
        row = result.bounds.estimates["log_evidence"]
        assert abs(row.value - exact) < 4 * row.se_monte_carlo + 1e-6
        assert result.estimates["amortisation"].value > 0
        assert result.bounds.per_datum["refitted_better"].mean() > 0.9

    def test_noise_sites_are_not_latents(self):
        torch.manual_seed(0)
        vae = pv.BayesianVAE((3,), latent_dim=2, encoder=SMALL, decoder=SMALL).eval()
        x = torch.bernoulli(torch.full((10, 3), 0.5))
        result = quick(vae, x, num_steps=50)
        assert result.family == "DiagonalNormal"
        plain = evaluate(vae, x, num_samples=2000)
        both = result.bounds.estimates["log_evidence"], plain.estimates["log_evidence"]
        error = math.hypot(*(row.se_monte_carlo for row in both))
        assert abs(both[0].value - both[1].value) < 5 * error + 1e-4
        assert result.estimates["amortisation"].value > 0

    def test_observed_class_is_not_a_latent(self):
        torch.manual_seed(0)
        parts = {"classifier": SMALL, "encoder": SMALL, "decoder": SMALL}
        program = pv.SemiSupervisedVAE((3,), num_classes=2, latent_dim=2, **parts).eval()
        x, y = torch.bernoulli(torch.full((10, 3), 0.5)), torch.arange(10) % 2
        with pytest.raises(ValueError, match=r"site 'y' \(Categorical\) is discrete"):
            quick(program, x)
        result = quick(program, x, y, num_steps=50)
        assert result.family == "DiagonalNormal"
        assert result.estimates["amortisation"].value > 0

    def test_pair_and_single_example(self):
        vae, _, precision = make_linear_vae()
        x = 0.3 * torch.randn(1, 4, dtype=D)
        result = quick((vae.model, vae.guide), x, num_steps=400, num_samples=50_000)
        assert result.family == "DiagonalNormal"
        assert is_close(result.estimates["approximation"], mean_field_gap(precision))
        assert math.isnan(result.estimates["total"].se_data)
        assert "± nan" not in str(result) and result.reading.endswith(".")
        json.dumps(result.summary(), allow_nan=False)

    def test_convolution_uses_tiled_layout(self):
        torch.manual_seed(0)
        conv = partial(pv.networks.ConvNet, channels=(3,))
        vae = pv.VAE((1, 4, 4), latent_dim=2, encoder=conv, decoder=conv).eval()
        x = torch.bernoulli(torch.full((6, 1, 4, 4), 0.5))
        result = quick(vae, x, num_steps=50)
        assert result.estimates["amortisation"].value > 0


class TestRefit:
    def test_gradient_vanishes_at_exact_q(self):
        program = LinearGaussian(3)
        x = program.sample(4)
        target, family, params = _make_exact_family(program, x)
        gradient = refitting._compute_gradient(family, params, target, 3)
        assert float(gradient.abs().max()) < 1e-9

    def test_refit_that_lowers_the_elbo_is_discarded(self):
        program = LinearGaussian(2, shift=0.5)
        x = program.sample(30)
        result = quick(program, x, num_steps=2, step_size=20.0)
        data = result.bounds.per_datum
        assert not data["refitted_better"].any()
        # the moments of 200 samples are close to those of the guide
        assert abs(result.estimates["amortisation"].value) < 0.1

    def test_selection_of_the_better_fit_is_unbiased(self):
        # start and end are the same q up to noise; if the samples of the selection were reused,
        # the mean would exceed log p by a few standard errors of 200 samples
        program = LinearGaussian(2, shift=0.8)
        x = program.sample(300)
        result = quick(program, x, num_steps=1, step_size=1e-9, num_samples=200)
        row = result.estimates["amortisation"]
        assert abs(row.value) < 0.05 + 4 * row.se_monte_carlo

    def test_too_few_steps_give_a_warning(self):
        program = LinearGaussian(3, shift=3.0)
        x = program.sample(20)
        few = quick(program, x, family=DiagonalNormal, num_steps=20, step_size=0.02, num_draws=4)
        assert few.bounds.per_datum["refitted_late"].mean() > 0.01
        assert "The refit of DiagonalNormal had not converged for 20 of 20 examples" in str(few)
        assert len(few.unconverged["refitted"]) == few.summary()["unconverged"]["refitted"] == 20
        assert "not converged" not in str(
            long(program, x, family=DiagonalNormal, richer=None, num_steps=300)
        )

    def test_step_size_schedule(self):
        settings = refitting.RefitSettings(101, 0.5, 4)
        assert settings.halves == (51, 50)
        sizes = [*settings.step_sizes(50)]
        assert len(sizes) == 50 and sizes[0] == 0.5
        assert all(s > 0 for s in sizes) and sizes[-1] < 0.001
        assert refitting.RefitSettings(1, 0.5, 4).halves == (1, 0)

    @pytest.mark.parametrize(
        ("first", "gain", "last", "remaining"),
        [
            (9.0, 2.0, 0.2, 1.0),
            (9.0, 2.0, 1.0, 1.0),
            (9.0, 2.0, 0.1, 0.25),
            (4.0, 3.0, 1.0, 9.0),
            (1.0, 3.0, 1.0, 27.0),
            (9.0, 2.0, -0.1, 0.0),
            (9.0, -0.2, 0.1, -0.1),
        ],
    )
    def test_extrapolation_of_the_gain(self, first, gain, last, remaining):
        found = refitting._extrapolate(*torch.tensor([[first], [gain], [last]], dtype=D))
        assert float(found) == pytest.approx(remaining)

    @pytest.mark.parametrize(
        ("options", "num_steps"),
        [({"shift": 3.0, "inflate": 0.5}, 160), ({"shift": 0.5, "inflate": 1.2}, 60)],
    )
    @pytest.mark.parametrize("family", [DiagonalNormal, FullCovarianceNormal])
    def test_intervals_contain_gaps_of_unconverged_refits(self, options, num_steps, family):
        program = LinearGaussian(6, 12, **options)
        x = program.sample(80)
        gap = mean_field_gap(torch.linalg.inv(program.covariance))
        gap *= family is DiagonalNormal
        result = quick(
            *(program, x), family=family, richer=None, **DEFAULT_STEPS, num_steps=num_steps
        )
        data, truth = result.bounds.per_datum, program.divergence - gap
        low, high = result.interval("amortisation")
        # three standard errors of a share of 80 examples
        assert ((low < truth) & (truth < high)).mean() > 0.88
        row = result.estimates["amortisation"]
        assert abs(row.value - truth) < 1.96 * row.se_monte_carlo
        # the Monte Carlo error alone is too small
        monte_carlo = np.sqrt((data["refitted_variance"] + data["elbo_variance"]).sum()) / 80
        assert abs(row.value - truth) > 2.5 * monte_carlo
        # and the optimisation error is of the right size
        missed = program.log_evidence(x).numpy() - gap - data["refitted"]
        assert missed.mean() / 2 < result.optimisation_errors["refitted"].mean() < 5 * missed.mean()

    def test_intervals_of_converged_refits_are_not_too_wide(self):
        program = LinearGaussian(6, 12, shift=0.5, inflate=1.2)
        x = program.sample(150)
        gap = mean_field_gap(torch.linalg.inv(program.covariance))
        result = quick(program, x, family=DiagonalNormal, num_steps=200)
        truths = {
            "approximation": gap,
            "amortisation": program.divergence - gap,
            "total": program.divergence,
            "closed": gap,
            "remaining": 0.0,
        }
        for name, truth in truths.items():
            low, high = result.interval(name)
            # the richer q is exact up to 1e-4 nats
            assert ((low < truth + 1e-3) & (truth - 1e-3 < high)).mean() > 0.9, name
            assert np.median(high - low) < 0.3, name
        assert not any(map(len, result.unconverged.values()))
        with pytest.raises(ValueError, match="expected the gap to be one of approximation"):
            result.interval("amortization")


def _make_exact_family(program, x):
    """Make a full-covariance family and the parameters of the exact posterior."""
    from pyro_vae.evaluation.inference_gaps.families import make_family
    from pyro_vae.programs.importance_weights import find_layout
    from pyro_vae.programs.inputs import prepare

    layout = find_layout(program.model, program.guide, x)
    target = refitting.make_target_density(prepare(program, x), layout, constrained=False)
    mean = (x - program.b) @ program.W @ program.covariance / program.s**2
    family = make_family(FullCovarianceNormal, x, mean, torch.ones_like(mean))
    factor = program.factor
    lower = factor.tril(-1) * len(factor) ** 0.5
    params = torch.cat([torch.zeros(1, 3, dtype=D), factor.diagonal().log()[None], lower])
    return target, family, params.expand(len(x), -1, -1).clone()


class TestComputation:
    def test_resumed_run_is_bitwise_identical(self, tmp_path, monkeypatch):
        program = LinearGaussian(2, shift=0.5)
        x, train = program.sample(7), program.sample(5)
        options = {
            "num_samples": 50,
            "num_steps": 10,
            "block": 3,
            "annealing": Annealing(num_chains=2, num_temperatures=5, num_steps=2),
        }
        state = torch.get_rng_state()
        whole = gaps(program, x, train=train, **options)
        assert torch.equal(torch.get_rng_state(), state)
        checkpoint = tmp_path / "gaps.ckpt"
        original, calls = refitting.refit, []

        def interrupt(*args):
            calls.append(args)
            if len(calls) == 3:
                raise KeyboardInterrupt
            return original(*args)

        # the attribute of the package is the function
        module = importlib.import_module("pyro_vae.evaluation.inference_gaps.estimator")
        monkeypatch.setattr(module, "refit", interrupt)
        with pytest.raises(KeyboardInterrupt):
            gaps(program, x, train=train, checkpoint=checkpoint, **options)
        resumed = gaps(program, x, train=train, checkpoint=checkpoint, **options)
        assert len(calls) == 3 + 1 + 2  # two blocks of x are stored, two of train are not
        for expected, actual in ((whole.bounds, resumed.bounds), (whole.train, resumed.train)):
            for name, values in expected.per_datum.items():
                np.testing.assert_array_equal(actual.per_datum[name], values, err_msg=name)
        assert sorted(f.name for f in tmp_path.iterdir()) == [
            *("gaps.ckpt", "gaps.ckpt.ais", "gaps.ckpt.train")
        ]
        with pytest.raises(ValueError, match="other settings, data or weights"):
            gaps(program, x, checkpoint=checkpoint, **options | {"num_steps": 11})
        other = LinearGaussian(2, shift=0.6)
        with pytest.raises(ValueError, match="other settings, data or weights"):
            gaps(other, x, checkpoint=checkpoint, **options)

    def test_training_data_and_netcdf_round_trip(self, tmp_path):
        vae, *_ = make_linear_vae()
        x, train = torch.randn(40, 4, dtype=D), 0.1 * torch.randn(30, 4, dtype=D)
        result = quick(vae, x, train=train)
        rows = result.estimates
        alone = quick(vae, train, richer=None)
        # another random stream, so equal up to noise
        two = rows["train_amortisation"], alone.estimates["amortisation"]
        noise = math.hypot(*(row.se_monte_carlo for row in two))
        assert abs(two[0].value - two[1].value) < 4 * noise
        difference = rows["amortisation"].value - rows["train_amortisation"].value
        assert rows["generalisation"].value == pytest.approx(difference)
        errors = [rows[n].se_data for n in ("amortisation", "train_amortisation")]
        assert rows["generalisation"].se_data == pytest.approx(math.hypot(*errors))
        assert (
            difference > 2 * rows["generalisation"].se_data
        )  # the test data are far away and the encoder is untrained
        result.to_netcdf(tmp_path / "gaps.nc")
        again = Gaps.from_netcdf(tmp_path / "gaps.nc")
        assert str(again) == str(result) and again.summary() == result.summary()
        assert Bounds.from_netcdf(tmp_path / "gaps.nc").elbo == result.bounds.elbo
        summary = json.loads(json.dumps(result.summary(), allow_nan=False))
        assert summary["gaps"]["approximation"]["value"] == rows["approximation"].value
        assert summary["better"]["refitted"] == 40
        assert summary["train"]["num_data"] == 30
        quick(vae, x, num_steps=2).to_netcdf(tmp_path / "alone.nc")
        assert Gaps.from_netcdf(tmp_path / "alone.nc").train is None
        evaluate(vae, x, num_samples=50).to_netcdf(tmp_path / "bounds.nc")
        with pytest.raises(ValueError, match="to contain gaps saved by pyro_vae; got bounds"):
            Gaps.from_netcdf(tmp_path / "bounds.nc")

    def test_program_parameters_are_unchanged(self):
        vae, *_ = make_linear_vae(posterior=POSTERIORS["InverseAutoregressiveFlow"])
        before = {name: value.clone() for name, value in vae.state_dict().items()}
        quick(vae, torch.randn(5, 4, dtype=D), num_steps=5, num_samples=50)
        assert all(torch.equal(v, before[n]) for n, v in vae.state_dict().items())
        assert all(p.grad is None for p in vae.parameters())
        assert (
            not vae.posterior.network._forward_hooks
            or len(vae.posterior.network._forward_hooks) == 1
        )  # the hook that checks shapes

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            ({"num_steps": 0}, "expected num_steps to be a positive integer; got 0"),
            ({"num_draws": 0}, "expected num_draws to be a positive integer"),
            ({"num_samples": 0}, "expected num_samples to be a positive integer"),
            ({"block": 0}, "expected block to be a positive integer"),
            ({"step_size": 0.0}, "expected step_size > 0 and finite; got 0.0"),
            (
                {"family": POSTERIORS["SplineFlow"]},
                "got SplineFlow, which has untrained parameters",
            ),
            ({"richer": POSTERIORS["InverseAutoregressiveFlow"]}, "which has untrained parameters"),
            ({"family": posteriors.SemiAmortized}, "depends on x alone; got SemiAmortized"),
            ({"family": posteriors.PowerSpherical}, "got PowerSpherical, on the unit sphere"),
        ],
    )
    def test_invalid_options(self, options, message):
        program = LinearGaussian(2)
        with pytest.raises(ValueError, match=message):
            quick(program, program.sample(3), **{"num_steps": 2, "num_samples": 10} | options)

    def test_train_with_additional_arguments_is_rejected(self):
        vae, *_ = make_linear_vae(pv.ConditionalVAE, condition=2)
        x, labels = torch.randn(4, 4, dtype=D), torch.tensor([0, 1, 0, 1])
        with pytest.raises(ValueError, match="expected train without additional arguments"):
            quick(vae, x, labels, train=pv.data.Split(x, labels=labels))
        with pytest.raises(ValueError, match=r"expected x to be a tensor of shape \(N ≥ 1"):
            quick(LinearGaussian(2), torch.zeros(0, 6, dtype=D))


def make_gaps(elbo, refitted, evidence, richer=None, noise=0.01, wobble=0.0, size=40):
    """Make gaps with the given means, spread over the data and Monte Carlo noise."""
    spread = np.linspace(-1, 1, size) * noise * size**0.5
    data = {
        "elbo": elbo - spread,
        "refitted": refitted + wobble * (-1.0) ** np.arange(size),
        "log_evidence": evidence + spread,
    }
    if richer is not None:
        data["richer"] = richer + 0 * spread
    data |= {f"{name}_variance": np.full(size, noise**2) for name in [*data]}
    for name in ("refitted", "richer"):
        if name in data:
            data[f"{name}_rise_variance"] = np.full(size, noise**2)
            data |= {f"{name}_late": np.zeros(size), f"{name}_better": np.ones(size)}
    data |= {"khat": np.full(size, 0.2), "ess": np.full(size, 50.0)}
    settings = {
        "family": "DiagonalNormal",
        "richer": "FullCovarianceNormal" if richer is not None else None,
        "num_steps": 9,
        "proposal": "richer",
    }
    return Gaps(Bounds(num_samples=100, per_datum=data, settings={"gaps": settings}))


class TestInterpretation:
    @pytest.mark.parametrize(
        ("rows", "sentence"),
        [
            (
                {"elbo": -4.0, "refitted": -1.0, "evidence": 0.0},
                "Three quarters of the gap is due to amortisation: a larger encoder or "
                "semi-amortised inference would help.",
            ),
            (
                {"elbo": -4.0, "refitted": -3.6, "evidence": 0.0},
                "Nine tenths of the gap is due to approximation: a richer posterior family would "
                "help.",
            ),
            (
                {"elbo": -3.0, "refitted": -2.0, "evidence": 0.0, "richer": -1.2},
                "Two thirds of the gap is due to approximation: a richer posterior family would "
                "help; FullCovarianceNormal closes 40% of the approximation gap.",
            ),
            (
                {"elbo": -3.0, "refitted": -2.0, "evidence": 0.0, "richer": -2.0},
                "Two thirds of the gap is due to approximation: a richer posterior family would "
                "help, but FullCovarianceNormal does not close it measurably.",
            ),
            (
                {"elbo": -2.0, "refitted": -1.0, "evidence": 0.0},
                "The gap is 50% amortisation and 50% approximation; 40 examples are too few to "
                "tell which is larger.",
            ),
            (
                {"elbo": -0.01, "refitted": 0.0, "evidence": 0.0},
                "The gap is too small to distinguish from noise.",
            ),
            (
                {"elbo": -3.0, "refitted": -4.0, "evidence": 0.0},
                "The refitted DiagonalNormal is worse than the guide, so the amortisation gap "
                "cannot be estimated: choose a family that contains the guide.",
            ),
        ],
    )
    def test_reading_depends_on_the_values(self, rows, sentence):
        result = make_gaps(**rows)
        assert result.reading == sentence
        assert str(result).splitlines()[-1] == sentence

    def test_reading_depends_on_the_standard_errors(self):
        rows = {"elbo": -4.0, "refitted": -1.5, "evidence": 0.0}
        assert make_gaps(**rows, noise=0.01).reading.startswith(
            "Three fifths of the gap is due to amortis"
        )
        assert make_gaps(**rows, wobble=5.0).reading.startswith("The gap is 62% amortisation and")
        assert make_gaps(**rows, noise=3.0).reading.startswith("The gap is too small")

    def test_share_and_its_standard_error(self):
        result = make_gaps(elbo=-4.0, refitted=-1.0, evidence=0.0)
        assert result.share.value == pytest.approx(0.75)
        # part − share · whole = (1 − 2 share) spread, over the whole
        spread = np.linspace(-1, 1, 40) * 0.01 * 40**0.5
        error = abs(1 - 2 * 0.75) * spread.std(ddof=1) / 40**0.5 / 4
        assert result.share.se_data == pytest.approx(error)
        noise = 0.01 / 40**0.5 * (1 + 0.25**2 + 0.75**2) ** 0.5 / 4
        assert result.share.se_monte_carlo == pytest.approx(noise)

    def test_high_khat_gives_a_warning_unless_weights_are_equal(self):
        result = make_gaps(elbo=-4.0, refitted=-1.0, evidence=0.0)
        result.bounds.per_datum["khat"][:7] = 0.9
        assert "k̂ is too high for 7 of 40 examples" in str(result)
        result.bounds.per_datum["ess"][:] = 99.9
        assert "k̂ is too high" not in str(result)

    def test_tightest_bound_is_selected_up_to_noise(self):
        def row(value, error, size=100):
            return np.full(size, value), np.full(size, size * error**2)

        assert select_tightest_bound({"a": row(1.0, 0.04), "b": row(0.9, 0.01)}) == "b"
        assert select_tightest_bound({"a": row(1.0, 0.01), "b": row(0.9, 0.01)}) == "a"
        assert select_tightest_bound({"a": row(-math.inf, 0.1), "b": row(0.9, 0.01)}) == "b"
        assert select_tightest_bound({"a": row(1.0, math.nan)}) == "a"
