"""Score-function gradients of samples that are not reparameterised.

As in test_gradients.py, one backward pass over equal examples gives independent gradients. The
exact gradient is that of a sum over all classes, weighted by q(y|z), and Gauss–Hermite quadrature
over all normal samples; it involves no sampling.
"""

from __future__ import annotations

import math
from functools import partial

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.nn import PyroModule, pyro_method
from torch import nn

import pyro_vae as pv
from pyro_vae.learning.objectives import CIWAE, ELBO, IWAE, MIWAE, PIWAE, Renyi
from pyro_vae.learning.objectives.weighted import score_function_term
from pyro_vae.programs.particles import Layout, run_particles

D = torch.float64
MODEL = {"p": 0.4, "m": 0.9, "w": 1.1, "c": -0.8}
GUIDE = {"a": 0.5, "b": 0.1, "s": -0.3, "u": 0.8, "v": -0.2}
NOISE, X = 0.7, 1.4
SEEDS = 40_000


class Mixed(PyroModule):
    """y ~ Bernoulli, z ~ N(m y, 1), x ~ N(w z + c y, 0.7²); q(z|x) q(y|z)."""

    def __init__(self, size):
        super().__init__()
        for name, value in {**MODEL, **GUIDE}.items():
            setattr(self, name, nn.Parameter(torch.full((size,), value, dtype=D)))

    @pyro_method
    def model(self, x):
        with pyro.plate("data", len(x)):
            y = pyro.sample("y", dist.Bernoulli(logits=self.p))
            z = pyro.sample("z", dist.Normal(self.m * y, 1.0))
            pyro.sample("x", dist.Normal(self.w * z + self.c * y, NOISE), obs=x)

    @pyro_method
    def guide(self, x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(self.a * x + self.b, self.s.exp()))
            pyro.sample("y", dist.Bernoulli(logits=self.u * z + self.v))


def log_normal(value, mean, scale):
    scale = torch.as_tensor(scale, dtype=D)
    return -0.5 * ((value - mean) / scale) ** 2 - scale.log() - 0.5 * math.log(2 * math.pi)


def log_bernoulli(y, logit):
    return nn.functional.logsigmoid((2 * y - 1) * logit)


NODES = {1: 80, 2: 60, 3: 36}


def truth(objective, nodes=None):
    """Return the parameters and the exact mean of a bound over k samples."""
    k = objective.num_particles
    p = {n: torch.tensor(v, dtype=D, requires_grad=True) for n, v in {**MODEL, **GUIDE}.items()}
    points, weights = map(torch.from_numpy, np.polynomial.hermite_e.hermegauss(nodes or NODES[k]))
    eps = torch.cartesian_prod(*[points] * k).reshape(-1, k).T[:, None]
    node_weights = torch.cartesian_prod(*[weights / weights.sum()] * k).reshape(-1, k).prod(1)
    y = torch.cartesian_prod(*[torch.arange(2, dtype=D)] * k).reshape(-1, k).T[..., None]
    z = p["a"] * X + p["b"] + p["s"].exp() * eps
    log_q_y = log_bernoulli(y, p["u"] * z + p["v"])
    log_q = log_normal(z, p["a"] * X + p["b"], p["s"].exp()) + log_q_y
    log_p = log_bernoulli(y, p["p"]) + log_normal(z, p["m"] * y, 1.0)
    log_p = log_p + log_normal(X, p["w"] * z + p["c"] * y, NOISE)
    bound = objective.bound((log_p - log_q).flatten(1)).unflatten(0, (2**k, -1))
    return p, (node_weights * log_q_y.sum(0).exp() * bound).sum()


def exact_gradient(objective, names, nodes=None):
    p, mean = truth(objective, nodes)
    return torch.stack(torch.autograd.grad(mean, [p[n] for n in names]))


#: Objective, and the bounds whose gradients model and guide follow.
CASES = {
    "ELBO": (partial(ELBO, analytic_kl=False), IWAE(1), IWAE(1)),
    "one sample": (partial(IWAE, 1), IWAE(1), IWAE(1)),
    "IWAE": (partial(IWAE, 3), IWAE(3), IWAE(3)),
    "MIWAE": (partial(MIWAE, 3, 2), IWAE(2), IWAE(2)),
    "MIWAE, groups of one": (partial(MIWAE, 3, 1), IWAE(1), IWAE(1)),
    "PIWAE": (partial(PIWAE, 2, 1), IWAE(2), IWAE(1)),
    "CIWAE": (partial(CIWAE, 3, 0.3), CIWAE(3, 0.3), CIWAE(3, 0.3)),
    "Renyi": (partial(Renyi, 0.5, 2), Renyi(0.5, 2), Renyi(0.5, 2)),
    "Renyi, α < 0": (partial(Renyi, -0.7, 2), Renyi(-0.7, 2), Renyi(-0.7, 2)),
}


def sample_gradients(loss, program, x):
    loss(program, x).backward()
    return -torch.stack([getattr(program, name).grad for name in (*MODEL, *GUIDE)], 1)


def agree(gradients, expected):
    """Compare means of 40,000 at 5 standard errors: false alarm 6e-7 per entry, 1e-4 in total."""
    error = gradients.std(0) / len(gradients) ** 0.5
    return bool(((gradients.mean(0) - expected).abs() <= 5 * error + 1e-12).all())


@pytest.mark.parametrize("name", CASES)
def test_mean_gradient_is_exact(name):
    make, model, guide = CASES[name]
    objective, program, x = make(), Mixed(SEEDS), torch.full((SEEDS,), X, dtype=D)
    pyro.set_rng_seed(5)
    reported = []

    def loss(program, x):
        value = objective.differentiable_loss(program.model, program.guide, x)
        reported.append(-value.item() / SEEDS)
        return value

    gradients = sample_gradients(loss, program, x)
    assert agree(gradients, torch.cat([exact_gradient(model, MODEL), exact_gradient(guide, GUIDE)]))
    # the bound itself, to 5 standard errors of 40,000 examples where they are largest
    assert reported[0] == pytest.approx(float(truth(model)[1].detach()), abs=0.04)


def _pathwise_loss(program, x):
    """Return the loss with the pathwise gradient only."""
    particles = run_particles(program.model, program.guide, x, num_samples=3)
    return -IWAE(3).bound(particles.log_weights).sum()


def test_detects_a_missing_score_term():
    pyro.set_rng_seed(5)
    gradients = sample_gradients(_pathwise_loss, Mixed(SEEDS), torch.full((SEEDS,), X, dtype=D))
    assert not agree(gradients, exact_gradient(IWAE(3), (*MODEL, *GUIDE)))


@pytest.mark.parametrize("k", NODES)
def test_quadrature_has_converged(k):
    names, finer = (*MODEL, *GUIDE), NODES[k] * 3 // 2
    torch.testing.assert_close(
        exact_gradient(IWAE(k), names), exact_gradient(IWAE(k), names, finer), rtol=0, atol=1e-4
    )


def test_learning_signal_equals_the_paper():
    """Equation 10 in a loop: subtract the bound with the geometric mean of the other weights."""
    program, x, k = Mixed(4), torch.tensor([1.4, -0.3, 0.2, 2.0], dtype=D), 3
    particles = run_particles(program.model, program.guide, x, num_samples=k)
    log_w = particles.log_weights.detach()
    expected = torch.zeros((), dtype=D)
    for n in range(4):
        for i in range(k):
            others = [log_w[j, n] for j in range(k) if j != i]
            replaced = torch.stack([*others, sum(others) / (k - 1)])
            signal = (log_w[:, n].logsumexp(0) - replaced.logsumexp(0)).item()
            expected = expected + signal * particles.log_q["y"][i, n]
    term = score_function_term(particles, IWAE(k).bound)
    assert term.item() == 0
    parameters = [program.a, program.b, program.s, program.u, program.v]
    ours, explicit = (
        torch.autograd.grad(t, parameters, retain_graph=True) for t in (term, expected)
    )
    for a, b in zip(ours, explicit, strict=True):
        torch.testing.assert_close(a, b)
        assert b.abs().min() > 1e-6


def test_baseline_reduces_variance():
    variances = []
    for baseline in (True, False):
        pyro.set_rng_seed(5)

        def loss(program, x, baseline=baseline):
            if baseline:
                return IWAE(3).differentiable_loss(program.model, program.guide, x)
            particles = run_particles(program.model, program.guide, x, num_samples=3)
            bound = IWAE(3).bound(particles.log_weights)
            return -(bound + bound.detach() * particles.log_q["y"].sum(0)).sum()

        gradients = sample_gradients(loss, Mixed(4000), torch.full((4000,), X, dtype=D))
        variances.append(gradients[:, -2:].var(0))
    assert (variances[0] < 0.5 * variances[1]).all()


def test_reparameterised_guide_has_no_score_term():
    def guide(x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(pyro.param("mean", torch.zeros(())), 1.0))

    def model(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("x", dist.Normal(z, 1.0), obs=x)

    particles = run_particles(model, guide, torch.zeros(3), num_samples=2)
    assert score_function_term(particles, IWAE(2).bound) == 0.0
    assert isinstance(score_function_term(particles, IWAE(2).bound), float)


@pytest.mark.parametrize("k", [2, 3])
def test_gradient_is_finite_with_impossible_samples(k):
    """x = 0 is impossible if y = 1; with two samples, the baseline may then be undefined."""
    logit = torch.full((200,), 0.3, dtype=D, requires_grad=True)

    def model(x):
        with pyro.plate("data", len(x)):
            y = pyro.sample("y", dist.Bernoulli(torch.tensor(0.5, dtype=D)))
            pyro.sample("x", dist.Delta(y), obs=x)

    def guide(x):
        with pyro.plate("data", len(x)):
            pyro.sample("y", dist.Bernoulli(logits=logit))

    with pyro.validation_enabled(False):
        particles = run_particles(
            model, guide, torch.zeros(200, dtype=D), num_samples=k, layout=Layout()
        )
    possible = particles.log_weights.isfinite().any(0)
    assert (possible & ~particles.log_weights.isfinite().all(0)).any()
    (gradient,) = torch.autograd.grad(score_function_term(particles, IWAE(k).bound), logit)
    assert gradient[possible].isfinite().all() and gradient[possible].abs().max() > 0


def test_classifier_gradient_through_samples():
    """q(y|x) of SemiSupervisedVAE without labels, against the enumerated gradient."""
    torch.manual_seed(0)
    small = partial(pv.networks.MLP, hidden=(8,))
    parts = {"classifier": small, "encoder": small, "decoder": small}
    vae = pv.SemiSupervisedVAE((4,), 2, 1, **parts).double()
    x = torch.tensor([[1.0, 1, 0, 0], [0, 0, 1, 1]], dtype=D)
    exact = pv.objectives.EnumeratedELBO(num_particles=4000)
    exact.loss(vae.model, vae.guide, x)
    pyro.set_rng_seed(5)
    exact.loss_and_grads(vae.model, vae.guide, x)
    expected = torch.cat([p.grad.flatten() for p in vae.classifier.parameters()])
    rows = []
    objective, batch = MIWAE(4, 1), x.repeat(500, 1)
    for _ in range(40):
        vae.zero_grad()
        objective.loss_and_grads(vae.model, vae.guide, batch)
        rows.append(torch.cat([p.grad.flatten() for p in vae.classifier.parameters()]) / 500)
    ours = torch.stack(rows)
    error = ours.std(0) / 40**0.5 + 0.01 * expected.abs()
    # 5 standard errors of 40 means (t distribution): false alarm 1e-5 per entry, 1e-3 in total
    assert ((ours.mean(0) - expected).abs() <= 5 * error + 1e-9).all()
    assert expected.abs().max() > 1e-3
