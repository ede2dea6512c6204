"""Every estimator's mean gradient is the truth, on a linear-Gaussian program.

The program's parameters have one entry for each datum, and all data are the same: one backward
pass gives as many independent gradients as there are data. The truth is a closed form (ELBO,
sleep) or Gauss–Hermite quadrature over all k draws at once, differentiated: nothing in it is
sampled, and nothing is shared with the objectives.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.nn import PyroModule, pyro_method
from torch import nn

import pyro_vae as pv
from pyro_vae.learning.objectives import (
    CIWAE,
    ELBO,
    IWAE,
    MIWAE,
    PIWAE,
    Renyi,
    ReweightedWakeSleep,
    WakeSleep,
)

D = torch.float64
MODEL = {"m": 0.3, "w": 1.3, "c": -0.2}
GUIDE = {"a": 0.5, "b": 0.1, "s": -0.3}
NOISE, X = 0.7, 1.4
SEEDS = 40_000


class Line(PyroModule):
    """z ~ N(m, 1), x ~ N(w z + c, 0.7²), and q(z|x) = N(a x + b, e^2s): parameters per datum."""

    def __init__(self, size):
        super().__init__()
        for name, value in {**MODEL, **GUIDE}.items():
            setattr(self, name, nn.Parameter(torch.full((size,), value, dtype=D)))

    @pyro_method
    def model(self, x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(self.m, 1.0))
            pyro.sample("x", dist.Normal(self.w * z + self.c, NOISE), obs=x)

    @pyro_method
    def guide(self, x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(self.a * x + self.b, self.s.exp()))


def parameters():
    return {n: torch.tensor(v, dtype=D, requires_grad=True) for n, v in {**MODEL, **GUIDE}.items()}


def log_normal(value, mean, scale):
    scale = torch.as_tensor(scale, dtype=D)
    return -0.5 * ((value - mean) / scale) ** 2 - scale.log() - 0.5 * math.log(2 * math.pi)


class Quadrature:
    """Everything at the nodes of k draws of q: log densities ``(k, nodes)``, and their means."""

    def __init__(self, k, nodes, held=False):
        p = self.parameters = parameters()
        points, weights = np.polynomial.hermite_e.hermegauss(nodes)
        weights = torch.from_numpy(weights / weights.sum())
        eps = torch.cartesian_prod(*[torch.from_numpy(points)] * k).reshape(-1, k).T
        self.share = torch.cartesian_prod(*[weights] * k).reshape(-1, k).prod(1)
        z = p["a"] * X + p["b"] + p["s"].exp() * eps
        z = z.detach() if held else z
        self.log_p = log_normal(z, p["m"], 1.0) + log_normal(X, p["w"] * z + p["c"], NOISE)
        self.log_q = log_normal(z, p["a"] * X + p["b"], p["s"].exp())
        self.log_w = self.log_p - self.log_q

    def mean(self, values):
        return (self.share * values).sum()


#: Nodes for each of k draws, at which one and a half times as many give the same truth.
NODES = {1: 80, 2: 60, 3: 36, 4: 22}


def elbo(beta=1.0):
    """E_q log p(x|z) − β KL(q ‖ p) in closed form."""
    p = parameters()
    mean, variance = p["a"] * X + p["b"], (2 * p["s"]).exp()
    kl = 0.5 * (variance + (mean - p["m"]) ** 2 - 1) - p["s"]
    miss = (X - p["w"] * mean - p["c"]) ** 2 + p["w"] ** 2 * variance
    return p, -0.5 * miss / NOISE**2 - math.log(NOISE) - 0.5 * math.log(2 * math.pi) - beta * kl


def tight(k, nodes=None):
    q = Quadrature(k, nodes or NODES[k])
    return q.parameters, q.mean(q.log_w.logsumexp(0) - math.log(k))


def between(k, beta):
    q = Quadrature(k, NODES[k])
    bound = q.log_w.logsumexp(0) - math.log(k)
    return q.parameters, q.mean(beta * q.log_w.mean(0) + (1 - beta) * bound)


def renyi(alpha, k):
    q = Quadrature(k, NODES[k])
    power = 1 - alpha
    return q.parameters, q.mean((power * q.log_w).exp().mean(0).log() / power)


def awake(k):
    """Σ_i w̄_i (log p + log q) at held draws and weights."""
    q = Quadrature(k, NODES[k], held=True)
    share = q.log_w.detach().softmax(0)
    return q.parameters, q.mean((share * (q.log_p + q.log_q)).sum(0))


def asleep():
    """E_p log q(z|x) in closed form, of the guide alone."""
    p = parameters()
    m, w, c = (p[name].detach() for name in MODEL)
    # z − a x − b = (1 − a w) (z − m) − a noise + mean
    mean = m - p["a"] * (w * m + c) - p["b"]
    square = mean**2 + (1 - p["a"] * w) ** 2 + p["a"] ** 2 * NOISE**2
    return p, -0.5 * square / (2 * p["s"]).exp() - p["s"]


def gradient(truth, names):
    values, bound = truth
    slopes = torch.autograd.grad(bound, [values[n] for n in names], allow_unused=True)
    return torch.stack([torch.zeros((), dtype=D) if s is None else s for s in slopes])


@dataclass
class Case:
    """An estimator, the bound that it reports, and whose gradients its two are."""

    make: Callable
    bound: Callable
    model: Callable
    guide: Callable
    #: How much of the guide's truth is that of the sleep phase.
    sleep: float = 0.0


def same(make, truth):
    return Case(make, truth, truth, truth)


def rws(make, k, sleep):
    # θ at finite k: the mean of the self-normalised estimate, not ∇ log p(x), which is its limit
    return Case(make, partial(tight, k), partial(awake, k), partial(awake, k), sleep)


CASES = {
    "ELBO, A": same(lambda: ELBO(analytic_kl=False), elbo),
    "ELBO, A, 3 draws": same(lambda: ELBO(3, analytic_kl=False), elbo),
    "ELBO, stl": same(lambda: ELBO(gradient="stl"), elbo),
    "ELBO, B": same(lambda: ELBO(analytic_kl=True), elbo),
    "ELBO, β": Case(lambda: ELBO(beta=0.4), elbo, partial(elbo, 0.4), partial(elbo, 0.4)),
    "IWAE": same(lambda: IWAE(3), partial(tight, 3)),
    "IWAE, dreg": same(lambda: IWAE(3, "dreg"), partial(tight, 3)),
    "IWAE, stl, 1 draw": same(lambda: IWAE(1, "stl"), elbo),
    "MIWAE": same(lambda: MIWAE(4, 2), partial(tight, 2)),
    "MIWAE, dreg": same(lambda: MIWAE(4, 2, "dreg"), partial(tight, 2)),
    "PIWAE": Case(lambda: PIWAE(2, 2), partial(tight, 4), partial(tight, 4), partial(tight, 2)),
    "PIWAE, dreg": Case(
        lambda: PIWAE(2, 2, "dreg"), partial(tight, 4), partial(tight, 4), partial(tight, 2)
    ),
    "PIWAE, stl, groups of 1": Case(
        lambda: PIWAE(3, 1, "stl"), partial(tight, 3), partial(tight, 3), elbo
    ),
    "CIWAE": same(lambda: CIWAE(3, 0.3), partial(between, 3, 0.3)),
    "Renyi": same(lambda: Renyi(0.5, 3), partial(renyi, 0.5, 3)),
    "Renyi, α < 0": same(lambda: Renyi(-0.7, 2), partial(renyi, -0.7, 2)),
    "Renyi, α = 1": same(lambda: Renyi(1.0, 2), elbo),
    "ReweightedWakeSleep, wake": rws(lambda: ReweightedWakeSleep(3, wake=1), 3, 0.0),
    "ReweightedWakeSleep, both": rws(lambda: ReweightedWakeSleep(3, wake=0.3), 3, 0.7),
    "ReweightedWakeSleep, sleep": rws(lambda: ReweightedWakeSleep(2, wake=0), 2, 1.0),
    "WakeSleep": rws(WakeSleep, 1, 1.0),
}
#: What has no gradient of its own here, and where it is tested.
ELSEWHERE = {
    "EnumeratedELBO": "test_enumerated.py",
    "MonteCarloEM": "test_baselines.py",
    "Objective": "abstract",
}


def truth_of(case):
    guide = (1 - case.sleep) * gradient(case.guide(), GUIDE)
    if case.sleep:
        guide = guide + case.sleep * gradient(asleep(), GUIDE)
    return torch.cat([gradient(case.model(), MODEL), guide])


def estimates(objective, backward=True):
    """Its gradients ``(seeds, 6)``, of one step by all data."""
    program, x = Line(SEEDS), torch.full((SEEDS,), X, dtype=D)
    objective.loss(program.model, program.guide, x)  # the first look at a program takes draws
    pyro.set_rng_seed(4)
    if backward:
        loss = objective.loss_and_grads(program.model, program.guide, x)
    else:
        tensor = objective.differentiable_loss(program.model, program.guide, x)
        tensor.backward()
        loss = tensor.item()
    grads = [getattr(program, name).grad for name in (*MODEL, *GUIDE)]
    return loss, -torch.stack(grads, 1)


def agree(gradients, truth):
    """Means of 40,000 at five standard errors: false alarm 6e-7 an entry, 1e-4 for all of them."""
    error = gradients.std(0) / len(gradients) ** 0.5
    return bool(((gradients.mean(0) - truth).abs() <= 5 * error + 1e-12).all())


@pytest.mark.parametrize("name", CASES)
def test_the_mean_gradient_is_the_truth(name):
    case = CASES[name]
    loss, gradients = estimates(case.make())
    assert agree(gradients, truth_of(case))
    # what is reported is the bound itself, whatever the gradient is of: five standard errors of
    # 40,000 data where they are largest, for a single draw (0.0063 nats)
    assert -loss / SEEDS == pytest.approx(float(case.bound()[1].detach()), abs=0.032)
    again, twice = estimates(case.make(), backward=False)
    assert again == pytest.approx(loss, rel=1e-12)
    torch.testing.assert_close(twice, gradients, rtol=1e-9, atol=1e-9)


def test_every_objective_is_in_the_table():
    classes = {type(case.make()).__name__ for case in CASES.values()}
    assert classes | ELSEWHERE.keys() >= set(pv.objectives.__all__)


@pytest.mark.parametrize("k", NODES)
def test_the_quadrature_has_converged(k):
    finer = tight(k, NODES[k] * 3 // 2 if k < 4 else 30)
    every = [*MODEL, *GUIDE]
    assert float(tight(k)[1].detach()) == pytest.approx(float(finer[1].detach()), abs=1e-5)
    torch.testing.assert_close(gradient(tight(k), every), gradient(finer, every), rtol=0, atol=1e-4)


def test_the_quadrature_is_the_closed_form():
    """Of one draw the ELBO; of weights to the first power and any number of draws log p(x)."""
    every = [*MODEL, *GUIDE]
    torch.testing.assert_close(
        gradient(tight(1), every), gradient(elbo(), every), rtol=1e-9, atol=1e-9
    )


@pytest.mark.parametrize(
    ("wrong", "claimed"),
    [
        ("IWAE, stl", "IWAE"),  # biased for more than one draw
        ("MIWAE", "IWAE"),
        ("IWAE", "PIWAE"),  # the model's right, the guide's not
        ("wake alone", "ReweightedWakeSleep, both"),
        ("IWAE", "ReweightedWakeSleep, wake"),
    ],
)
def test_a_wrong_gradient_is_noticed(wrong, claimed):
    """Each is another estimator's, whose truth differs by much more than the errors."""
    makes = {
        "IWAE, stl": lambda: IWAE(3, "stl"),
        "IWAE": lambda: IWAE(4),
        "MIWAE": lambda: MIWAE(2, 2),
        "wake alone": lambda: ReweightedWakeSleep(3, wake=1),
    }
    _, gradients = estimates(makes[wrong]())
    assert not agree(gradients, truth_of(CASES[claimed]))
