"""The contract of every posterior, and what is true of single ones."""

from __future__ import annotations

import copy
import functools
import math
from functools import partial

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from components import POSTERIORS, SMALL, kind, small_vae
from densities import coordinate, line, plane_integral
from linear_gaussian import LinearGaussian
from pyro.distributions import transforms
from scipy import stats

import pyro_vae as pv
from pyro_vae import distributions, likelihoods, networks, posteriors, priors

FLOWS = [n for n in POSTERIORS if n.endswith("Flow")]


def _posterior(make, degrees=1):
    """A posterior of so many degrees of freedom; on the sphere that is one dimension more."""
    latent_dim = degrees + (kind(make) is posteriors.PowerSpherical)
    vae = small_vae(posterior=make, latent_dim=latent_dim).double().eval()
    for parameter in vae.posterior.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return vae.posterior


@pytest.mark.parametrize("make", POSTERIORS.values(), ids=POSTERIORS)
class TestContract:
    def test_shapes_and_gradients(self, make):
        vae = small_vae(posterior=make, latent_dim=4, event_shape=(2, 3))
        q = vae.posterior
        for batch in ((), (5,), (7, 5)):
            fn = q(torch.rand(*batch, 2, 3))
            assert fn.has_rsample
            assert fn.batch_shape == batch and fn.event_shape == (4,)
            assert fn.rsample().shape == (*batch, 4)
        fn = q(torch.rand(5, 2, 3))
        z = fn.rsample()
        # the density alone is the same for all reflections: a prior makes their gradient
        (fn.log_prob(z) + z[..., 0]).sum().backward()
        for name, parameter in q.named_parameters():
            assert parameter.grad is not None and parameter.grad.abs().sum() > 0, name

    def test_density_and_samples(self, make):
        fn = _posterior(make)(torch.rand(3, dtype=torch.float64))
        along = line(fn, -60.0, 60.0, 24_001)
        assert along.integral == pytest.approx(1, abs=1e-3)
        assert along.agrees(coordinate(fn, fn.sample((2000,))))

    def test_on_a_plane(self, make):
        q = _posterior(make, 2)
        if not q.scores_anything:
            pytest.skip("scores its own draws alone; its log|det J| is tested against autograd")
        fn = q(torch.rand(3, dtype=torch.float64))
        assert plane_integral(fn, 12.0, 401) == pytest.approx(1, abs=5e-3)

    @pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
    def test_dtypes(self, make, dtype):
        q = small_vae(posterior=make).to(dtype).posterior
        fn = q(torch.rand(5, 3, dtype=dtype))
        z = fn.rsample()
        assert z.dtype == fn.log_prob(z).dtype == dtype

    def test_each_datum_by_itself(self, make):
        vae = small_vae(posterior=make).eval()
        x = torch.bernoulli(torch.full((9, 3), 0.5))
        log_q = []
        for data, row in ((x, 4), (x[4:5], 0)):
            fn = vae.posterior(data)
            log_q.append(fn.log_prob(_draw(fn))[row])
        torch.testing.assert_close(*log_q, atol=1e-4, rtol=1e-4)

    def test_a_word_of_nothing_but_zeros_is_still_a_density(self, make):
        # as a blank image gets it from a network without biases
        vae = small_vae(posterior=make, encoder=partial(networks.MLP, hidden=(5,), init="glorot"))
        x = torch.zeros(2, 3)
        fn = vae.posterior(x)
        assert bool(fn.log_prob(fn.rsample()).isfinite().all())
        history = pv.fit(vae, x, epochs=1)
        assert -20 < history["elbo"][0] < 0
        weights = pv.log_weights(vae.model, vae.guide, x, num_samples=50)
        assert bool(weights.isfinite().all())

    def test_single_precision_scores_what_it_did_not_draw(self, make):
        vae = small_vae(posterior=make, latent_dim=6)
        if not (vae.posterior.scores_anything and vae.posterior.self_contained):
            pytest.skip("scores its own draws alone, or climbs by another path")
        torch.manual_seed(0)
        for parameter in vae.posterior.parameters():
            torch.nn.init.normal_(parameter, std=0.2)
        double = copy.deepcopy(vae).double().eval()
        x = torch.rand(20, 3)
        z = vae.eval().posterior(x).sample().detach()
        single, exact = vae.posterior(x).log_prob(z.clone()), double.posterior(x.double())
        torch.testing.assert_close(
            single.double(), exact.log_prob(_onto_its_space(z)), atol=0.05, rtol=1e-3
        )

    def test_evaluates_a_copy_alike(self, make):
        vae, other = small_vae(posterior=make), small_vae(posterior=make)
        other.load_state_dict(vae.state_dict())
        x = torch.bernoulli(torch.full((4, 3), 0.5))
        values = {pv.evaluate(v, x, num_samples=20).elbo for v in (vae, other, copy.deepcopy(vae))}
        assert len(values) == 1

    def test_weights_average_to_the_evidence(self, make):
        """E_q[p(x, z)/q(z|x)] = p(x), by quadrature over the prior: wrong densities show."""
        vae = small_vae(posterior=make).double()
        x = torch.tensor([[1.0, 0.0, 1.0]], dtype=torch.float64)
        z = vae.prior().sample((200_000,))
        likelihood = vae.likelihood(z).log_prob(x[0]).exp().detach()
        if kind(make) is posteriors.PowerSpherical:
            # q vanishes opposite to μ, so that its own weights have no variance to test with
            self.check_defensive_weights(vae, x[0], float(likelihood.mean()))
            return
        error = float(likelihood.std()) / math.sqrt(len(likelihood))
        weights = pv.log_weights(vae.model, vae.guide, x, num_samples=20_000).exp()
        spread = math.hypot(error, float(weights.std()) / math.sqrt(len(weights)))
        # five standard errors: false alarm below 1e-5 each
        assert abs(float(weights.mean()) - float(likelihood.mean())) < 5 * spread

    @staticmethod
    def check_defensive_weights(vae, x, evidence):
        """The same with draws of ½ q + ½ p(z), whose weights are at most 2 p(x|z)."""
        q, p = vae.posterior(x), vae.prior()
        z = torch.cat([q.sample((20_000,)), p.sample((20_000,))])
        half = torch.logaddexp(q.log_prob(z), p.log_prob(z)) - math.log(2)
        weights = (vae.likelihood(z).log_prob(x) + p.log_prob(z) - half).exp().detach()
        # five standard errors: false alarm below 1e-5
        error = float(weights.std()) / math.sqrt(len(weights))
        assert abs(float(weights.mean()) - evidence) < 5 * error + 1e-3 * evidence


def _draw(fn):
    """The same draw for every datum, of a flow the draw from the same noise."""
    if isinstance(fn, dist.TransformedDistribution):
        z = torch.linspace(-1, 1, fn.event_shape[0]).expand(*fn.batch_shape, -1)
        for transform in fn.transforms:
            z = transform(z)
        return z
    return torch.nn.functional.normalize(torch.ones(*fn.batch_shape, *fn.event_shape), dim=-1)


def _onto_its_space(z):
    """Rounded draws in float64; those from a sphere are put back onto it."""
    on_sphere = torch.allclose(z.norm(dim=-1), torch.ones(len(z)), atol=1e-5)
    return torch.nn.functional.normalize(z.double(), dim=-1) if on_sphere else z.double()


@pytest.mark.parametrize("name", FLOWS)
class TestFlows:
    def test_log_det_is_autograd_s(self, name):
        q = _posterior(POSTERIORS[name], 4)
        fn = q(torch.rand(3, dtype=torch.float64))
        for step in fn.transforms:
            for x in torch.randn(5, 4, dtype=torch.float64):
                jacobian = torch.autograd.functional.jacobian(step, x)
                log_det = step.log_abs_det_jacobian(x, step(x))
                expected = torch.linalg.slogdet(jacobian)[1]
                torch.testing.assert_close(log_det.sum(), expected, atol=1e-8, rtol=1e-6)

    def test_inverse_if_there_is_one(self, name):
        q = _posterior(POSTERIORS[name], 4)
        fn = q(torch.rand(3, dtype=torch.float64))
        z = fn.sample((6,))
        if q.scores_anything:
            # a copy is not in the transforms' memory
            torch.testing.assert_close(fn.log_prob(z.clone()), fn.log_prob(z))
        else:
            with pytest.raises((KeyError, NotImplementedError)):
                fn.log_prob(z.clone())

    def test_the_encoder_conditions_the_flow(self, name):
        # beyond μ and σ: whitened by them, what is left still depends on x
        q = _posterior(POSTERIORS[name], 3)
        x = torch.rand(2, 3, dtype=torch.float64)
        noise = torch.randn(3, dtype=torch.float64)
        ends = []
        for datum in x:
            z = noise
            for step in q(datum).transforms:
                if not isinstance(step, transforms.AffineTransform):
                    z = step(z)
            ends.append(z)
        assert not torch.allclose(*ends)

    def test_reaches_what_a_diagonal_normal_cannot(self, name):
        assert 0 < _gap(_capable(name)) < 0.9 * _gap(posteriors.DiagonalNormal)


@functools.cache
def _gap(make):
    """log p(x) − ELBO after learning the guide of a model whose posterior is far from diagonal."""
    torch.manual_seed(0)
    rows = torch.tensor([[1.0, 0.9], [0.9, 1.0], [1.0, -0.1]])
    vae = small_vae(
        posterior=make,
        likelihood=partial(likelihoods.Gaussian, scale=0.3),
        encoder=partial(networks.MLP, hidden=(16,)),
        decoder=partial(networks.MLP, hidden=()),
    )
    with torch.no_grad():
        vae.likelihood.network.layers[0].weight.copy_(rows)
        vae.likelihood.network.layers[0].bias.zero_()
    x = torch.randn(200, 2) @ rows.T + 0.3 * torch.randn(200, 3)
    optimizer = torch.optim.Adam(vae.posterior.parameters(), 0.02)
    for _ in range(500):
        optimizer.zero_grad()
        pv.objectives.ELBO().loss_and_grads(vae.model, vae.guide, x)
        optimizer.step()
    covariance = rows @ rows.T + 0.09 * torch.eye(3)
    truth = dist.MultivariateNormal(torch.zeros(3), covariance).log_prob(x).mean()
    return float(truth) - pv.evaluate(vae, x, num_samples=200).elbo


def _capable(name):
    """A member of the family that is rich enough to matter in two dimensions."""
    make = getattr(posteriors, name)
    return {
        "HouseholderFlow": partial(make, flows=1),
        "InverseAutoregressiveFlow": partial(make, hidden=(16,), context=8),
        "SplineFlow": partial(make, hidden=(16,), context=8),
        "SylvesterFlow": partial(make, flows=2, reflections=2),
    }.get(name, make)


def test_pyro_s_sylvester_has_another_determinant():
    """Why the step is our own: if this fails, Pyro's has been mended and could be used."""
    torch.manual_seed(0)
    step = transforms.Sylvester(4, 3)
    for parameter in step.parameters():
        torch.nn.init.normal_(parameter)
    x = torch.randn(4)
    jacobian = torch.autograd.functional.jacobian(step, x)
    said = step.log_abs_det_jacobian(x, step(x)).detach()
    assert abs(float(said - torch.linalg.slogdet(jacobian)[1])) > 0.05


class TestSphere:
    def test_power_spherical_against_scipy(self):
        # De Cao & Aziz: (1 + μᵀz)/2 ~ Beta((D − 1)/2 + κ, (D − 1)/2)
        loc = torch.nn.functional.normalize(torch.randn(5, dtype=torch.float64), dim=0)
        fn = distributions.PowerSpherical(loc, torch.tensor(7.0, dtype=torch.float64))
        cosine = fn.sample((4000,)) @ loc
        marginal = stats.beta(2 + 7, 2)
        # false alarm 1e-4
        assert stats.kstest(((1 + cosine) / 2).numpy(), marginal.cdf).pvalue > 1e-4
        # p(z) = p(cos) / (area of the circle of latitude)
        t = 0.3
        latitude = 2 * math.pi**2 / math.gamma(2) * (1 - t * t) ** ((5 - 3) / 2)
        z = t * loc + math.sqrt(1 - t * t) * _orthogonal(loc)
        expected = math.log(marginal.pdf((1 + t) / 2) / 2 / latitude)
        assert float(fn.log_prob(z)) == pytest.approx(expected)

    @pytest.mark.parametrize("dim", [2, 3, 20])
    @pytest.mark.parametrize("concentration", [0.5, 10.0, 2000.0])
    def test_samples_are_around_the_mean(self, dim, concentration):
        loc = torch.nn.functional.normalize(torch.randn(dim), dim=0)
        fn = distributions.PowerSpherical(loc, torch.tensor(concentration))
        z = fn.sample((20_000,))
        torch.testing.assert_close(z.norm(dim=1), torch.ones(len(z)))
        error = z.std(0) / math.sqrt(len(z))
        # five standard errors, and the rounding of float32
        assert bool(((z.mean(0) - fn.mean).abs() < 5 * error + 1e-5).all())
        assert bool(torch.isfinite(fn.log_prob(z)).all())

    @pytest.mark.parametrize("concentration", [0.5, 10.0, 300.0])
    def test_entropy_and_kl_are_expectations(self, concentration):
        loc = torch.nn.functional.normalize(torch.randn(6, dtype=torch.float64), dim=0)
        q = distributions.PowerSpherical(loc, torch.tensor(concentration, dtype=torch.float64))
        p = distributions.UniformSphere(loc)
        z = q.sample((20_000,))
        log_q = q.log_prob(z)
        error = float(log_q.std()) / math.sqrt(len(z))
        assert abs(float(q.entropy() + log_q.mean())) < 5 * error
        kl = torch.distributions.kl_divergence(q, p)
        assert abs(float(kl - (log_q - p.log_prob(z)).mean())) < 5 * error
        assert float(p.entropy()) == pytest.approx(-float(p.log_prob(z[0])))

    def test_gradients_of_draws(self):
        # d E[μᵀz] / dκ is known: E[μᵀz] = κ/(κ + D − 1)
        kappa = torch.tensor(4.0, dtype=torch.float64, requires_grad=True)
        loc = torch.tensor([0.6, 0.8, 0.0], dtype=torch.float64)
        z = distributions.PowerSpherical(loc, kappa).rsample((20_000,))
        slopes = [
            torch.autograd.grad((c @ loc).mean(), kappa, retain_graph=True)[0] for c in z.chunk(20)
        ]
        slope = torch.stack(slopes)
        error = float(slope.std()) / math.sqrt(len(slopes))
        assert abs(float(slope.mean()) - 2 / (4 + 2) ** 2) < 5 * error

    def test_gradients_where_the_mean_is_an_axis(self):
        # a step of μ along the sphere turns every draw by as much: d E[z] / dμ = κ/(κ + D − 1)
        for axis in (1.0, -1.0):
            loc = torch.tensor([axis, 0.0, 0.0], dtype=torch.float64, requires_grad=True)
            torch.manual_seed(0)
            unit = torch.nn.functional.normalize(loc, dim=0)
            z = distributions.PowerSpherical(unit, torch.tensor(5.0).double()).rsample((20_000,))
            slope = torch.autograd.grad(z[:, 1].mean(), loc)[0][1]
            assert float(slope) == pytest.approx(5 / 7, abs=0.03)

    @pytest.mark.parametrize(("dim", "concentration"), [(2, 1e5), (10, 1e5), (50, 1e6), (3, 0.3)])
    def test_single_precision_is_as_good(self, dim, concentration):
        torch.manual_seed(0)
        loc = torch.nn.functional.normalize(torch.randn(dim), dim=0)
        q = distributions.PowerSpherical(loc, torch.tensor(concentration))
        z = q.sample((100,))
        exact = distributions.PowerSpherical(
            torch.nn.functional.normalize(loc.double(), dim=0), torch.tensor(concentration).double()
        )
        on_sphere = torch.nn.functional.normalize(z.double(), dim=-1)
        # what rounding the draw itself costs, κ ε |μ − z|, and no more
        error = q.log_prob(z).double() - exact.log_prob(on_sphere)
        assert float(error.abs().mean()) < 1e-2 and abs(float(error.mean())) < 3e-3
        kl, exact_kl = (
            torch.distributions.kl_divergence(f, distributions.UniformSphere(f.loc))
            for f in (q, exact)
        )
        assert float(kl) == pytest.approx(float(exact_kl), abs=1e-4)

    def test_the_concentration_is_at_least_one(self):
        q = posteriors.PowerSpherical((3,), 4, SMALL)
        q.network.forward = lambda x: torch.full((5,), -50.0)
        assert float(q(torch.zeros(3)).concentration) >= 1

    def test_uniform_covers_the_sphere(self):
        # each coordinate z_d of S^{D−1} has (z_d + 1)/2 ~ Beta((D − 1)/2, (D − 1)/2)
        z = distributions.UniformSphere(torch.zeros(4)).sample((4000,))
        assert z.shape == (4000, 4)
        for column in z.T:
            assert stats.kstest(((column + 1) / 2).numpy(), stats.beta(1.5, 1.5).cdf).pvalue > 1e-4

    def test_a_spherical_vae_learns(self):
        x = torch.bernoulli(torch.rand(1, 6)).expand(60, 6)
        vae = small_vae(priors.UniformSphere, latent_dim=3, event_shape=(6,))
        history = pv.fit(vae, x, epochs=60, optimizer=partial(torch.optim.Adam, lr=0.02))
        # 60 copies of one datum have log p(x) → 0
        assert history["elbo"][0] < -2 < -0.5 < history["elbo"][-1]


def _orthogonal(loc):
    other = torch.zeros_like(loc)
    other[0] = 1.0
    return torch.nn.functional.normalize(other - (other @ loc) * loc, dim=0)


class TestSemiAmortized:
    def _vae(self, **options):
        torch.manual_seed(1)
        return small_vae(
            posterior=partial(posteriors.SemiAmortized, **options),
            likelihood=partial(likelihoods.Gaussian, scale=0.5),
            decoder=partial(networks.MLP, hidden=()),
        ).eval()

    def test_many_steps_reach_the_best_of_the_family(self):
        # a linear decoder: the best full-covariance normal is the posterior itself
        vae = self._vae(
            family=posteriors.FullCovarianceNormal, steps=200, step_size=0.1, num_samples=500
        )
        x = torch.randn(3, 3)
        decoder = vae.likelihood.network.layers[0]
        covariance = decoder.weight @ decoder.weight.T + 0.25 * torch.eye(3)
        truth = dist.MultivariateNormal(decoder.bias, covariance).log_prob(x).mean().detach()
        refined = pv.evaluate(vae, x, num_samples=2000).estimates["elbo"]
        assert refined.value == pytest.approx(float(truth), abs=0.03)
        assert refined.value < float(truth) + 5 * refined.se_monte_carlo

    def test_more_steps_are_better(self):
        x = torch.randn(20, 3)
        elbos = []
        for steps in (1, 5, 30):
            vae = self._vae(steps=steps, num_samples=16)
            elbos.append(pv.evaluate(vae, x, num_samples=500).elbo)
        assert elbos[0] + 0.05 < elbos[1] < elbos[2] - 0.05

    @pytest.mark.parametrize("family", [posteriors.DiagonalNormal, posteriors.SplineFlow])
    def test_a_datum_does_not_meet_the_others(self, family, caplog):
        # one that torch.vmap can run, and one that it cannot
        vae = small_vae(
            posterior=partial(posteriors.SemiAmortized, family=family, num_samples=3)
        ).eval()
        x = torch.bernoulli(torch.full((6, 3), 0.5))
        z = vae.posterior(x).sample()
        together = vae.posterior(x).log_prob(z)
        apart = torch.stack(
            [vae.posterior(x[i : i + 1]).log_prob(z[i : i + 1])[0] for i in range(6)]
        )
        torch.testing.assert_close(together, apart, atol=1e-4, rtol=1e-4)
        assert ("torch.vmap says" in caplog.text) == (family is posteriors.SplineFlow)

    def test_the_loop_gives_what_vmap_gives(self):
        vae = self._vae(num_samples=3)
        x = torch.randn(4, 3)
        quick = vae.posterior(x)
        vae.posterior._vectorizes = False
        z = quick.sample()
        torch.testing.assert_close(vae.posterior(x).log_prob(z), quick.log_prob(z))

    def test_in_training_the_noise_is_new_and_gradients_reach_the_encoder(self):
        vae = self._vae().train()
        x = torch.randn(4, 3)
        means = [vae.posterior(x).mean for _ in range(2)]
        assert not torch.equal(*means)
        means[0].sum().backward()
        assert all(p.grad.abs().sum() > 0 for p in vae.posterior.parameters())
        assert all(p.grad is None for p in vae.likelihood.parameters())

    def test_the_encoder_s_gradient_is_that_of_the_refined_parameters(self):
        # d mean / d bias of the last layer is one: steps are held constant
        vae = self._vae().train()
        vae.posterior(torch.randn(1, 3)).mean.sum().backward()
        bias = [p for n, p in vae.posterior.named_parameters() if n.endswith("bias")][-1]
        torch.testing.assert_close(bias.grad, torch.tensor([1.0, 1.0, 0.0, 0.0]))

    def test_a_step_is_as_long_as_it_says(self):
        # Adam's first step has the gradient's sign and the length that was asked for
        vae = self._vae(steps=1, step_size=0.1)
        x = 5 * torch.randn(4, 3)
        amortized, refined = vae.posterior.family(x), vae.posterior(x)
        for moved in (refined.mean - amortized.mean, (refined.stddev / amortized.stddev).log()):
            torch.testing.assert_close(moved.abs(), torch.full((4, 2), 0.1), atol=1e-3, rtol=0)

    def test_new_noise_at_every_step(self):
        # with one draw, the same at every step, q would collapse onto that draw's likes
        vae = self._vae(steps=60, num_samples=1)
        x = torch.randn(20, 3)
        refined = pv.evaluate(vae, x, num_samples=500).elbo
        vae.posterior.steps = 1
        assert refined > pv.evaluate(vae, x, num_samples=500).elbo

    def test_what_is_refined_is_the_family_s_own_word(self):
        class Centred(posteriors.DiagonalNormal):
            def forward(self, x):
                return super().forward(2 * x - 1)

        vae = self._vae(family=Centred, steps=1, step_size=1e-9)
        x = torch.randn(4, 3)
        torch.testing.assert_close(vae.posterior(x).mean, vae.posterior.family(x).mean)

    def test_a_decoder_of_a_single_batch_dimension(self):
        class Flat(torch.nn.Module):
            def __init__(self, in_shape, out_shape):
                super().__init__()
                self.layer = torch.nn.Linear(in_shape[0], out_shape[0])

            def forward(self, z):
                assert z.ndim == 2
                return self.layer(z)

        vae = small_vae(posterior=POSTERIORS["SemiAmortized"], decoder=Flat)
        history = pv.fit(vae, torch.bernoulli(torch.rand(6, 3)), epochs=2)
        assert -6 < history["elbo"][-1] < 0

    def test_refining_leaves_the_decoder_s_statistics_alone(self):
        decoder = partial(networks.MLP, hidden=(5,), norm="batch")
        vae = small_vae(posterior=POSTERIORS["SemiAmortized"], decoder=decoder).train()
        before = copy.deepcopy(dict(vae.named_buffers()))
        vae.posterior(torch.rand(5, 3)).rsample()
        for name, buffer in vae.named_buffers():
            assert torch.equal(buffer, before[name]), name
        assert all(module.training for module in vae.modules())

    def test_its_noise_is_no_user_s(self):
        vae = self._vae(steps=1)
        x = torch.randn(4, 3)
        torch.manual_seed(0)
        state = torch.get_rng_state()
        refined = vae.posterior(x).mean
        # it neither moves the generator nor follows it
        assert torch.equal(torch.get_rng_state(), state)
        torch.manual_seed(1)
        assert torch.equal(vae.posterior(x).mean, refined)

    def test_in_evaluation_a_datum_is_refined_once(self, monkeypatch):
        vae = self._vae()
        x = torch.randn(6, 3)
        refine, calls = vae.posterior._refine, []
        monkeypatch.setattr(
            posteriors.SemiAmortized,
            "_refine",
            lambda self, start, data: calls.append(len(data)) or refine(start, data),
        )
        # four chunks of draws for each datum
        pv.log_weights(vae.model, vae.guide, x, num_samples=40, chunk_size=12)
        assert calls == [1] * 6
        vae.posterior(x)
        count = len(calls)
        first = vae.posterior(x).mean
        assert len(calls) == count
        # other weights or other data are other parameters
        with torch.no_grad():
            vae.likelihood.network.layers[0].bias.add_(1.0)
        assert not torch.equal(vae.posterior(x).mean, first)
        assert not torch.equal(vae.posterior(x + 1).mean, first) and len(calls) == count + 2

    def test_a_copy_of_one_in_use(self):
        vae = self._vae().train()
        vae.posterior(torch.randn(4, 3)).rsample()
        copy.deepcopy(vae)

    def test_unused_before_it_is_bound(self):
        q = posteriors.SemiAmortized((3,), 2, SMALL)
        with pytest.raises(RuntimeError, match=r"call bind\(prior, likelihood\) first"):
            q(torch.zeros(1, 3))


def test_a_guide_without_an_inverse_is_judged_rightly():
    # a user's guide may be a flow too: Pyro's own planar, without an inverse
    truth = LinearGaussian(2)
    x = truth.sample(6)
    flow = transforms.Planar(2).double()

    def guide(x):
        with pyro.plate("data", len(x)):
            mean = (x - truth.b) @ truth.W @ truth.covariance / truth.s**2
            base = dist.Normal(mean, 1.5 * truth.covariance.diagonal().sqrt()).to_event(1)
            pyro.sample("z", dist.TransformedDistribution(base, [flow]))

    bounds = pv.evaluate((truth.model, guide), x, num_samples=20_000)
    np.testing.assert_allclose(
        bounds.per_datum["log_evidence"], truth.log_evidence(x).numpy(), atol=0.1
    )


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: posteriors.PlanarFlow((3,), 2, SMALL, flows=0), "expected flows to be a positive"),
        (
            lambda: posteriors.SylvesterFlow((3,), 2, SMALL, reflections=0),
            "expected reflections to",
        ),
        (
            lambda: posteriors.InverseAutoregressiveFlow((3,), 9, SMALL, hidden=(8,)),
            r"at least as wide as the 9 latents; got hidden=\(8,\)",
        ),
        (
            lambda: posteriors.SplineFlow((3,), 2, SMALL, bound=-1.0),
            r"expected bound > 0 and finite; got -1",
        ),
        (lambda: posteriors.SplineFlow((3,), 2, SMALL, bins=1001), "expected bins ≤ 1000"),
        (lambda: posteriors.SemiAmortized((3,), 2, SMALL, step_size=math.inf), "step_size > 0 and"),
        (lambda: posteriors.SplineFlow((3,), 2, SMALL, context=0), "expected context to be a pos"),
        (lambda: posteriors.PowerSpherical((3,), 1, SMALL), "expected latent_dim ≥ 2"),
        (lambda: posteriors.SemiAmortized((3,), 2, SMALL, step_size=0.0), "expected step_size > 0"),
        (lambda: posteriors.SemiAmortized((3,), 2, SMALL, steps=0), "expected steps to be a pos"),
        (
            lambda: posteriors.SemiAmortized((3,), 2, SMALL, family=posteriors.SemiAmortized),
            "expected a family that asks for one network.*got SemiAmortized",
        ),
    ],
)
def test_bad_arguments(make, message):
    with pytest.raises(ValueError, match=message):
        make()
