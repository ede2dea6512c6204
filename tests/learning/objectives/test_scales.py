"""``poutine.scale`` in discrete and hierarchical programs, in Monte Carlo EM, and in reports.

See test_gradients.py for the mean gradients of a program with one normal latent.
"""

from __future__ import annotations

import math
from functools import partial

import pyro
import pyro.distributions as dist
import pytest
import torch
from chain import Chain
from pyro import poutine
from pyro.infer import Trace_ELBO
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
from pyro_vae.learning.objectives.free_bits import FreeBits

D = torch.float64
SEEDS, X = 40_000, 0.8
PARAMETERS = {"p": 0.4, "m": 1.3, "u": 0.7, "v": -0.4}
#: Scales of y and x in the model, and of y in the guide.
SCALE_Y, SCALE_X, SCALE_Q = 0.3, 1.4, 0.6


class Coin(PyroModule):
    """y ~ Bernoulli(p), x ~ N(m y, 1), q(y|x) = Bernoulli(u x + v), with scales at all sites."""

    def __init__(self, size, enumerate_y=False):
        super().__init__()
        self.infer = {"enumerate": "parallel"} if enumerate_y else {}
        for name, value in PARAMETERS.items():
            setattr(self, name, nn.Parameter(torch.full((size,), value, dtype=D)))

    @pyro_method
    def model(self, x):
        with pyro.plate("data", len(x)):
            with poutine.scale(scale=SCALE_Y):
                y = pyro.sample("y", dist.Bernoulli(logits=self.p))
            with poutine.scale(scale=SCALE_X):
                pyro.sample("x", dist.Normal(self.m * y, 1.0), obs=x)

    @pyro_method
    def guide(self, x):
        with pyro.plate("data", len(x)), poutine.scale(scale=SCALE_Q):
            pyro.sample("y", dist.Bernoulli(logits=self.u * x + self.v), infer=self.infer)


def exact(bound, k, scaled):
    """Return the parameters and the mean of a bound over all 2^k outcomes of k samples."""
    p = {n: torch.tensor(v, dtype=D, requires_grad=True) for n, v in PARAMETERS.items()}
    scale_y, scale_x, scale_q = (SCALE_Y, SCALE_X, SCALE_Q) if scaled else (1, 1, 1)
    y = torch.cartesian_prod(*[torch.arange(2, dtype=D)] * k).reshape(-1, k).T
    sign = 2 * y - 1
    log_q = nn.functional.logsigmoid(sign * (p["u"] * X + p["v"]))
    log_y = nn.functional.logsigmoid(sign * p["p"])
    log_x = -0.5 * (X - p["m"] * y) ** 2 - 0.5 * math.log(2 * math.pi)
    values = bound(scale_y * log_y + scale_x * log_x - scale_q * log_q)
    return p, (log_q.sum(0).exp() * values).sum()


DISCRETE = {
    "ELBO": (partial(ELBO, analytic_kl=False), IWAE(1)),
    "IWAE": (partial(IWAE, 3), IWAE(3)),
    "MIWAE": (partial(MIWAE, 3, 2), IWAE(2)),
    "CIWAE": (partial(CIWAE, 3, 0.3), CIWAE(3, 0.3)),
    "Renyi": (partial(Renyi, 0.5, 2), Renyi(0.5, 2)),
    "EnumeratedELBO": (EnumeratedELBO, IWAE(1)),
}


@pytest.mark.parametrize("name", DISCRETE)
def test_mean_gradient_of_discrete_latents_is_exact(name):
    """At 5 standard errors of 40,000 samples: false alarm 6e-7 per entry, 2e-5 in total."""
    make, truth = DISCRETE[name]
    program = Coin(SEEDS, enumerate_y=name == "EnumeratedELBO")
    objective, x = make(), torch.full((SEEDS,), X, dtype=D)
    loss = objective.loss_and_grads(program.model, program.guide, x)
    gradients = -torch.stack([p.grad for p in program.parameters()], 1)
    p, mean = exact(truth.bound, truth.num_particles, scaled=True)
    expected = torch.stack(torch.autograd.grad(mean, list(p.values())))
    error = 5 * gradients.std(0) / SEEDS**0.5
    assert ((gradients.mean(0) - expected).abs() <= error + 1e-12).all()
    # a standard deviation of at most 1 per example
    reported = float(exact(truth.bound, truth.num_particles, scaled=False)[1].detach())
    assert -loss / SEEDS == pytest.approx(reported, abs=0.025)
    assert abs(reported - float(mean.detach())) > 0.1


def _mean_gradients(program, objective, scales, repeats=30):
    x, rows = torch.full((3000,), 1.4, dtype=D), []
    model, guide = (
        poutine.scale(program.model, scales[0]),
        poutine.scale(program.guide, scales[1]),
    )
    for _ in range(repeats):
        program.zero_grad()
        objective.loss_and_grads(model, guide, x)
        rows.append(torch.stack([p.grad for p in program.parameters()]) / len(x))
    return torch.stack(rows)


@pytest.mark.parametrize("make", [partial(IWAE, 4), partial(PIWAE, 2, 3)])
def test_dreg_of_two_latents_has_the_same_mean(make):
    """At 5 standard errors of 30 means: false alarm < 1e-4 per entry."""
    rows = [_mean_gradients(Chain(), make(gradient=g), (0.7, 0.4)) for g in ("standard", "dreg")]
    error = (rows[0].var(0) / 30 + rows[1].var(0) / 30).sqrt()
    assert ((rows[0].mean(0) - rows[1].mean(0)).abs() < 5 * error).all()


class _TwoScales(Chain):
    """Another scale for each site of the guide."""

    @pyro_method
    def guide(self, x):
        with pyro.plate("data", len(x)):
            with poutine.scale(scale=0.5):
                z1 = pyro.sample("z1", dist.Normal(self.a * x, self.s.exp()))
            with poutine.scale(scale=0.6):
                pyro.sample("z2", dist.Normal(self.b * z1, self.t.exp()))


def test_dreg_rejects_different_scales():
    program, x = _TwoScales(), torch.zeros(3, dtype=D)
    message = "expected one poutine.scale for all latent sites .* different ones for 'z1', 'z2'"
    with pytest.raises(ValueError, match=message):
        IWAE(3, "dreg").loss_and_grads(program.model, program.guide, x)
    assert IWAE(3, "stl").loss_and_grads(program.model, program.guide, x) > 0


def test_monte_carlo_em_follows_the_scaled_evidence():
    """∇ log ∫ p(z)^s p(x|z)^t dz in closed form, at 5 standard errors of 4000 chains."""
    size, s, t, noise = 4000, 0.4, 1.7, 0.7

    class Line(PyroModule):
        def __init__(self):
            super().__init__()
            self.m, self.w = (nn.Parameter(torch.full((size,), v, dtype=D)) for v in (0.3, 1.3))
            self.a = nn.Parameter(torch.full((size,), 0.5, dtype=D))

        @pyro_method
        def model(self, x):
            with pyro.plate("data", len(x)):
                with poutine.scale(scale=s):
                    z = pyro.sample("z", dist.Normal(self.m, 1.0))
                with poutine.scale(scale=t):
                    pyro.sample("x", dist.Normal(self.w * z, noise), obs=x)

        @pyro_method
        def guide(self, x):
            with pyro.plate("data", len(x)):
                pyro.sample("z", dist.Normal(self.a * x, 1.0))

    program, x = Line(), torch.full((size,), 1.4, dtype=D)
    objective = MonteCarloEM(num_steps=5, warm_up=40)
    objective.loss_and_grads(program.model, program.guide, x)
    m, w = (torch.tensor(v, dtype=D, requires_grad=True) for v in (0.3, 1.3))
    # up to a constant, x ~ N(w m, noise² / t + w² / s) times a power of 1 / w that cancels
    evidence = dist.Normal(w * m, (noise**2 / t + w**2 / s).sqrt()).log_prob(x[0])
    for name, expected in zip("mw", torch.autograd.grad(evidence, (m, w)), strict=True):
        gradient = -getattr(program, name).grad
        assert abs(gradient.mean() - expected) < 5 * gradient.std() / size**0.5, name


def _vae_with_scaled_kl():
    class Scaled(pv.VAE):
        @pyro_method
        def model(self, x):
            with pyro.plate("data", len(x)):
                with poutine.scale(scale=0.01):
                    z = pyro.sample("z", self.prior())
                pyro.sample("x", self.likelihood(z), obs=x)

        @pyro_method
        def guide(self, x):
            with pyro.plate("data", len(x)), poutine.scale(scale=0.01):
                pyro.sample("z", self.posterior(x))

    torch.manual_seed(0)
    small = partial(pv.networks.MLP, hidden=(8,))
    vae = Scaled((4,), 2, encoder=small, decoder=small)
    with torch.no_grad():
        for parameter in vae.parameters():
            parameter.mul_(1.5)
    return vae


@pytest.mark.parametrize(
    "make",
    [
        ELBO,
        partial(ELBO, gradient="stl"),
        partial(ELBO, free_bits=FreeBits(0.1, 1)),
        EnumeratedELBO,
        partial(IWAE, 1),
        partial(Renyi, 1.0, 2),
        WakeSleep,
        partial(ReweightedWakeSleep, 1),
        MonteCarloEM,
    ],
)
def test_history_is_not_scaled(make):
    """Against the validation ELBO of the same data, with weights that do not move."""
    x = torch.bernoulli(torch.full((2000, 4), 0.5))
    vae, frozen = _vae_with_scaled_kl(), partial(torch.optim.SGD, lr=0.0)
    history = pv.fit(vae, x, valid=x, objective=make(), optimizer=frozen, epochs=1, batch_size=2000)
    # 5 standard errors of a difference of two means of 2000 terms
    spread = float(pv.log_weights(vae.model, vae.guide, x, num_samples=1).std())
    tolerance = 5 * spread * (2 / 2000) ** 0.5
    assert history["elbo"][0] == pytest.approx(history["valid_elbo"][0], abs=tolerance)
    scaled = -Trace_ELBO().loss(vae.model, vae.guide, x) / 2000
    assert abs(scaled - history["elbo"][0]) > 2 * tolerance


def test_free_bits_compare_the_unscaled_kl():
    """A KL between λ and λ / scale is penalised, with the scale."""
    x = torch.zeros(5, dtype=D)

    class Shifted(PyroModule):
        def __init__(self):
            super().__init__()
            self.m = nn.Parameter(torch.tensor(1.0, dtype=D))

        @pyro_method
        def model(self, x):
            with pyro.plate("data", len(x)):
                with poutine.scale(scale=0.1):
                    pyro.sample("z", dist.Normal(torch.zeros(5, dtype=D), 1.0))
                pyro.sample("x", dist.Normal(torch.zeros(5, dtype=D), 1.0), obs=x)

        @pyro_method
        def guide(self, x):
            with pyro.plate("data", len(x)), poutine.scale(scale=0.1):
                pyro.sample("z", dist.Normal(self.m.expand(5), 1.0))

    for nats, slope in ((0.4, 0.1), (0.6, 0.0)):  # the KL is 0.5
        program = Shifted()
        ELBO(free_bits=FreeBits(nats)).loss_and_grads(program.model, program.guide, x)
        assert float(program.m.grad) == pytest.approx(5 * slope)


@pytest.mark.parametrize("make", [partial(ELBO, analytic_kl=False), ELBO])
def test_subsampling_of_an_inner_plate_stays_in_the_bound(make):
    """As in Pyro: two of six columns stand for all of them, at any ``poutine.scale``."""

    def model(x, scale=1.0):
        with pyro.plate("data", len(x), dim=-2):
            z = pyro.sample("z", dist.Normal(torch.zeros(len(x), 1), 1.0))
            inner = pyro.plate("columns", 6, dim=-1, subsample=torch.tensor([0, 3]))
            with inner as columns, poutine.scale(scale=scale):
                pyro.sample("x", dist.Normal(z, 1.0), obs=x[:, columns])

    def guide(x):
        with pyro.plate("data", len(x), dim=-2):
            pyro.sample("z", dist.Normal(torch.zeros(len(x), 1), 1.0))

    x = torch.randn(4, 6)
    losses = []
    for objective, scale in ((Trace_ELBO(), 1.0), (make(), 1.0), (make(), 0.2)):
        scaled = partial(model, scale=scale)
        objective.loss(scaled, guide, x)
        pyro.set_rng_seed(3)
        losses.append(objective.loss(scaled, guide, x))
    if make is not ELBO:
        assert losses[1] == pytest.approx(losses[0], rel=1e-6)
    assert losses[2] == pytest.approx(losses[1], rel=1e-6)


def test_a_shared_latent_keeps_the_fraction_of_the_minibatch():
    """As BayesianVAE: its weights have the scale batch / num_data."""
    small = partial(pv.networks.MLP, hidden=(4,))
    vae = pv.BayesianVAE((3,), 2, encoder=small, decoder=small)
    x = torch.bernoulli(torch.full((40, 3), 0.5))
    pv.initialize(vae, x)
    losses = []
    for objective in (ELBO(analytic_kl=False), Trace_ELBO()):
        objective.loss(vae.model, vae.guide, x[:10])
        pyro.set_rng_seed(3)
        losses.append(objective.loss(vae.model, vae.guide, x[:10]))
    assert losses[0] == pytest.approx(losses[1], rel=1e-6)


def test_schedules_multiply_the_scale():
    program, gradients = Coin(3), []
    for beta in (1.0, 0.5):
        objective, x = ELBO(beta=beta), torch.full((3,), X, dtype=D)
        objective.set_step(StepInfo(0.0))
        objective.loss(program.model, program.guide, x)
        program.zero_grad()
        pyro.set_rng_seed(1)
        objective.loss_and_grads(program.model, program.guide, x)
        gradients.append(program.p.grad.clone())
    torch.testing.assert_close(gradients[1], 0.5 * gradients[0])
