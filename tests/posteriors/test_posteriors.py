"""The contract of every posterior."""

from __future__ import annotations

import copy
import math
from functools import partial

import pyro.distributions as dist
import pytest
import torch
from components import POSTERIORS, SMALL, kind, random_posterior, small_vae
from densities import coordinate, line, plane_integral

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
        # the density alone is the same for all reflections: a prior makes their gradient
        (fn.log_prob(z) + z[..., 0]).sum().backward()
        for name, parameter in q.named_parameters():
            assert parameter.grad is not None and parameter.grad.abs().sum() > 0, name

    def test_density_and_samples(self, make):
        fn = random_posterior(make)(torch.rand(3, dtype=torch.float64))
        along = line(fn, -60.0, 60.0, 24_001)
        assert along.integral == pytest.approx(1, abs=1e-3)
        assert along.agrees(coordinate(fn, fn.sample((2000,))))

    def test_on_a_plane(self, make):
        q = random_posterior(make, 2)
        if not q.scores_any_value:
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
        if not (vae.posterior.scores_any_value and vae.posterior.self_contained):
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
