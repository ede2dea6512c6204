"""Contract of all priors, and tests of individual ones."""

from __future__ import annotations

import copy
import math
from functools import partial

import pytest
import torch
from components import PRIORS, SMALL, component_class, small_vae
from densities import coordinate, density_grid, plane_integral

import pyro_vae as pv
from pyro_vae import networks, priors

#: Priors of a single variable: coupling layers need at least two.
UNIVARIATE = {n: p for n, p in PRIORS.items() if n != "FlowPrior, coupling"}


def _random_prior(make, intrinsic_dim):
    """Create a prior with random weights; ``latent_dim`` is one higher on the sphere."""
    latent_dim = intrinsic_dim + (component_class(make) is priors.UniformSphere)
    vae = small_vae(make, latent_dim=latent_dim).double().eval()
    for parameter in vae.prior.parameters():
        # away from the neutral initialisation of some priors
        torch.nn.init.normal_(parameter, std=0.3)
    return vae.prior


@pytest.mark.parametrize("make", UNIVARIATE.values(), ids=UNIVARIATE)
def test_univariate_density_and_samples(make):
    fn = _random_prior(make, 1)()
    density = density_grid(fn, -20.0, 20.0, 8001)
    assert density.integral == pytest.approx(1, abs=2e-3)
    draws = fn.sample((2000,))
    assert draws.shape == (2000, *fn.event_shape)
    assert density.agrees(coordinate(fn, draws))


@pytest.mark.parametrize("make", PRIORS.values(), ids=PRIORS)
class TestContract:
    def test_bivariate_density_integrates_to_one(self, make):
        assert plane_integral(_random_prior(make, 2)(), 20.0, 401) == pytest.approx(1, abs=5e-3)

    def test_gradients_reach_every_parameter(self, make):
        prior = small_vae(make).prior
        assert prior().batch_shape == () and prior().event_shape == (2,)
        z = torch.randn(50, 2)
        if not list(prior.parameters()):
            return
        prior().log_prob(z).sum().backward()
        for name, parameter in prior.named_parameters():
            # the weight of a single component has no gradient
            if not (name == "logits" and len(parameter) == 1):
                assert parameter.grad is not None and parameter.grad.abs().sum() > 0, name

    @pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
    def test_dtypes(self, make, dtype):
        prior = small_vae(make).to(dtype).prior
        z = prior().sample((4,))
        assert z.dtype == prior().log_prob(z).dtype == dtype

    def test_posterior_is_not_registered_twice_in_a_vae(self, make):
        vae, other = small_vae(make), small_vae(make)
        assert not [k for k in vae.state_dict() if k.startswith("prior") and "posterior" in k]
        other.load_state_dict(vae.state_dict())
        x = torch.bernoulli(torch.full((4, 3), 0.5))
        values = [pv.evaluate(v, x, num_samples=20).elbo for v in (vae, other)]
        assert values[0] == values[1]


@pytest.mark.parametrize("name", [n for n in PRIORS if n.startswith("FlowPrior")])
class TestFlowPrior:
    def test_log_det_matches_autograd(self, name):
        # the density of z follows from autograd's Jacobian of noise → z
        prior = _random_prior(PRIORS[name], 4)
        fn = prior()
        noise = torch.randn(5, 4, dtype=torch.float64)

        def push(eps):
            for transform in prior().transforms:
                eps = transform(eps)
            return eps

        for eps in noise:
            jacobian = torch.autograd.functional.jacobian(push, eps)
            expected = torch.distributions.Normal(0.0, 1.0).log_prob(eps).sum()
            expected = expected - torch.linalg.slogdet(jacobian)[1]
            torch.testing.assert_close(fn.log_prob(push(eps)), expected)
            # the Jacobian of an elementwise flow would be diagonal
            assert jacobian.count_nonzero() > 4

    def test_fits_a_non_normal_density(self, name):
        # a ring with entropy log 4π + log(0.1 √(2πe)) = 1.65; the best normal has log 4πe = 3.53
        torch.manual_seed(0)
        angle = 6.2831853 * torch.rand(500)
        ring = 2 * torch.stack([angle.cos(), angle.sin()], -1) + 0.1 * torch.randn(500, 2)
        make = component_class(PRIORS[name])
        transform = PRIORS[name].keywords.get("transform", "coupling")
        prior = make(2, transform=transform, flows=4, hidden=(32,))
        optimizer = torch.optim.Adam(prior.parameters(), 0.01)
        for _ in range(200):
            optimizer.zero_grad()
            loss = -prior().log_prob(ring).mean()
            loss.backward()
            optimizer.step()
        normal = torch.distributions.MultivariateNormal(ring.mean(0), ring.T.cov())
        assert -loss.item() > float(normal.log_prob(ring).mean()) + 0.5


class TestVampPriorStartedFromData:
    x = torch.arange(30.0).reshape(10, 3) / 30

    def test_pseudo_inputs_are_training_examples(self):
        vae = small_vae(PRIORS["VampPrior, from data"])
        pv.initialize(vae, self.x)
        rows = {tuple(row.tolist()) for row in vae.prior.pseudo_inputs}
        assert len(rows) == 2 and rows <= {tuple(row.tolist()) for row in self.x}

    def test_more_pseudo_inputs_than_examples(self):
        vae = small_vae(partial(priors.VampPrior, components=25, start="data"))
        pv.initialize(vae, self.x)
        rows = {tuple(row.tolist()) for row in vae.prior.pseudo_inputs}
        assert rows <= {tuple(row.tolist()) for row in self.x}

    def test_resumed_training_keeps_learned_pseudo_inputs(self):
        vae, other = (small_vae(PRIORS["VampPrior, from data"]) for _ in range(2))
        pv.initialize(vae, self.x)
        with torch.no_grad():
            vae.prior.pseudo_inputs.add_(0.01)
        other.load_state_dict(vae.state_dict())
        for model in (vae, other):
            pv.initialize(model, self.x)
            torch.testing.assert_close(model.prior.pseudo_inputs, vae.prior.pseudo_inputs)
            assert tuple(model.prior.pseudo_inputs[0].tolist()) not in {
                tuple(row.tolist()) for row in self.x
            }

    def test_fit_initializes_pseudo_inputs(self):
        vae = small_vae(PRIORS["VampPrior, from data"])
        before = vae.prior.pseudo_inputs.detach().clone()
        x = torch.bernoulli(self.x)
        pv.fit(vae, x, epochs=1, optimizer=lambda p: torch.optim.SGD(p, 1e-12))
        after = vae.prior.pseudo_inputs.detach()
        assert not torch.equal(before, after)
        torch.testing.assert_close(after, after.round(), atol=1e-6, rtol=0)

    def test_random_pseudo_inputs_are_not_replaced(self):
        vae = small_vae(PRIORS["VampPrior"])
        before = vae.prior.pseudo_inputs.detach().clone()
        pv.initialize(vae, self.x)
        assert torch.equal(before, vae.prior.pseudo_inputs)
        assert "prior.started" not in vae.state_dict()


@pytest.mark.parametrize("transform", ["autoregressive", "spline"])
def test_autoregressive_samples_are_accurate_in_float32(transform):
    torch.manual_seed(0)
    prior = priors.FlowPrior(20, transform, flows=2, hidden=(64,))
    for parameter in prior.parameters():
        torch.nn.init.normal_(parameter, std=0.15)
    z = prior().sample((500,)).detach()
    assert bool(z.isfinite().all())
    # map z back to its noise: a standard normal has |ε|² ~ χ²(20)
    noise = z
    for step in reversed(prior().transforms):
        noise = step.inv(noise)
    assert float(noise.detach().square().sum(-1).mean()) == pytest.approx(20, abs=2)


def test_affine_layers_scale_by_at_most_e_squared():
    prior = priors.FlowPrior(4, "autoregressive", flows=1)
    for parameter in prior.parameters():
        torch.nn.init.normal_(parameter, std=30.0)
    _, log_scale = prior.networks[0](torch.randn(100, 4))
    assert 1.9 < float(log_scale.detach().abs().max()) <= 2.0


class TestVampPrior:
    def test_pseudo_inputs_are_clamped_to_the_interval(self):
        vae = small_vae(PRIORS["VampPrior"])
        with torch.no_grad():
            vae.prior.pseudo_inputs.mul_(100).sub_(50)
        z = torch.randn(2)
        clamped = vae.prior.pseudo_inputs.clamp(0, 1)
        assert not torch.equal(clamped, vae.prior.pseudo_inputs)
        expected = vae.posterior(clamped).log_prob(z).logsumexp(0) - math.log(3)
        torch.testing.assert_close(vae.prior().log_prob(z), expected)

    @pytest.mark.parametrize("start", ["random", "data"])
    def test_data_outside_the_interval_raise(self, start):
        vae = small_vae(partial(priors.VampPrior, components=3, start=start))
        message = r"in the interval \(0.0, 1.0\).*from 0 to 9: set its"
        with pytest.raises(ValueError, match=message):
            pv.initialize(vae, torch.tensor([[0.0, 9.0, 1.0]]))
        unbounded = small_vae(partial(priors.VampPrior, components=3, start=start, interval=None))
        pv.initialize(unbounded, torch.tensor([[0.0, 9.0, 1.0]]))

    def test_pseudo_inputs_do_not_change_batch_norm_statistics(self):
        encoder = partial(networks.MLP, hidden=(5,), norm="batch")
        vae = small_vae(PRIORS["VampPrior"], encoder=encoder).train()
        before = copy.deepcopy(dict(vae.named_buffers()))
        vae.prior().log_prob(torch.zeros(2))
        for name, buffer in vae.named_buffers():
            assert torch.equal(buffer, before[name]), name
        assert all(module.training for module in vae.modules())

    def test_scalar_examples(self):
        vae = small_vae(PRIORS["VampPrior"], event_shape=())
        assert vae.prior().log_prob(torch.zeros(2)).shape == ()


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: priors.FlowPrior(4, hidden=()), r"one or more hidden layers; got hidden=\(\)"),
        (lambda: priors.FlowPrior(4, hidden=(0,)), "every number in hidden to be a positive"),
        (lambda: priors.FlowPrior(4, "spline", bins=1001), "expected bins ≤ 1000; got 1001"),
        (lambda: priors.FlowPrior(4, "spline", bound=math.inf), "bound > 0 and finite; got inf"),
        (lambda: priors.StudentT(2, df=math.inf), "expected df > 0 and finite; got inf"),
        (lambda: priors.StudentT(2, df=0.0), "expected df > 0 and finite; got 0.0"),
        (
            lambda: priors.FlowPrior(2, "planar"),
            "expected transform to be coupling, auto.*'planar'",
        ),  # type: ignore[arg-type]
        (lambda: priors.FlowPrior(1), r"expected latent_dim ≥ 2 for coupling.* use autoregressive"),
        (
            lambda: priors.FlowPrior(2, "spline", bound=0.0),
            r"expected bound > 0 and finite; got 0.0",
        ),
        (lambda: priors.FlowPrior(2, "spline", bins=0), "expected bins to be a positive integer"),
        (lambda: priors.FlowPrior(2, flows=0), "expected flows to be a positive integer"),
        (
            lambda: priors.FlowPrior(9, "spline", hidden=(8,)),
            r"at least as wide as the 9 latents; got hidden=\(8,\): use wider layers",
        ),
        (lambda: priors.FlowPrior(9, "spline", hidden=()), r"got hidden=\(\)"),
        (lambda: priors.UniformSphere(1), "expected latent_dim ≥ 2 for latents on the unit sphere"),
        (lambda: priors.VampPrior(2, start="zero"), "expected start to be random or data; got 'z"),  # type: ignore[arg-type]
    ],
)
def test_bad_arguments(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_network_with_several_hidden_layers():
    vae = small_vae(lambda d: priors.FlowPrior(d, "autoregressive", hidden=(7, 9)), encoder=SMALL)
    assert vae.prior().log_prob(torch.zeros(2)).shape == ()
