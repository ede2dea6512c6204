"""Auxiliary losses: ``pyro.factor`` and other observed sites of the guide.

They are not part of q(z|x), so no bound contains them; their log-density is added to the loss that
is minimised, by every objective.
"""

from __future__ import annotations

from functools import partial

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.nn import PyroModule, pyro_method
from torch import nn

import pyro_vae as pv
from pyro_vae.learning.objectives import (
    CIWAE,
    ELBO,
    IWAE,
    MIWAE,
    PIWAE,
    EnumeratedELBO,
    MonteCarloEM,
    Renyi,
    ReweightedWakeSleep,
    WakeSleep,
)
from pyro_vae.learning.objectives.base import StepInfo

D = torch.float64
X = torch.tensor([1.4, -0.3, 0.6], dtype=D)
SCALE = 0.4
MASK = torch.tensor([True, False, True])


class Supervised(PyroModule):
    """z ~ N(0, 1), x ~ N(w z, 1), and a loss of the guide: ``kind`` is how it is written."""

    def __init__(self, kind=None):
        super().__init__()
        self.kind = kind
        self.w, self.a, self.c = (nn.Parameter(torch.tensor(v, dtype=D)) for v in (1.3, 0.4, 0.7))

    def auxiliary(self, x):
        return torch.nn.functional.softplus(self.c * x + self.a)

    @pyro_method
    def model(self, x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros((), dtype=D), 1.0))
            pyro.sample("x", dist.Normal(self.w * z, 1.0), obs=x)

    @pyro_method
    def guide(self, x):
        with pyro.plate("data", len(x)):
            if self.kind == "observed":
                fn = dist.Bernoulli(logits=-self.c * x - self.a)
                pyro.sample("class", fn, obs=torch.ones_like(x), infer={"is_auxiliary": True})
            elif self.kind is not None:
                with poutine.scale(scale=SCALE), poutine.mask(mask=MASK):
                    rsample = self.kind == "reparameterised"
                    pyro.factor("class", self.auxiliary(x), has_rsample=rsample)
            pyro.sample("z", dist.Normal(self.a * x, 0.8))

    def loss(self, x):
        """Return what the guide adds to the loss."""
        if self.kind == "observed":
            return -self.auxiliary(x).sum()
        return SCALE * (self.auxiliary(x) * MASK).sum()


OBJECTIVES = {
    "ELBO": ELBO,
    "ELBO, sampled": partial(ELBO, 3, analytic_kl=False),
    "ELBO, stl": partial(ELBO, gradient="stl"),
    "ELBO, free bits and beta": partial(ELBO, free_bits=0.01, beta=0.5),
    "EnumeratedELBO": partial(EnumeratedELBO, 2),
    "EnumeratedELBO, beta": partial(EnumeratedELBO, beta=0.5),
    "IWAE": partial(IWAE, 3),
    "IWAE, dreg": partial(IWAE, 3, "dreg"),
    "MIWAE, stl": partial(MIWAE, 2, 3, "stl"),
    "PIWAE": partial(PIWAE, 2, 3),
    "PIWAE, dreg": partial(PIWAE, 2, 3, "dreg"),
    "CIWAE": partial(CIWAE, 3),
    "Renyi": partial(Renyi, 0.5, 3),
    "ReweightedWakeSleep": partial(ReweightedWakeSleep, 3),
    "WakeSleep": WakeSleep,
    "MonteCarloEM": partial(MonteCarloEM, warm_up=2, num_steps=2),
}


def _step(make, program, x):
    objective = make()
    objective.set_step(StepInfo(0.0))
    objective.loss(program.model, program.guide, x)
    pyro.set_rng_seed(7)
    loss = objective.loss_and_grads(program.model, program.guide, x)
    pyro.set_rng_seed(7)
    return loss, {n: p.grad for n, p in program.named_parameters()}


@pytest.mark.parametrize("kind", ["reparameterised", "sampled", "observed"])
@pytest.mark.parametrize("name", OBJECTIVES)
def test_every_objective_adds_the_loss_to_its_gradient_only(name, kind):
    plain_loss, plain = _step(OBJECTIVES[name], Supervised(), X)
    program = Supervised(kind)
    loss, gradients = _step(OBJECTIVES[name], program, X)
    assert loss == pytest.approx(plain_loss, rel=1e-12)
    expected = torch.autograd.grad(program.loss(X), (program.a, program.c))
    for parameter, extra in zip("ac", expected, strict=True):
        before = 0.0 if plain[parameter] is None else plain[parameter]
        torch.testing.assert_close(gradients[parameter], before + extra)
        assert abs(extra) > 0.01
    torch.testing.assert_close(gradients["w"], plain["w"])


class Drawn(PyroModule):
    """A loss of the guide that depends on its samples: c y + d z², with one weight per example."""

    def __init__(self, size, weight=1.0, enumerate_y=False):
        super().__init__()
        self.weight, self.infer = weight, {"enumerate": "parallel"} if enumerate_y else {}
        for name, value in {"u": 0.3, "a": 0.4, "s": -0.3}.items():
            setattr(self, name, nn.Parameter(torch.full((size,), value, dtype=D)))

    @pyro_method
    def model(self, x):
        with pyro.plate("data", len(x)):
            y = pyro.sample("y", dist.Bernoulli(torch.tensor(0.4, dtype=D)))
            z = pyro.sample("z", dist.Normal(torch.zeros((), dtype=D), 1.0))
            pyro.sample("x", dist.Normal(y + z, 1.0), obs=x)

    @pyro_method
    def guide(self, x):
        with pyro.plate("data", len(x)):
            y = pyro.sample("y", dist.Bernoulli(logits=self.u), infer=self.infer)
            z = pyro.sample("z", dist.Normal(self.a * x, self.s.exp()))
            if self.weight:
                pyro.factor("f", self.weight * (y + z**2), has_rsample=True)


@pytest.mark.parametrize(
    "name",
    ["ELBO, sampled", "EnumeratedELBO", "IWAE", "PIWAE", "Renyi", "CIWAE"],
)
def test_losses_that_depend_on_samples_have_the_right_mean_gradient(name):
    """E_q[y + z²] = σ(u) + (a x)² + e^2s, at 5 standard errors of the difference of two means."""
    size, means, errors = 40_000, [], []
    x = torch.full((size,), 1.4, dtype=D)
    for weight in (0.0, 1.0):
        program, objective = Drawn(size, weight, name == "EnumeratedELBO"), OBJECTIVES[name]()
        objective.loss_and_grads(program.model, program.guide, x)
        gradients = torch.stack([p.grad for p in program.parameters()], 1)
        means.append(gradients.mean(0))
        errors.append(gradients.var(0) / size)
    u, a, s = (torch.tensor(v, dtype=D, requires_grad=True) for v in (0.3, 0.4, -0.3))
    expected = torch.autograd.grad(u.sigmoid() + (a * 1.4) ** 2 + (2 * s).exp(), (u, a, s))
    difference = means[1] - means[0] - torch.stack(expected)
    assert (difference.abs() < 5 * sum(errors).sqrt() + 1e-9).all()


def test_dreg_and_stl_do_not_weigh_the_loss():
    """The same at a reparameterised latent, without y, for gradients that weigh samples."""

    class Continuous(Drawn):
        @pyro_method
        def model(self, x):
            with pyro.plate("data", len(x)):
                z = pyro.sample("z", dist.Normal(torch.zeros((), dtype=D), 1.0))
                pyro.sample("x", dist.Normal(z, 1.0), obs=x)

        @pyro_method
        def guide(self, x):
            with pyro.plate("data", len(x)):
                z = pyro.sample("z", dist.Normal(self.a * x, self.s.exp()))
                if self.weight:
                    pyro.factor("f", self.weight * z**2, has_rsample=True)

    x = torch.full((5,), 1.4, dtype=D)
    for make in (partial(IWAE, 3, "dreg"), partial(ELBO, 3, gradient="stl")):
        gradients = []
        for weight in (0.0, 1.0):
            program = Continuous(5, weight)
            _, by_name = _step(make, program, x)
            gradients.append(by_name)
        pyro.set_rng_seed(7)
        program = Continuous(5)
        with pyro.plate("particles", 3, dim=-2), pyro.plate("data", 5):
            z = pyro.sample("z", dist.Normal(program.a * x, program.s.exp()))
        expected = torch.autograd.grad((z**2).mean(0).sum(), (program.a, program.s))
        for name, extra in zip("as", expected, strict=True):
            torch.testing.assert_close(gradients[1][name], gradients[0][name] + extra)


def test_model_factors_stay_in_the_bound():
    class Weighted(Supervised):
        @pyro_method
        def model(self, x):
            with pyro.plate("data", len(x)):
                z = pyro.sample("z", dist.Normal(torch.zeros((), dtype=D), 1.0))
                pyro.sample("x", dist.Normal(self.w * z, 1.0), obs=x)
                pyro.factor("bonus", torch.full((len(x),), 0.25, dtype=D))

    losses = []
    for program in (Supervised(), Weighted()):
        objective = ELBO(analytic_kl=False)
        objective.loss(program.model, program.guide, X)
        pyro.set_rng_seed(3)
        losses.append(objective.loss(program.model, program.guide, X))
    assert losses[1] == pytest.approx(losses[0] - 3 * 0.25)


def test_history_does_not_contain_the_loss():
    histories = []
    for kind in (None, "reparameterised"):
        x = X.repeat(10)
        history = pv.fit(
            Unmasked(kind), x, valid=x, epochs=2, optimizer=partial(torch.optim.SGD, lr=0.0)
        )
        histories.append([(e["elbo"], e["valid_elbo"]) for e in history.epochs])
    assert histories[0] == histories[1]


class Unmasked(Supervised):
    @pyro_method
    def guide(self, x):
        with pyro.plate("data", len(x)):
            if self.kind:
                pyro.factor("class", 50.0 + self.auxiliary(x), has_rsample=True)
            pyro.sample("z", dist.Normal(self.a * x, 0.8))
