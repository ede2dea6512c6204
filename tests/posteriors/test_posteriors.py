"""Contract of all posteriors."""

from __future__ import annotations

import copy
import math
from functools import partial

import pyro.distributions as dist
import pytest
import torch
from components import POSTERIORS, SMALL, component_class, random_posterior, small_vae
from densities import coordinate, density_grid, plane_integral

import pyro_vae as pv
from pyro_vae import networks, posteriors


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
        # reflections do not change the density, so the loss also contains z itself
        (fn.log_prob(z) + z[..., 0]).sum().backward()
        for name, parameter in q.named_parameters():
            assert parameter.grad is not None and parameter.grad.abs().sum() > 0, name

    def test_density_and_samples(self, make):
        fn = random_posterior(make)(torch.rand(3, dtype=torch.float64))
        density = density_grid(fn, -60.0, 60.0, 24_001)
        assert density.integral == pytest.approx(1, abs=1e-3)
        assert density.agrees(coordinate(fn, fn.sample((2000,))))

    def test_bivariate_density_integrates_to_one(self, make):
        q = random_posterior(make, 2)
        if not q.scores_any_value:
            pytest.skip("only scores its own samples; its log|det J| is tested against autograd")
        fn = q(torch.rand(3, dtype=torch.float64))
        assert plane_integral(fn, 12.0, 401) == pytest.approx(1, abs=5e-3)

    @pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
    def test_dtypes(self, make, dtype):
        q = small_vae(posterior=make).to(dtype).posterior
        fn = q(torch.rand(5, 3, dtype=dtype))
        z = fn.rsample()
        assert z.dtype == fn.log_prob(z).dtype == dtype

    def test_examples_are_independent(self, make):
        vae = small_vae(posterior=make).eval()
        x = torch.bernoulli(torch.full((9, 3), 0.5))
        log_q = []
        for data, row in ((x, 4), (x[4:5], 0)):
            fn = vae.posterior(data)
            log_q.append(fn.log_prob(_fixed_sample(fn))[row])
        torch.testing.assert_close(*log_q, atol=1e-4, rtol=1e-4)

    def test_zero_network_outputs_give_a_finite_density(self, make):
        # a blank image and a network with zero biases
        vae = small_vae(posterior=make, encoder=partial(networks.MLP, hidden=(5,), init="glorot"))
        x = torch.zeros(2, 3)
        fn = vae.posterior(x)
        assert bool(fn.log_prob(fn.rsample()).isfinite().all())
        history = pv.fit(vae, x, epochs=1)
        assert -20 < history["elbo"][0] < 0
        weights = pv.log_weights(vae.model, vae.guide, x, num_samples=50)
        assert bool(weights.isfinite().all())

    def test_density_at_other_values_is_accurate_in_float32(self, make):
        vae = small_vae(posterior=make, latent_dim=6)
        if not (vae.posterior.scores_any_value and vae.posterior.self_contained):
            pytest.skip("only scores its own samples, or is refined along a different path")
        torch.manual_seed(0)
        for parameter in vae.posterior.parameters():
            torch.nn.init.normal_(parameter, std=0.2)
        double = copy.deepcopy(vae).double().eval()
        x = torch.rand(20, 3)
        z = vae.eval().posterior(x).sample().detach()
        single, exact = vae.posterior(x).log_prob(z.clone()), double.posterior(x.double())
        torch.testing.assert_close(
            single.double(), exact.log_prob(_project_to_space(z)), atol=0.05, rtol=1e-3
        )

    def test_copies_evaluate_to_the_same_value(self, make):
        vae, other = small_vae(posterior=make), small_vae(posterior=make)
        other.load_state_dict(vae.state_dict())
        x = torch.bernoulli(torch.full((4, 3), 0.5))
        values = {pv.evaluate(v, x, num_samples=20).elbo for v in (vae, other, copy.deepcopy(vae))}
        assert len(values) == 1

    def test_weights_average_to_the_evidence(self, make):
        """E_q[p(x, z)/q(z|x)] = p(x), with p(x) by Monte Carlo: detects wrong densities."""
        vae = small_vae(posterior=make).double()
        x = torch.tensor([[1.0, 0.0, 1.0]], dtype=torch.float64)
        z = vae.prior().sample((200_000,))
        likelihood = vae.likelihood(z).log_prob(x[0]).exp().detach()
        if component_class(make) is posteriors.PowerSpherical:
            # q vanishes opposite to μ, so the weights of its own samples have infinite variance
            self.check_defensive_weights(vae, x[0], float(likelihood.mean()))
            return
        error = float(likelihood.std()) / math.sqrt(len(likelihood))
        weights = pv.log_weights(vae.model, vae.guide, x, num_samples=20_000).exp()
        spread = math.hypot(error, float(weights.std()) / math.sqrt(len(weights)))
        # five standard errors: false alarm below 1e-5 each
        assert abs(float(weights.mean()) - float(likelihood.mean())) < 5 * spread

    @staticmethod
    def check_defensive_weights(vae, x, evidence):
        """The same with samples from ½ q + ½ p(z), with weights of at most 2 p(x|z)."""
        q, p = vae.posterior(x), vae.prior()
        z = torch.cat([q.sample((20_000,)), p.sample((20_000,))])
        half = torch.logaddexp(q.log_prob(z), p.log_prob(z)) - math.log(2)
        weights = (vae.likelihood(z).log_prob(x) + p.log_prob(z) - half).exp().detach()
        # five standard errors: false alarm below 1e-5
        error = float(weights.std()) / math.sqrt(len(weights))
        assert abs(float(weights.mean()) - evidence) < 5 * error + 1e-3 * evidence


def _fixed_sample(fn):
    """Return the same value for every example, or for a flow the sample from the same noise."""
    if isinstance(fn, dist.TransformedDistribution):
        z = torch.linspace(-1, 1, fn.event_shape[0]).expand(*fn.batch_shape, -1)
        for transform in fn.transforms:
            z = transform(z)
        return z
    return torch.nn.functional.normalize(torch.ones(*fn.batch_shape, *fn.event_shape), dim=-1)


def _project_to_space(z):
    """Convert float32 samples to float64, and project those from a sphere back onto it."""
    on_sphere = torch.allclose(z.norm(dim=-1), torch.ones(len(z)), atol=1e-5)
    return torch.nn.functional.normalize(z.double(), dim=-1) if on_sphere else z.double()


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
            "expected a family with a single network.*got SemiAmortized",
        ),
    ],
)
def test_bad_arguments(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_log_variance_has_the_same_density_and_half_the_gradient():
    """The output log σ² = 2 log σ moves log σ half as far as the output log σ does."""
    outputs, z, results = torch.randn(2, 4).double(), torch.randn(4).double(), []
    for log_variance, factor in ((False, 1.0), (True, 2.0)):
        q = posteriors.DiagonalNormal((3,), 4, SMALL, log_variance=log_variance)
        out = (outputs * torch.tensor([[1.0], [factor]])).requires_grad_()
        q.network.forward = lambda x, out=out: out
        log_prob = q(torch.zeros(3)).log_prob(z)
        results.append((log_prob.detach(), *torch.autograd.grad(log_prob, out)[0]))
    (log_prob, loc, log_scale), (log_prob_2, loc_2, log_variance) = results
    torch.testing.assert_close(log_prob_2, log_prob)
    torch.testing.assert_close(loc_2, loc)
    torch.testing.assert_close(log_variance, log_scale / 2)
    with pytest.raises(ValueError, match="expected log_variance to be true or false; got 'yes'"):
        posteriors.DiagonalNormal((3,), 4, SMALL, log_variance="yes")
