"""The contract of every prior, and what is true of single ones."""

from __future__ import annotations

import copy
import math
from functools import partial

import pytest
import torch
from components import PRIORS, SMALL, kind, small_vae
from densities import coordinate, line, plane_integral

import pyro_vae as pv
from pyro_vae import networks, priors

#: A coupling splits its variables, so there must be two.
LINES = {n: p for n, p in PRIORS.items() if n != "FlowPrior, coupling"}


def _prior(make, degrees):
    """A prior of so many degrees of freedom; on the sphere that is one dimension more."""
    latent_dim = degrees + (kind(make) is priors.UniformSphere)
    vae = small_vae(make, latent_dim=latent_dim).double().eval()
    for parameter in vae.prior.parameters():
        # away from the neutral start of some, whatever it is
        torch.nn.init.normal_(parameter, std=0.3)
    return vae.prior


@pytest.mark.parametrize("make", LINES.values(), ids=LINES)
def test_on_a_line(make):
    fn = _prior(make, 1)()
    along = line(fn, -20.0, 20.0, 8001)
    assert along.integral == pytest.approx(1, abs=2e-3)
    draws = fn.sample((2000,))
    assert draws.shape == (2000, *fn.event_shape)
    assert along.agrees(coordinate(fn, draws))


@pytest.mark.parametrize("make", PRIORS.values(), ids=PRIORS)
class TestContract:
    def test_on_a_plane(self, make):
        assert plane_integral(_prior(make, 2)(), 20.0, 801) == pytest.approx(1, abs=5e-3)

    def test_gradients_reach_every_parameter(self, make):
        prior = small_vae(make).prior
        assert prior().batch_shape == () and prior().event_shape == (2,)
        z = torch.randn(50, 2)
        if not list(prior.parameters()):
            return
        prior().log_prob(z).sum().backward()
        for name, parameter in prior.named_parameters():
            # a mixture of one has nothing to weigh
            if not (name == "logits" and len(parameter) == 1):
                assert parameter.grad is not None and parameter.grad.abs().sum() > 0, name

    @pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
    def test_dtypes(self, make, dtype):
        prior = small_vae(make).to(dtype).prior
        z = prior().sample((4,))
        assert z.dtype == prior().log_prob(z).dtype == dtype

    def test_in_a_vae_nothing_is_registered_twice(self, make):
        vae, other = small_vae(make), small_vae(make)
        assert not [k for k in vae.state_dict() if k.startswith("prior") and "posterior" in k]
        other.load_state_dict(vae.state_dict())
        x = torch.bernoulli(torch.full((4, 3), 0.5))
        values = [pv.evaluate(v, x, num_samples=20).elbo for v in (vae, other)]
        assert values[0] == values[1]


@pytest.mark.parametrize("name", [n for n in PRIORS if n.startswith("FlowPrior")])
class TestFlowPrior:
    def test_log_det_is_autograd_s(self, name):
        # noise → z; its Jacobian from autograd gives the density of z
        prior = _prior(PRIORS[name], 4)
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
            # a flow of single variables would have a diagonal one
            assert jacobian.count_nonzero() > 4

    def test_learns_a_density_that_is_not_normal(self, name):
        # a ring, of entropy log 4π + log(0.1 √(2πe)) = 1.65; the best normal has log 4πe = 3.53
        torch.manual_seed(0)
        angle = 6.2831853 * torch.rand(1000)
        ring = 2 * torch.stack([angle.cos(), angle.sin()], -1) + 0.1 * torch.randn(1000, 2)
        make = kind(PRIORS[name])
        transform = PRIORS[name].keywords.get("transform", "coupling")
        prior = make(2, transform=transform, flows=4, hidden=(32,))
        optimizer = torch.optim.Adam(prior.parameters(), 0.005)
        for _ in range(400):
            optimizer.zero_grad()
            loss = -prior().log_prob(ring).mean()
            loss.backward()
            optimizer.step()
        normal = torch.distributions.MultivariateNormal(ring.mean(0), ring.T.cov())
        assert -loss.item() > float(normal.log_prob(ring).mean()) + 0.5


class TestVampPriorFromData:
    x = torch.arange(30.0).reshape(10, 3) / 30

    def test_pseudo_inputs_are_training_data(self):
        vae = small_vae(PRIORS["VampPrior, from data"])
        pv.initialize(vae, self.x)
        rows = {tuple(row.tolist()) for row in vae.prior.pseudo_inputs}
        assert len(rows) == 2 and rows <= {tuple(row.tolist()) for row in self.x}

    def test_more_of_them_than_data(self):
        vae = small_vae(partial(priors.VampPrior, components=25, start="data"))
        pv.initialize(vae, self.x)
        rows = {tuple(row.tolist()) for row in vae.prior.pseudo_inputs}
        assert rows <= {tuple(row.tolist()) for row in self.x}

    def test_learned_ones_are_kept_when_learning_goes_on(self):
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

    def test_fit_starts_them(self):
        vae = small_vae(PRIORS["VampPrior, from data"])
        before = vae.prior.pseudo_inputs.detach().clone()
        x = torch.bernoulli(self.x)
        pv.fit(vae, x, epochs=1, optimizer=lambda p: torch.optim.SGD(p, 1e-12))
        after = vae.prior.pseudo_inputs.detach()
        assert not torch.equal(before, after)
        torch.testing.assert_close(after, after.round(), atol=1e-6, rtol=0)

    def test_random_ones_are_not_touched(self):
        vae = small_vae(PRIORS["VampPrior"])
        before = vae.prior.pseudo_inputs.detach().clone()
        pv.initialize(vae, self.x)
        assert torch.equal(before, vae.prior.pseudo_inputs)
        assert "prior.started" not in vae.state_dict()


@pytest.mark.parametrize("transform", ["autoregressive", "spline"])
def test_draws_of_an_autoregressive_flow_are_exact_in_single_precision(transform):
    torch.manual_seed(0)
    prior = priors.FlowPrior(20, transform, flows=2, hidden=(64,))
    for parameter in prior.parameters():
        torch.nn.init.normal_(parameter, std=0.15)
    z = prior().sample((500,)).detach()
    assert bool(z.isfinite().all())
    # from z back to the noise it was made of: a standard normal has |ε|² ~ χ²(20)
    noise = z
    for step in reversed(prior().transforms):
        noise = step.inv(noise)
    assert float(noise.detach().square().sum(-1).mean()) == pytest.approx(20, abs=2)


def test_an_affine_layer_scales_by_e_squared_at_most():
    prior = priors.FlowPrior(4, "autoregressive", flows=1)
    for parameter in prior.parameters():
        torch.nn.init.normal_(parameter, std=30.0)
    _, log_scale = prior.networks[0](torch.randn(100, 4))
    assert 1.9 < float(log_scale.detach().abs().max()) <= 2.0


class TestVampPrior:
    def test_pseudo_inputs_are_kept_in_the_interval(self):
        vae = small_vae(PRIORS["VampPrior"])
        with torch.no_grad():
            vae.prior.pseudo_inputs.mul_(100).sub_(50)
        z = torch.randn(2)
        inside = vae.prior.pseudo_inputs.clamp(0, 1)
        assert not torch.equal(inside, vae.prior.pseudo_inputs)
        expected = vae.posterior(inside).log_prob(z).logsumexp(0) - math.log(3)
        torch.testing.assert_close(vae.prior().log_prob(z), expected)

    @pytest.mark.parametrize("start", ["random", "data"])
    def test_data_outside_of_the_interval_are_refused(self, start):
        vae = small_vae(partial(priors.VampPrior, components=3, start=start))
        message = r"in the interval \(0.0, 1.0\).*from 0 to 9: set its"
        with pytest.raises(ValueError, match=message):
            pv.initialize(vae, torch.tensor([[0.0, 9.0, 1.0]]))
        wide = small_vae(partial(priors.VampPrior, components=3, start=start, interval=None))
        pv.initialize(wide, torch.tensor([[0.0, 9.0, 1.0]]))

    def test_pseudo_inputs_are_no_data_to_batch_norm(self):
        encoder = partial(networks.MLP, hidden=(5,), norm="batch")
        vae = small_vae(PRIORS["VampPrior"], encoder=encoder).train()
        before = copy.deepcopy(dict(vae.named_buffers()))
        vae.prior().log_prob(torch.zeros(2))
        for name, buffer in vae.named_buffers():
            assert torch.equal(buffer, before[name]), name
        assert all(module.training for module in vae.modules())

    def test_single_numbers_as_data(self):
        vae = small_vae(PRIORS["VampPrior"], event_shape=())
        assert vae.prior().log_prob(torch.zeros(2)).shape == ()


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: priors.FlowPrior(4, hidden=()), r"one or more hidden layers; got hidden=\(\)"),
        (lambda: priors.FlowPrior(4, hidden=(0,)), "every width in hidden to be a positive"),
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
            r"at least as wide as the 9 latents; got hidden=\(8,\): widen them",
        ),
        (lambda: priors.FlowPrior(9, "spline", hidden=()), r"got hidden=\(\)"),
        (lambda: priors.UniformSphere(1), "expected latent_dim ≥ 2 for latents on the unit sphere"),
        (lambda: priors.VampPrior(2, start="zero"), "expected start to be random or data; got 'z"),  # type: ignore[arg-type]
    ],
)
def test_bad_arguments(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_a_network_of_more_hidden_layers():
    vae = small_vae(lambda d: priors.FlowPrior(d, "autoregressive", hidden=(7, 9)), encoder=SMALL)
    assert vae.prior().log_prob(torch.zeros(2)).shape == ()
