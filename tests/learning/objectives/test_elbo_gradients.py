"""Gradient options of the ELBO: sticking the landing and MAP estimation of the parameters."""

from __future__ import annotations

import math
from functools import partial

import pyro
import pyro.distributions as dist
import pytest
import torch
from chain import Chain
from components import PRIORS, small_vae
from linear_gaussian import LinearGaussian

import pyro_vae as pv
from pyro_vae.learning.objectives import ELBO, IWAE, MIWAE
from pyro_vae.learning.objectives.base import StepInfo
from pyro_vae.learning.objectives.free_bits import FreeBits
from pyro_vae.learning.schedules import LinearWarmUp

D = torch.float64
X = torch.tensor([[0.0, 1.0, 1.0], [1.0, 0.0, 0.0]], dtype=D)


def _gradients(objective, program, x=X):
    """Return loss and gradients by name, at a fixed seed."""
    with pyro.get_param_store().scope():
        objective.loss(
            program.model, program.guide, x
        )  # selecting the estimator uses random numbers
        program.zero_grad()
        pyro.set_rng_seed(7)
        loss = objective.loss_and_grads(program.model, program.guide, x)
    return loss, _copy_gradients(program)


def _copy_gradients(program):
    return {
        name: torch.zeros_like(p) if p.grad is None else p.grad.clone()
        for name, p in program.named_parameters()
    }


OPTIONS = {
    "plain": {},
    "beta": {"beta": 0.3},
    "beta 0": {"beta": 0.0},
    "during warm-up": {"beta": LinearWarmUp(4)},
    "after warm-up": {"beta": LinearWarmUp(1)},
    "free bits": {"free_bits": 0.1},
    "free bits, sampled": {"free_bits": FreeBits(0.2, 1), "analytic_kl": False},
    "stl": {"gradient": "stl"},
    "stl and beta": {"gradient": "stl", "beta": 0.3},
    "map": {"map_weights": True},
    "all": {"beta": 0.5, "free_bits": 0.1, "map_weights": True},
    "all with stl": {"beta": 0.5, "gradient": "stl", "map_weights": True},
}


@pytest.mark.parametrize("particles", [1, 3])
@pytest.mark.parametrize("name", OPTIONS)
def test_loss_and_grads_agrees_with_differentiable_loss(name, particles):
    vae = small_vae().double()
    objective = ELBO(particles, **OPTIONS[name])
    objective.set_step(StepInfo(epoch=2.0, num_data=10))
    loss, gradients = _gradients(objective, vae)
    with pyro.get_param_store().scope():
        vae.zero_grad()
        pyro.set_rng_seed(7)
        differentiable = objective.differentiable_loss(vae.model, vae.guide, X)
        differentiable.backward()
    assert differentiable.item() == pytest.approx(loss, rel=1e-12)
    for key, gradient in _copy_gradients(vae).items():
        torch.testing.assert_close(gradient, gradients[key])
    analytic = objective.analytic_kl is None and objective.gradient == "standard"
    plain, _ = _gradients(ELBO(particles, analytic_kl=analytic), vae)
    assert loss == pytest.approx(plain, rel=1e-12)


OBSERVED = torch.tensor([1.4, -0.3, 0.6], dtype=D)


class TestStickingTheLanding:
    @pytest.mark.parametrize(("particles", "other"), [(1, IWAE(1, "stl")), (4, MIWAE(4, 1, "stl"))])
    def test_equals_the_iwae_with_one_sample(self, particles, other):
        program = Chain()
        loss, ours = _gradients(ELBO(particles, gradient="stl"), program, OBSERVED)
        expected_loss, expected = _gradients(other, program, OBSERVED)
        assert loss == pytest.approx(expected_loss, rel=1e-12)
        for name, gradient in expected.items():
            torch.testing.assert_close(ours[name], gradient)

    @pytest.mark.parametrize("beta", [0.0, 0.3, 2.0])
    def test_with_beta_equals_the_explicit_derivative(self, beta):
        """The guide's parameters are fixed in log q, but not in the samples."""
        program = Chain()
        _, ours = _gradients(ELBO(beta=beta, gradient="stl"), program, OBSERVED)
        program.zero_grad()
        pyro.set_rng_seed(7)
        n, zero = len(OBSERVED), torch.zeros((), dtype=D)
        z1 = dist.Normal(program.a * OBSERVED, program.s.exp().expand(n)).rsample()
        z2 = dist.Normal(program.b * z1, program.t.exp().expand(n)).rsample()
        a, b, s, t = (p.detach() for p in (program.a, program.b, program.s, program.t))
        log_q = dist.Normal(a * OBSERVED, s.exp()).log_prob(z1)
        log_q = log_q + dist.Normal(b * z1, t.exp()).log_prob(z2)
        log_p = dist.Normal(zero, 1.0).log_prob(z2)
        log_p = log_p + dist.Normal(program.v * z2, 0.6).log_prob(z1)
        log_x = dist.Normal(program.w * z1, 0.7).log_prob(OBSERVED)
        (-log_x - beta * (log_p - log_q)).sum().backward()
        for name, gradient in _copy_gradients(program).items():
            torch.testing.assert_close(ours[name], gradient)

    def test_guide_gradient_vanishes_at_the_posterior(self):
        program = Chain()
        v, w = 0.8, 1.3
        prior = v**2 + 0.36
        precision = 1 / prior + w**2 / 0.49
        with torch.no_grad():
            program.a.fill_(w / 0.49 / precision)
            program.s.fill_(-0.5 * math.log(precision))
            program.b.fill_(v / prior)
            program.t.fill_(0.5 * math.log(0.36 / prior))
        _, ours = _gradients(ELBO(3, gradient="stl"), program, OBSERVED)
        _, standard = _gradients(ELBO(3, analytic_kl=False), program, OBSERVED)
        for name in "abst":
            assert ours[name].abs() < 1e-12
            assert standard[name].abs() > 1e-3

    def test_rejects_guides_that_are_not_reparameterised(self):
        def model(x):
            with pyro.plate("data", len(x)):
                c = pyro.sample("c", dist.Bernoulli(0.5))
                pyro.sample("x", dist.Normal(c, 1.0), obs=x)

        def guide(x):
            with pyro.plate("data", len(x)):
                pyro.sample("c", dist.Bernoulli(0.3))

        with pytest.raises(ValueError, match=r"site 'c' .* is not: use gradient 'standard'"):
            ELBO(gradient="stl").loss_and_grads(model, guide, torch.zeros(3))


def _model_only(vae):
    """Return the names of the parameters that only the model uses."""
    return [name for name, _ in vae.named_parameters() if not name.startswith("posterior")]


class TestMap:
    @pytest.mark.parametrize("prior", ["StandardNormal", "DiagonalNormal", "VampPrior"])
    @pytest.mark.parametrize("gradient", ["standard", "stl"])
    @pytest.mark.parametrize("beta", [1.0, 0.3])
    def test_adds_the_parameter_prior_scaled_to_the_minibatch(self, prior, gradient, beta):
        """∂ log N(θ; 0, I) / ∂θ = −θ, for parameters that only the model uses."""
        vae = small_vae(PRIORS[prior]).double()
        objectives = [ELBO(beta=beta, gradient=gradient, map_weights=m) for m in (False, True)]
        for objective in objectives:
            objective.set_step(StepInfo(num_data=10))
        (loss, without), (reported, ours) = (_gradients(o, vae) for o in objectives)
        assert reported == loss  # log p(θ) is not part of the bound
        model_only = _model_only(vae)
        assert model_only and len(model_only) < len(ours)
        for name, parameter in vae.named_parameters():
            fraction = 2 / 10 if name in model_only else 0.0
            expected = without[name] + fraction * parameter.detach()
            torch.testing.assert_close(ours[name], expected)

    def test_an_epoch_counts_the_prior_once(self):
        """Sum the gradients of a fit without updates, on 10 examples in minibatches of 4."""
        sums = []
        for map_weights in (False, True):
            torch.manual_seed(3)
            vae, total = small_vae().double(), {}

            class GradientSum(torch.optim.SGD):
                def step(self, closure=None, total=total):
                    for group in self.param_groups:
                        for p in group["params"]:
                            total[p] = total.get(p, 0.0) + p.grad

            x = torch.bernoulli(torch.full((10, 3), 0.5, dtype=D))
            objective = ELBO(map_weights=map_weights)
            pv.fit(vae, x, objective=objective, epochs=1, batch_size=4, optimizer=GradientSum)
            sums.append({name: total[p] for name, p in vae.named_parameters()})
        model_only = _model_only(vae)
        for name, parameter in vae.named_parameters():
            expected = parameter.detach() if name in model_only else torch.zeros_like(parameter)
            torch.testing.assert_close(sums[1][name] - sums[0][name], expected)

    def test_constrained_parameters_enter_unconstrained(self):
        def model(x):
            scale = pyro.param("scale", torch.tensor(2.0), constraint=dist.constraints.positive)
            with pyro.plate("data", len(x)):
                z = pyro.sample("z", dist.Normal(0.0, 1.0))
                pyro.sample("x", dist.Normal(z, scale), obs=x)

        def guide(x):
            with pyro.plate("data", len(x)):
                pyro.sample("z", dist.Normal(pyro.param("m", torch.zeros(())), 1.0))

        gradients = []
        for map_weights in (False, True):
            objective = ELBO(map_weights=map_weights)
            objective.set_step(StepInfo(num_data=3))
            objective.loss(model, guide, torch.ones(3))
            leaf = pyro.param("scale").unconstrained()
            leaf.grad = None
            pyro.set_rng_seed(7)
            objective.loss_and_grads(model, guide, torch.ones(3))
            gradients.append(float(leaf.grad))
        assert gradients[1] - gradients[0] == pytest.approx(math.log(2.0), rel=1e-5)

    @pytest.mark.parametrize("gradient", ["standard", "stl"])
    def test_ignores_another_program_with_the_same_parameter_names(self, gradient):
        """With plain SVI, Pyro's global parameter store still holds the first program."""
        other, vae = (small_vae().double() for _ in range(2))
        objectives = [ELBO(gradient=gradient, map_weights=m) for m in (False, True)]
        with pyro.get_param_store().scope():
            ELBO().loss(other.model, other.guide, X)
            rows = []
            for objective in objectives:
                objective.set_step(StepInfo(num_data=2))
                objective.loss(vae.model, vae.guide, X)
                vae.zero_grad()
                pyro.set_rng_seed(7)
                objective.loss_and_grads(vae.model, vae.guide, X)
                rows.append(_copy_gradients(vae))
        assert all(p.grad is None for p in other.parameters())
        for name, parameter in vae.named_parameters():
            fraction = 1.0 if name in _model_only(vae) else 0.0
            expected = rows[0][name] + fraction * parameter.detach()
            torch.testing.assert_close(rows[1][name], expected)

    def test_requires_the_size_of_the_training_set(self):
        vae = small_vae().double()
        objective = ELBO(map_weights=True)
        objective.loss(vae.model, vae.guide, X)  # the loss does not need it
        for run in (objective.loss_and_grads, objective.differentiable_loss):
            message = r"call objective.set_step\(StepInfo\(num_data=…\)\)"
            with pytest.raises(ValueError, match=message):
                run(vae.model, vae.guide, X)

    def test_rejects_models_without_own_parameters(self):
        program = LinearGaussian(2)
        objective = ELBO(map_weights=True)
        objective.set_step(StepInfo(num_data=3))
        with pytest.raises(ValueError, match="that only the model uses, for map_weights; got none"):
            objective.loss_and_grads(program.model, program.guide, program.sample(3))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"gradient": "dreg"}, "expected gradient to be standard or stl; got 'dreg'"),
        ({"beta": float("nan")}, "expected beta ≥ 0 and finite, or a schedule; got nan"),
        ({"beta": float("inf")}, "expected beta ≥ 0 and finite, or a schedule; got inf"),
        ({"map_weights": 1.0}, "expected map_weights to be true or false; got 1.0"),
        (
            {"gradient": "stl", "free_bits": 0.1},
            r"expected no free bits with gradient 'stl', .* got FreeBits\(nats=0.1, groups=None\)",
        ),
        (
            {"gradient": "stl", "analytic_kl": True},
            "expected analytic_kl false or null with gradient 'stl', .* got True",
        ),
    ],
)
def test_rejects_bad_options(options, message):
    with pytest.raises(ValueError, match=message):
        ELBO(**options)


@pytest.mark.parametrize("name", ["all", "all with stl"])
def test_trains_a_vae(name):
    vae = small_vae()
    x = torch.bernoulli(torch.rand(1, 3)).expand(50, 3)
    adam = partial(torch.optim.Adam, lr=0.02)
    history = pv.fit(vae, x, objective=ELBO(**OPTIONS[name]), epochs=80, optimizer=adam)
    # for 50 copies of one example log p(x) → 0, up to the parameter prior
    assert history["elbo"][0] < -1.5 and history["elbo"][-1] > -0.6
