"""Approximation and amortisation gaps, against models of which both are known."""

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
from components import POSTERIORS, SMALL, kind, small_vae
from linear_gaussian import LinearGaussian
from pyro.nn import PyroModule, pyro_method
from scipy.stats import chi2

import pyro_vae as pv
from pyro_vae import posteriors
from pyro_vae.evaluation import Bounds, evaluate
from pyro_vae.evaluation.annealing.sampler import Annealing
from pyro_vae.evaluation.inference_gaps import refitting
from pyro_vae.evaluation.inference_gaps.estimator import Gaps, gaps
from pyro_vae.evaluation.inference_gaps.result import highest
from pyro_vae.posteriors import DiagonalNormal, FullCovarianceNormal

D = torch.float64
quick = partial(gaps, annealing=None, num_samples=2000, num_steps=400)


def mean_field(precision):
    """KL of the best normal with a diagonal covariance to one with this precision."""
    return float(precision.diagonal().log().sum() - precision.logdet()) / 2


def divergence(mean, covariance, other, precision):
    """KL(N(mean, covariance) ‖ N(other, precision⁻¹)), of each row of means."""
    away = mean - other
    trace = (precision @ covariance).trace() - len(precision)
    squares = torch.einsum("nd,de,ne->n", away, precision, away)
    return (trace + squares - precision.logdet() - covariance.logdet()) / 2


def close(row, truth):
    """Within 0.01 nats, and four standard errors of the draws (false alarm 6e-5)."""
    return abs(row.value - truth) < min(0.01, 4 * row.se_monte_carlo + 2e-3)


class TestTruth:
    @pytest.mark.parametrize("shift", [0.0, 0.5])
    def test_a_family_that_holds_the_posterior_has_no_approximation_gap(self, shift):
        program = LinearGaussian(3, shift=shift, inflate=1.3)
        x = program.sample(60)
        found = quick(program, x)
        rows = found.estimates
        assert found.family == "FullCovarianceNormal" and found.richer is None
        assert close(rows["approximation"], 0.0)
        assert close(rows["amortisation"], program.divergence)
        assert close(rows["total"], program.divergence)
        exact = program.log_evidence(x).numpy()
        np.testing.assert_allclose(found.bounds.per_datum["refitted"], exact, atol=1e-3)
        assert found.share.value == pytest.approx(1.0, abs=0.02)

    def test_a_diagonal_family_has_the_mean_field_gap_which_a_full_one_closes(self):
        program = LinearGaussian(3, shift=0.5, inflate=1.3)
        x = program.sample(60)
        found = quick(program, x, family=DiagonalNormal)
        gap = mean_field(torch.linalg.inv(program.covariance))
        assert gap > 0.1
        rows = found.estimates
        assert close(rows["approximation"], gap)
        assert close(rows["amortisation"], program.divergence - gap)
        assert close(rows["closed"], gap)
        assert close(rows["remaining"], 0.0)
        # of every datum
        each = program.log_evidence(x).numpy() - found.bounds.per_datum["refitted"]
        error = np.sqrt(found.bounds.per_datum["refitted_variance"])
        assert (abs(each - gap) < 5 * error + 5e-3).all()

    def test_the_errors_cover(self):
        program = LinearGaussian(2, shift=0.3, inflate=1.2)
        x = program.sample(5)
        squares = []
        for seed in range(25):
            found = quick(program, x, num_samples=300, num_steps=60, seed=seed)
            row = found.estimates["amortisation"]
            squares.append(((row.value - program.divergence) / row.se_monte_carlo) ** 2)
        low, high = chi2.ppf([1e-4, 1 - 1e-4], len(squares))
        assert low < sum(squares) < high  # false alarm 2e-4

    @pytest.mark.parametrize("family", [None, DiagonalNormal])
    def test_two_layers_as_one_vector(self, family):
        chain = Chain()
        torch.manual_seed(0)
        x = 2 * torch.randn(40, dtype=D)
        # (z1, z2) given x, and what the guide says of them
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
        total = float(divergence(mean, covariance, other, precision).mean())
        found = quick(chain, x, family=family)
        # the guide's order of the sites is no matter
        gap = mean_field(precision) if family else 0.0
        assert found.family == (family or FullCovarianceNormal).__name__
        rows = found.estimates
        assert close(rows["approximation"], gap)
        assert (
            abs(rows["amortisation"].value - total + gap)
            < 4 * rows["amortisation"].se_monte_carlo + 2e-3
        )
        assert rows["amortisation"].se_monte_carlo < 0.02

    def test_latents_that_are_no_real_numbers_are_transformed(self):
        program = _Positive()
        x = torch.linspace(-2, 2, 20, dtype=D)
        found = quick(program, x)
        assert found.family == "FullCovarianceNormal"
        # log z is normal: posterior precision 1 + 1/0.25
        precision = torch.full((1, 1), 5.0, dtype=D)
        mean, covariance = 0.7 * x[:, None], torch.full((1, 1), 0.3**2, dtype=D)
        truth = divergence(mean, covariance, 0.8 * x[:, None], precision).mean()
        assert close(found.estimates["amortisation"], float(truth))
        assert close(found.estimates["approximation"], 0.0)

    def test_annealing_agrees(self):
        program = LinearGaussian(2, shift=0.5)
        x = program.sample(20)
        annealing = Annealing(num_chains=4, num_temperatures=40, num_steps=5)
        found = quick(program, x, annealing=annealing)
        row = found.bounds.estimates["ais"]
        exact = float(program.log_evidence(x).mean())
        assert abs(row.value - exact) < 4 * row.se_monte_carlo + 0.01
        # importance sampling from the exact q has the lesser noise
        assert found.ruler == "log_evidence"
        assert found.bounds.settings["annealing"]["num_chains"] == 4


class _Positive(PyroModule):
    """z ~ LogNormal(0, 1), x ~ N(log z, 0.5²), with a guide that is off."""

    @pyro_method
    def model(self, x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.LogNormal(torch.zeros((), dtype=D), 1.0))
            pyro.sample("x", dist.Normal(z.log(), 0.5), obs=x)

    @pyro_method
    def guide(self, x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.LogNormal(0.7 * x, 0.3))


def linear_vae(make=pv.VAE, posterior=DiagonalNormal, latent_dim=2, **options):
    """A VAE whose posterior is known: a linear decoder and Gaussian noise."""
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
    def test_a_vae_starts_from_what_its_encoder_said(self):
        vae, weight, precision = linear_vae()
        x = torch.randn(50, 4, dtype=D)
        found = quick(vae, x, num_steps=1200)  # after 400 its q is 0.01 nats short
        assert (found.family, found.richer) == ("DiagonalNormal", "FullCovarianceNormal")
        bias = vae.likelihood.network.layers[-1].bias.detach()
        covariance = weight @ weight.T + torch.eye(4, dtype=D)
        exact = torch.distributions.MultivariateNormal(bias, covariance).log_prob(x)
        mean, log_scale = vae.posterior.network(x).detach().unbind(-2)
        other = (x - bias) @ weight @ torch.linalg.inv(precision)
        kls = [
            divergence(m[None], s.exp().square().diag(), o[None], precision)
            for m, s, o in zip(mean, log_scale, other, strict=True)
        ]
        total, gap = float(torch.cat(kls).mean()), mean_field(precision)
        rows = found.estimates
        assert found.bounds.log_evidence == pytest.approx(float(exact.mean()), abs=0.01)
        assert close(rows["approximation"], gap)
        assert close(rows["closed"], gap)
        error = rows["amortisation"].se_monte_carlo
        assert abs(rows["amortisation"].value - total + gap) < 4 * error + 2e-3

    def test_a_conditional_vae_with_its_labels(self):
        vae, _, precision = linear_vae(pv.ConditionalVAE, condition=3)
        vae = vae.float()
        x, labels = torch.randn(30, 4), torch.arange(30) % 3
        found = quick(vae, pv.data.Split(x, labels=labels), block=20)
        assert found.family == "DiagonalNormal"
        assert close(found.estimates["approximation"], mean_field(precision))
        again = quick(vae, x, labels, block=20)
        assert str(again) == str(found)
        other = quick(vae, x, 2 - labels, block=20)
        assert other.bounds.elbo != found.bounds.elbo

    def test_a_semi_amortised_posterior_starts_from_the_refined_words(self):
        refined = partial(posteriors.SemiAmortized, steps=20, step_size=0.1)
        vae, _, precision = linear_vae(posterior=refined)
        x = torch.randn(30, 4, dtype=D)
        found = quick(vae, x)
        assert found.family == "DiagonalNormal"
        assert close(found.estimates["approximation"], mean_field(precision))
        plain = evaluate(vae, x, num_samples=2000)
        rows = found.bounds.estimates["elbo"], plain.estimates["elbo"]
        error = math.hypot(*(row.se_monte_carlo for row in rows))
        assert abs(rows[0].value - rows[1].value) < 4 * error
        # one step of nothing: the start is what the posterior is
        still = quick(vae, x, num_steps=1, step_size=1e-9)
        difference = still.estimates["amortisation"]
        assert abs(difference.value) < 4 * difference.se_monte_carlo
        assert found.estimates["amortisation"].value > 4 * difference.se_monte_carlo

    @pytest.mark.parametrize("name", [n for n in POSTERIORS if n != "PowerSpherical"])
    def test_every_family_of_a_program_is_refitted(self, name):
        vae, _, precision = linear_vae(posterior=POSTERIORS[name])
        x = torch.randn(20, 4, dtype=D)
        richer = None if kind(POSTERIORS[name]) is FullCovarianceNormal else FullCovarianceNormal
        found = quick(vae, x, richer=richer, num_steps=400)
        row, held = found.estimates["approximation"], {"InverseAutoregressiveFlow", "SplineFlow"}
        assert row.value > -4 * row.se_monte_carlo - 1e-3
        assert found.estimates["amortisation"].value > 0
        if name in {"FullCovarianceNormal", "LowRankNormal", "HouseholderFlow"}:
            assert row.value < 0.01  # each of them holds the posterior
        elif name not in held:  # of which nothing is known, their weights being random
            assert row.value < mean_field(precision) + 0.02
        if richer is not None:
            assert close(found.estimates["remaining"], 0.0)

    @pytest.mark.parametrize(
        "family",
        [
            posteriors.LowRankNormal,
            partial(posteriors.HouseholderFlow, flows=3),
            partial(posteriors.PlanarFlow, flows=2),
            partial(posteriors.RadialFlow, flows=2),
            partial(posteriors.SylvesterFlow, flows=2, reflections=3),
        ],
        ids=kind,
    )
    def test_any_family_without_weights_of_its_own_can_be_named(self, family):
        program = LinearGaussian(2, shift=0.5, inflate=1.3, seed=4)
        precision = torch.linalg.inv(program.covariance)
        x = program.sample(20)
        found = quick(program, x, family=family)
        row = found.estimates["approximation"]
        full = kind(family) in {posteriors.LowRankNormal, posteriors.HouseholderFlow}
        least = 0.01 if full else mean_field(precision) + 0.02
        assert -4 * row.se_monte_carlo - 1e-3 < row.value < least

    def test_on_the_sphere(self):
        vae = small_vae(posterior=posteriors.PowerSpherical).double().eval().requires_grad_(False)
        x = torch.bernoulli(torch.full((12, 3), 0.5, dtype=D))
        with pytest.raises(ValueError, match=r"those of PowerSpherical .* give richer=None"):
            quick(vae, x)
        found = quick(vae, x, richer=None)
        angles = torch.linspace(0, 2 * math.pi, 2001, dtype=D)[:-1]
        z = torch.stack([angles.cos(), angles.sin()], -1)
        scores = vae.likelihood(z[:, None]).log_prob(x)
        exact = float((scores.logsumexp(0) - math.log(2000)).mean())
        row = found.bounds.estimates["log_evidence"]
        assert abs(row.value - exact) < 4 * row.se_monte_carlo + 1e-6
        assert found.estimates["amortisation"].value > 0
        assert found.bounds.per_datum["refitted_better"].mean() > 0.9

    def test_noise_of_the_program_is_no_latent(self):
        torch.manual_seed(0)
        vae = pv.BayesianVAE((3,), latent_dim=2, encoder=SMALL, decoder=SMALL).eval()
        x = torch.bernoulli(torch.full((10, 3), 0.5))
        found = quick(vae, x)
        assert found.family == "DiagonalNormal"
        plain = evaluate(vae, x, num_samples=2000)
        both = found.bounds.estimates["log_evidence"], plain.estimates["log_evidence"]
        error = math.hypot(*(row.se_monte_carlo for row in both))
        assert abs(both[0].value - both[1].value) < 5 * error + 1e-4
        assert found.estimates["amortisation"].value > 0

    def test_a_class_that_is_observed_is_no_latent(self):
        torch.manual_seed(0)
        parts = {"classifier": SMALL, "encoder": SMALL, "decoder": SMALL}
        program = pv.SemiSupervisedVAE((3,), num_classes=2, latent_dim=2, **parts).eval()
        x, y = torch.bernoulli(torch.full((10, 3), 0.5)), torch.arange(10) % 2
        with pytest.raises(ValueError, match=r"site 'y' \(Categorical\) is discrete"):
            quick(program, x)
        found = quick(program, x, y)
        assert found.family == "DiagonalNormal"
        assert found.estimates["amortisation"].value > 0

    def test_a_pair_and_a_single_datum(self):
        vae, _, precision = linear_vae()
        x = torch.randn(1, 4, dtype=D)
        found = quick((vae.model, vae.guide), x, num_steps=1500, num_samples=20000)
        assert found.family == "DiagonalNormal"
        # an untaught encoder is far off, 43 nats here
        assert close(found.estimates["approximation"], mean_field(precision))
        assert math.isnan(found.estimates["total"].se_data)
        assert "± nan" not in str(found) and found.reading.endswith(".")
        json.dumps(found.summary(), allow_nan=False)

    def test_a_convolution_is_tiled(self):
        torch.manual_seed(0)
        conv = partial(pv.networks.ConvNet, channels=(3,))
        vae = pv.VAE((1, 4, 4), latent_dim=2, encoder=conv, decoder=conv).eval()
        x = torch.bernoulli(torch.full((6, 1, 4, 4), 0.5))
        found = quick(vae, x)
        assert found.estimates["amortisation"].value > 0


class TestRefit:
    def test_an_exact_q_has_no_slope(self):
        program = LinearGaussian(3)
        x = program.sample(4)
        target, family, words = _exact(program, x)
        slope = refitting._slope(family, words, target, 3)
        assert float(slope.abs().max()) < 1e-9

    def test_a_refit_that_does_harm_is_not_taken(self):
        program = LinearGaussian(2, shift=0.5)
        x = program.sample(30)
        found = quick(program, x, num_steps=2, step_size=50.0)
        data = found.bounds.per_datum
        assert not data["refitted_better"].any()
        # the moments of 200 draws are near the guide's own
        assert abs(found.estimates["amortisation"].value) < 0.1

    def test_the_choice_of_the_better_flatters_nobody(self):
        # start and end are the same q but for noise; were they judged by the draws that chose,
        # the mean would be above log p by a few standard errors of 200 draws
        program = LinearGaussian(2, shift=0.8)
        x = program.sample(300)
        found = quick(program, x, num_steps=1, step_size=1e-9, num_samples=200)
        row = found.estimates["amortisation"]
        assert abs(row.value) < 0.05 + 4 * row.se_monte_carlo

    def test_too_few_steps_are_noticed(self):
        program = LinearGaussian(3, shift=3.0)
        x = program.sample(20)
        few = quick(program, x, family=DiagonalNormal, num_steps=20, step_size=0.02)
        assert few.bounds.per_datum["refitted_late"].mean() > 0.01
        assert "DiagonalNormal was still gaining when its refit ended: take more steps." in str(few)
        assert "still gaining" not in str(quick(program, x, family=DiagonalNormal))

    def test_step_sizes(self):
        sizes = [*refitting.Settings(100, 0.5, 4).step_sizes]
        assert len(sizes) == 100
        assert (sizes[0], sizes[90]) == (0.5, 0.1)
        assert all(s > 0 for s in sizes) and sizes[89] < 0.001
        assert len([*refitting.Settings(1, 0.5, 4).step_sizes]) == 1


def _exact(program, x):
    """A full covariance whose words are the posterior itself."""
    from pyro_vae.evaluation.inference_gaps.families import fresh
    from pyro_vae.programs.importance_weights import find_layout

    layout = find_layout(program.model, program.guide, x)
    target = refitting.target_of(program.model, program.guide, x, layout=layout, as_drawn=False)
    mean = (x - program.b) @ program.W @ program.covariance / program.s**2
    family = fresh(FullCovarianceNormal, x, mean, torch.ones_like(mean))
    factor = program.factor
    lower = factor.tril(-1) * len(factor) ** 0.5
    words = torch.cat([torch.zeros(1, 3, dtype=D), factor.diagonal().log()[None], lower])
    return target, family, words.expand(len(x), -1, -1).clone()


class TestComputation:
    def test_resumed_to_the_same_bits(self, tmp_path, monkeypatch):
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
        place = tmp_path / "gaps.ckpt"
        real, calls = refitting.refit, []

        def killed(*args):
            calls.append(args)
            if len(calls) == 3:
                raise KeyboardInterrupt
            return real(*args)

        # the module, and not the function of its name
        module = importlib.import_module("pyro_vae.evaluation.inference_gaps.estimator")
        monkeypatch.setattr(module, "refit", killed)
        with pytest.raises(KeyboardInterrupt):
            gaps(program, x, train=train, checkpoint=place, **options)
        resumed = gaps(program, x, train=train, checkpoint=place, **options)
        assert len(calls) == 3 + 1 + 2  # two blocks of x were there, two of train were not
        for ours, theirs in ((whole.bounds, resumed.bounds), (whole.train, resumed.train)):
            for name, values in ours.per_datum.items():
                np.testing.assert_array_equal(theirs.per_datum[name], values, err_msg=name)
        assert sorted(f.name for f in tmp_path.iterdir()) == [
            *("gaps.ckpt", "gaps.ckpt.ais", "gaps.ckpt.train")
        ]
        with pytest.raises(ValueError, match="other settings, data or weights"):
            gaps(program, x, checkpoint=place, **options | {"num_steps": 11})
        other = LinearGaussian(2, shift=0.6)
        with pytest.raises(ValueError, match="other settings, data or weights"):
            gaps(other, x, checkpoint=place, **options)

    def test_training_data_and_the_file(self, tmp_path):
        vae, *_ = linear_vae()
        x, train = torch.randn(40, 4, dtype=D), 0.1 * torch.randn(30, 4, dtype=D)
        found = quick(vae, x, train=train)
        rows = found.estimates
        alone = quick(vae, train, richer=None)
        assert rows["train_amortisation"] == alone.estimates["amortisation"]
        difference = rows["amortisation"].value - rows["train_amortisation"].value
        assert rows["generalisation"].value == pytest.approx(difference)
        errors = [rows[n].se_data for n in ("amortisation", "train_amortisation")]
        assert rows["generalisation"].se_data == pytest.approx(math.hypot(*errors))
        assert difference > 2 * rows["generalisation"].se_data  # far data, an untaught encoder
        found.to_netcdf(tmp_path / "gaps.nc")
        again = Gaps.from_netcdf(tmp_path / "gaps.nc")
        assert str(again) == str(found) and again.summary() == found.summary()
        assert Bounds.from_netcdf(tmp_path / "gaps.nc").elbo == found.bounds.elbo
        told = json.loads(json.dumps(found.summary(), allow_nan=False))
        assert told["gaps"]["approximation"]["value"] == rows["approximation"].value
        assert told["better"]["refitted"] == 40
        assert told["train"]["num_data"] == 30
        quick(vae, x).to_netcdf(tmp_path / "alone.nc")
        assert Gaps.from_netcdf(tmp_path / "alone.nc").train is None
        evaluate(vae, x, num_samples=50).to_netcdf(tmp_path / "bounds.nc")
        with pytest.raises(ValueError, match="to hold gaps from pyro_vae; got bounds"):
            Gaps.from_netcdf(tmp_path / "bounds.nc")

    def test_weights_that_are_trained_are_not_touched(self):
        vae, *_ = linear_vae(posterior=POSTERIORS["InverseAutoregressiveFlow"])
        before = {name: value.clone() for name, value in vae.state_dict().items()}
        quick(vae, torch.randn(5, 4, dtype=D), num_steps=5, num_samples=50)
        assert all(torch.equal(v, before[n]) for n, v in vae.state_dict().items())
        assert all(p.grad is None for p in vae.parameters())
        assert (
            not vae.posterior.network._forward_hooks
            or len(vae.posterior.network._forward_hooks) == 1
        )  # the one that checks shapes

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            ({"num_steps": 0}, "expected num_steps to be a positive integer; got 0"),
            ({"num_draws": 0}, "expected num_draws to be a positive integer"),
            ({"num_samples": 0}, "expected num_samples to be a positive integer"),
            ({"block": 0}, "expected block to be a positive integer"),
            ({"step_size": 0.0}, "expected step_size > 0 and finite; got 0.0"),
            ({"family": POSTERIORS["SplineFlow"]}, "got SplineFlow, which has weights of its own"),
            ({"richer": POSTERIORS["InverseAutoregressiveFlow"]}, "which has weights of its own"),
            ({"family": posteriors.SemiAmortized}, "needs nothing but x; got SemiAmortized"),
            ({"family": posteriors.PowerSpherical}, "got PowerSpherical, on the unit sphere"),
        ],
    )
    def test_refusals(self, options, message):
        program = LinearGaussian(2)
        with pytest.raises(ValueError, match=message):
            quick(program, program.sample(3), **{"num_steps": 2, "num_samples": 10} | options)

    def test_train_with_further_arguments_is_refused(self):
        vae, *_ = linear_vae(pv.ConditionalVAE, condition=2)
        x, labels = torch.randn(4, 4, dtype=D), torch.tensor([0, 1, 0, 1])
        with pytest.raises(ValueError, match="expected train without further arguments"):
            quick(vae, x, labels, train=pv.data.Split(x, labels=labels))
        with pytest.raises(ValueError, match=r"expected x to be a tensor of shape \(N ≥ 1"):
            quick(LinearGaussian(2), torch.zeros(0, 6, dtype=D))


def made(elbo, refitted, evidence, richer=None, noise=0.01, wobble=0.0, size=40):
    """Gaps of these means, whose data differ and whose draws are noisy."""
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
    told = {
        "family": "DiagonalNormal",
        "richer": "FullCovarianceNormal" if richer is not None else None,
        "num_steps": 9,
        "proposal": "richer",
    }
    return Gaps(Bounds(num_samples=100, per_datum=data, settings={"gaps": told}))


class TestReading:
    @pytest.mark.parametrize(
        ("rows", "sentence"),
        [
            (
                {"elbo": -4.0, "refitted": -1.0, "evidence": 0.0},
                "Three quarters of the gap is amortisation: a bigger encoder or semi-amortisation "
                "would help.",
            ),
            (
                {"elbo": -4.0, "refitted": -3.6, "evidence": 0.0},
                "Nine tenths of the gap is approximation: a richer posterior family would help.",
            ),
            (
                {"elbo": -3.0, "refitted": -2.0, "evidence": 0.0, "richer": -1.2},
                "Two thirds of the gap is approximation: a richer posterior family would help; "
                "FullCovarianceNormal closes 40% of it.",
            ),
            (
                {"elbo": -3.0, "refitted": -2.0, "evidence": 0.0, "richer": -2.0},
                "Two thirds of the gap is approximation: a richer posterior family would help, but "
                "FullCovarianceNormal closes nothing that could be told from noise.",
            ),
            (
                {"elbo": -2.0, "refitted": -1.0, "evidence": 0.0},
                "Amortisation (50%) and approximation (50%) share the gap; which is the larger "
                "cannot be told from 40 data.",
            ),
            (
                {"elbo": -0.01, "refitted": 0.0, "evidence": 0.0},
                "The gap is too small to be told from noise.",
            ),
            (
                {"elbo": -3.0, "refitted": -4.0, "evidence": 0.0},
                "The refitted DiagonalNormal is worse than the guide, which it cannot say: nothing "
                "is known of amortisation; name a family that holds the guide.",
            ),
        ],
    )
    def test_the_sentence_depends_on_the_numbers(self, rows, sentence):
        found = made(**rows)
        assert found.reading == sentence
        assert str(found).splitlines()[-1] == sentence

    def test_and_on_their_errors(self):
        rows = {"elbo": -4.0, "refitted": -1.5, "evidence": 0.0}
        assert made(**rows, noise=0.01).reading.startswith("Three fifths of the gap is amortis")
        assert made(**rows, wobble=5.0).reading.startswith("Amortisation (62%) and approximation")
        assert made(**rows, noise=3.0).reading.startswith("The gap is too small")

    def test_the_share_and_its_error(self):
        found = made(elbo=-4.0, refitted=-1.0, evidence=0.0)
        assert found.share.value == pytest.approx(0.75)
        # part − share · whole = (1 − 2 share) spread, over the whole
        spread = np.linspace(-1, 1, 40) * 0.01 * 40**0.5
        error = abs(1 - 2 * 0.75) * spread.std(ddof=1) / 40**0.5 / 4
        assert found.share.se_data == pytest.approx(error)
        noise = 0.01 / 40**0.5 * (1 + 0.25**2 + 0.75**2) ** 0.5 / 4
        assert found.share.se_monte_carlo == pytest.approx(noise)

    def test_bad_weights_are_told_unless_they_do_not_matter(self):
        found = made(elbo=-4.0, refitted=-1.0, evidence=0.0)
        found.bounds.per_datum["khat"][:7] = 0.9
        assert "For 7 of 40 data k̂ is bad" in str(found)
        found.bounds.per_datum["ess"][:] = 99.9
        assert "k̂ is bad" not in str(found)

    def test_the_highest_bound_but_for_noise(self):
        def row(value, error, size=100):
            return np.full(size, value), np.full(size, size * error**2)

        assert highest({"a": row(1.0, 0.04), "b": row(0.9, 0.01)}) == "b"
        assert highest({"a": row(1.0, 0.01), "b": row(0.9, 0.01)}) == "a"
        assert highest({"a": row(-math.inf, 0.1), "b": row(0.9, 0.01)}) == "b"
        assert highest({"a": row(1.0, math.nan)}) == "a"
