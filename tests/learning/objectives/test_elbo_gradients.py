"""The ELBO's other gradients: sticking the landing, and MAP for the model's own weights."""

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
    """Loss and gradients by name, at a fixed seed; 0 for what is not reached."""
    with pyro.get_param_store().scope():
        objective.loss(program.model, program.guide, x)  # the choice itself draws
        program.zero_grad()
        pyro.set_rng_seed(7)
        loss = objective.loss_and_grads(program.model, program.guide, x)
    return loss, _noted(program)


def _noted(program):
    return {
        name: torch.zeros_like(p) if p.grad is None else p.grad.clone()
        for name, p in program.named_parameters()
    }


OPTIONS = {
    "plain": {},
    "beta": {"beta": 0.3},
    "beta of zero": {"beta": 0.0},
    "warming up": {"beta": LinearWarmUp(4)},
    "warmed up": {"beta": LinearWarmUp(1)},
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
def test_both_ways_to_the_gradient_agree_and_report_the_elbo(name, particles):
    vae = small_vae().double()
    objective = ELBO(particles, **OPTIONS[name])
    objective.at(StepInfo(epoch=2.0, num_data=10))
    loss, gradients = _gradients(objective, vae)
    with pyro.get_param_store().scope():
        vae.zero_grad()
        pyro.set_rng_seed(7)
        differentiable = objective.differentiable_loss(vae.model, vae.guide, X)
        differentiable.backward()
    assert differentiable.item() == pytest.approx(loss, rel=1e-12)
    for key, gradient in _noted(vae).items():
        torch.testing.assert_close(gradient, gradients[key])
    analytic = objective.analytic_kl is None and objective.gradient == "standard"
    plain, _ = _gradients(ELBO(particles, analytic_kl=analytic), vae)
    assert loss == pytest.approx(plain, rel=1e-12)


OBSERVED = torch.tensor([1.4, -0.3, 0.6], dtype=D)


class TestStickingTheLanding:
    @pytest.mark.parametrize(("particles", "other"), [(1, IWAE(1, "stl")), (4, MIWAE(4, 1, "stl"))])
    def test_is_that_of_the_iwae_with_one_draw(self, particles, other):
        program = Chain()
        loss, ours = _gradients(ELBO(particles, gradient="stl"), program, OBSERVED)
        expected_loss, expected = _gradients(other, program, OBSERVED)
        assert loss == pytest.approx(expected_loss, rel=1e-12)
        for name, gradient in expected.items():
            torch.testing.assert_close(ours[name], gradient)

    @pytest.mark.parametrize("beta", [0.0, 0.3, 2.0])
    def test_with_beta_is_the_derivative_of_the_terms_written_out(self, beta):
        """log q has the guide's parameters held, and the draws have not."""
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
        for name, gradient in _noted(program).items():
            torch.testing.assert_close(ours[name], gradient)

    def test_at_the_posterior_nothing_is_left_of_the_guide_s(self):
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

    def test_a_guide_that_is_not_reparameterised_is_refused(self):
        def model(x):
            with pyro.plate("data", len(x)):
                c = pyro.sample("c", dist.Bernoulli(0.5))
                pyro.sample("x", dist.Normal(c, 1.0), obs=x)

        def guide(x):
            with pyro.plate("data", len(x)):
                pyro.sample("c", dist.Bernoulli(0.3))

        with pytest.raises(ValueError, match=r"site 'c' .* is not: use gradient 'standard'"):
            ELBO(gradient="stl").loss_and_grads(model, guide, torch.zeros(3))


def _own(vae):
    """The names of the parameters that the model alone uses."""
    return [name for name, _ in vae.named_parameters() if not name.startswith("posterior")]


class TestMap:
    @pytest.mark.parametrize("prior", ["StandardNormal", "DiagonalNormal", "VampPrior"])
    @pytest.mark.parametrize("gradient", ["standard", "stl"])
    @pytest.mark.parametrize("beta", [1.0, 0.3])
    def test_adds_the_minibatch_s_share_of_the_weights_prior(self, prior, gradient, beta):
        """∂ log N(θ; 0, I) / ∂θ = −θ, for the model's own parameters and no others."""
        vae = small_vae(PRIORS[prior]).double()
        objectives = [ELBO(beta=beta, gradient=gradient, map_weights=m) for m in (False, True)]
        for objective in objectives:
            objective.at(StepInfo(num_data=10))
        (loss, without), (reported, ours) = (_gradients(o, vae) for o in objectives)
        assert reported == loss  # log p(θ) is not part of the bound
        own = _own(vae)
        assert own and len(own) < len(ours)
        for name, parameter in vae.named_parameters():
            share = 2 / 10 if name in own else 0.0
            expected = without[name] + share * parameter.detach()
            torch.testing.assert_close(ours[name], expected)

    def test_an_epoch_of_minibatches_has_one_prior(self):
        """By a fit that moves nothing and sums up the gradients it is given; 10 data by 4."""
        sums = []
        for map_weights in (False, True):
            torch.manual_seed(3)
            vae, total = small_vae().double(), {}

            class Summed(torch.optim.SGD):
                def step(self, closure=None, total=total):
                    for group in self.param_groups:
                        for p in group["params"]:
                            total[p] = total.get(p, 0.0) + p.grad

            x = torch.bernoulli(torch.full((10, 3), 0.5, dtype=D))
            objective = ELBO(map_weights=map_weights)
            pv.fit(vae, x, objective=objective, epochs=1, batch_size=4, optimizer=Summed)
            sums.append({name: total[p] for name, p in vae.named_parameters()})
        own = _own(vae)
        for name, parameter in vae.named_parameters():
            expected = parameter.detach() if name in own else torch.zeros_like(parameter)
            torch.testing.assert_close(sums[1][name] - sums[0][name], expected)

    def test_a_constrained_parameter_is_taken_unconstrained(self):
        def model(x):
            scale = pyro.param("scale", torch.tensor(2.0), constraint=dist.constraints.positive)
            with pyro.plate("data", len(x)):
                z = pyro.sample("z", dist.Normal(0.0, 1.0))
                pyro.sample("x", dist.Normal(z, scale), obs=x)

        def guide(x):
            with pyro.plate("data", len(x)):
                pyro.sample("z", dist.Normal(pyro.param("m", torch.zeros(())), 1.0))

        slopes = []
        for map_weights in (False, True):
            objective = ELBO(map_weights=map_weights)
            objective.at(StepInfo(num_data=3))
            objective.loss(model, guide, torch.ones(3))
            leaf = pyro.param("scale").unconstrained()
            leaf.grad = None
            pyro.set_rng_seed(7)
            objective.loss_and_grads(model, guide, torch.ones(3))
            slopes.append(float(leaf.grad))
        assert slopes[1] - slopes[0] == pytest.approx(math.log(2.0), rel=1e-5)

    @pytest.mark.parametrize("gradient", ["standard", "stl"])
    def test_another_program_of_the_same_names_is_not_taken_for_it(self, gradient):
        """Pyro's store remembers the first; plain SVI has no store of its own."""
        other, vae = (small_vae().double() for _ in range(2))
        objectives = [ELBO(gradient=gradient, map_weights=m) for m in (False, True)]
        with pyro.get_param_store().scope():
            ELBO().loss(other.model, other.guide, X)
            rows = []
            for objective in objectives:
                objective.at(StepInfo(num_data=2))
                objective.loss(vae.model, vae.guide, X)
                vae.zero_grad()
                pyro.set_rng_seed(7)
                objective.loss_and_grads(vae.model, vae.guide, X)
                rows.append(_noted(vae))
        assert all(p.grad is None for p in other.parameters())
        for name, parameter in vae.named_parameters():
            share = 1.0 if name in _own(vae) else 0.0
            expected = rows[0][name] + share * parameter.detach()
            torch.testing.assert_close(rows[1][name], expected)

    def test_without_the_number_of_data_it_says_how(self):
        vae = small_vae().double()
        objective = ELBO(map_weights=True)
        objective.loss(vae.model, vae.guide, X)  # the bound itself needs none
        for run in (objective.loss_and_grads, objective.differentiable_loss):
            with pytest.raises(ValueError, match=r"call objective.at\(StepInfo\(num_data=…\)\)"):
                run(vae.model, vae.guide, X)

    def test_a_model_without_parameters_of_its_own_is_refused(self):
        program = LinearGaussian(2)
        objective = ELBO(map_weights=True)
        objective.at(StepInfo(num_data=3))
        with pytest.raises(ValueError, match="the model uses and the guide does not; got none"):
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
def test_refused_options(options, message):
    with pytest.raises(ValueError, match=message):
        ELBO(**options)


@pytest.mark.parametrize("name", ["all", "all with stl"])
def test_fit_learns_with_it(name):
    vae = small_vae()
    x = torch.bernoulli(torch.rand(1, 3)).expand(50, 3)
    adam = partial(torch.optim.Adam, lr=0.02)
    history = pv.fit(vae, x, objective=ELBO(**OPTIONS[name]), epochs=80, optimizer=adam)
    # 50 copies of one datum have log p(x) → 0, but for the weights' prior
    assert history["elbo"][0] < -1.5 and history["elbo"][-1] > -0.6
