"""Mean gradients of all estimators against exact gradients of a linear-Gaussian program.

The parameters have one entry per example and all examples are equal, so one backward pass gives an
independent gradient for each example. The exact gradient is that of a closed form (ELBO, sleep
phase) or of Gauss–Hermite quadrature over all k samples. It involves no sampling and shares no code
with the objectives. With ``poutine.scale``, scaled log-densities take the place of the others.
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
    Renyi,
    ReweightedWakeSleep,
    WakeSleep,
)

D = torch.float64
MODEL = {"m": 0.3, "w": 1.3, "c": -0.2}
GUIDE = {"a": 0.5, "b": 0.1, "s": -0.3}
NOISE, X = 0.7, 1.4
SEEDS = 40_000


@dataclass
class Scales:
    """``poutine.scale`` of p(z), p(x|z) and q(z|x); numbers or tensors."""

    z: float | torch.Tensor = 1.0
    x: float | torch.Tensor = 1.0
    q: float | torch.Tensor = 1.0


UNSCALED = Scales()
#: Without scales, with a weight of the KL, and with another scale at each site.
SCALES = {
    "none": UNSCALED,
    "KL": Scales(z=0.3, q=0.3),
    "all": Scales(torch.full((SEEDS,), 0.3, dtype=D), 1.4, torch.tensor(0.6, dtype=D)),
}


class Line(PyroModule):
    """z ~ N(m, 1), x ~ N(w z + c, 0.7²), q(z|x) = N(a x + b, e^2s), with parameters per example."""

    def __init__(self, size, scales=UNSCALED):
        super().__init__()
        self.scales = scales
        for name, value in {**MODEL, **GUIDE}.items():
            setattr(self, name, nn.Parameter(torch.full((size,), value, dtype=D)))

    @pyro_method
    def model(self, x):
        with pyro.plate("data", len(x)):
            with poutine.scale(scale=self.scales.z):
                z = pyro.sample("z", dist.Normal(self.m, 1.0))
            with poutine.scale(scale=self.scales.x):
                pyro.sample("x", dist.Normal(self.w * z + self.c, NOISE), obs=x)

    @pyro_method
    def guide(self, x):
        with pyro.plate("data", len(x)), poutine.scale(scale=self.scales.q):
            pyro.sample("z", dist.Normal(self.a * x + self.b, self.s.exp()))


def parameters():
    return {n: torch.tensor(v, dtype=D, requires_grad=True) for n, v in {**MODEL, **GUIDE}.items()}


def log_normal(value, mean, scale):
    scale = torch.as_tensor(scale, dtype=D)
    return -0.5 * ((value - mean) / scale) ** 2 - scale.log() - 0.5 * math.log(2 * math.pi)


class Quadrature:
    """Quadrature over k samples of q: scaled log densities ``(k, nodes)`` and their means."""

    def __init__(self, k, nodes, scales, detach=False):
        scale_z, scale_x, scale_q = numbers(scales)
        p = self.parameters = parameters()
        points, weights = np.polynomial.hermite_e.hermegauss(nodes)
        weights = torch.from_numpy(weights / weights.sum())
        eps = torch.cartesian_prod(*[torch.from_numpy(points)] * k).reshape(-1, k).T
        self.weights = torch.cartesian_prod(*[weights] * k).reshape(-1, k).prod(1)
        z = p["a"] * X + p["b"] + p["s"].exp() * eps
        z = z.detach() if detach else z
        self.log_p = scale_z * log_normal(z, p["m"], 1.0)
        self.log_p = self.log_p + scale_x * log_normal(X, p["w"] * z + p["c"], NOISE)
        self.log_q = scale_q * log_normal(z, p["a"] * X + p["b"], p["s"].exp())
        self.log_w = self.log_p - self.log_q

    def mean(self, values):
        return (self.weights * values).sum()


#: Quadrature nodes per sample, by the number k of samples; 1.5 times as many give the same result.
NODES = {1: 80, 2: 60, 3: 36, 4: 22}


def elbo(beta=1.0, scales=UNSCALED):
    """Return the parameters and E_q log p(x|z) − β KL(q ‖ p) in closed form, scaled."""
    p = parameters()
    scale_z, scale_x, scale_q = numbers(scales)
    mean, variance = p["a"] * X + p["b"], (2 * p["s"]).exp()
    log_z = -0.5 * (variance + (mean - p["m"]) ** 2)
    log_q = -0.5 - p["s"]
    squared_error = (X - p["w"] * mean - p["c"]) ** 2 + p["w"] ** 2 * variance
    log_x = -0.5 * squared_error / NOISE**2 - math.log(NOISE) - 0.5 * math.log(2 * math.pi)
    return p, scale_x * log_x + beta * (scale_z * log_z - scale_q * log_q)


def iwae(k, nodes=None, scales=UNSCALED):
    q = Quadrature(k, nodes or NODES[k], scales)
    return q.parameters, q.mean(q.log_w.logsumexp(0) - math.log(k))


def ciwae(k, beta, scales=UNSCALED):
    q = Quadrature(k, NODES[k], scales)
    bound = q.log_w.logsumexp(0) - math.log(k)
    return q.parameters, q.mean(beta * q.log_w.mean(0) + (1 - beta) * bound)


def renyi(alpha, k, scales=UNSCALED):
    q = Quadrature(k, NODES[k], scales)
    power = 1 - alpha
    return q.parameters, q.mean((power * q.log_w).exp().mean(0).log() / power)


def wake_phase(k, scales=UNSCALED):
    """Return Σ_i w̄_i (log p + log q) with detached samples and weights."""
    q = Quadrature(k, NODES[k], scales, detach=True)
    weights = q.log_w.detach().softmax(0)
    return q.parameters, q.mean((weights * (q.log_p + q.log_q)).sum(0))


def sleep_phase(scales=UNSCALED):
    """Return E_p log q(z|x) in closed form, scaled, as a function of the guide only."""
    p = parameters()
    m, w, c = (p[name].detach() for name in MODEL)
    # z − a x − b = (1 − a w) (z − m) − a noise + mean
    mean = m - p["a"] * (w * m + c) - p["b"]
    square = mean**2 + (1 - p["a"] * w) ** 2 + p["a"] ** 2 * NOISE**2
    return p, numbers(scales)[2] * (-0.5 * square / (2 * p["s"]).exp() - p["s"])


def numbers(scales):
    """Return the scales, which are the same for all examples, as numbers."""
    values = (scales.z, scales.x, scales.q)
    return [float(s.flatten()[0]) if isinstance(s, torch.Tensor) else s for s in values]


def gradient(truth, names):
    values, bound = truth
    grads = torch.autograd.grad(bound, [values[n] for n in names], allow_unused=True)
    return torch.stack([torch.zeros((), dtype=D) if g is None else g for g in grads])


@dataclass
class Case:
    """An objective, its bound, and the functions whose gradients model and guide follow."""

    make: Callable
    bound: Callable
    model: Callable
    guide: Callable
    #: Weight of the sleep phase in the guide's gradient.
    sleep: float = 0.0


def plain_case(make, truth):
    return Case(make, truth, truth, truth)


def rws_case(make, k, sleep):
    # at finite k, the mean gradient is that of the self-normalised estimate, not ∇ log p(x)
    return Case(make, partial(iwae, k), partial(wake_phase, k), partial(wake_phase, k), sleep)


CASES = {
    "ELBO, A": plain_case(lambda: ELBO(analytic_kl=False), elbo),
    "ELBO, A, 3 samples": plain_case(lambda: ELBO(3, analytic_kl=False), elbo),
    "ELBO, stl": plain_case(lambda: ELBO(gradient="stl"), elbo),
    "ELBO, B": plain_case(lambda: ELBO(analytic_kl=True), elbo),
    "ELBO, β": Case(lambda: ELBO(beta=0.4), elbo, partial(elbo, 0.4), partial(elbo, 0.4)),
    "IWAE": plain_case(lambda: IWAE(3), partial(iwae, 3)),
    "IWAE, dreg": plain_case(lambda: IWAE(3, "dreg"), partial(iwae, 3)),
    "IWAE, stl, 1 sample": plain_case(lambda: IWAE(1, "stl"), elbo),
    "MIWAE": plain_case(lambda: MIWAE(4, 2), partial(iwae, 2)),
    "MIWAE, dreg": plain_case(lambda: MIWAE(4, 2, "dreg"), partial(iwae, 2)),
    "PIWAE": Case(lambda: PIWAE(2, 2), partial(iwae, 4), partial(iwae, 4), partial(iwae, 2)),
    "PIWAE, dreg": Case(
        lambda: PIWAE(2, 2, "dreg"), partial(iwae, 4), partial(iwae, 4), partial(iwae, 2)
    ),
    "PIWAE, stl, groups of 1": Case(
        lambda: PIWAE(3, 1, "stl"), partial(iwae, 3), partial(iwae, 3), elbo
    ),
    "CIWAE": plain_case(lambda: CIWAE(3, 0.3), partial(ciwae, 3, 0.3)),
    "Renyi": plain_case(lambda: Renyi(0.5, 3), partial(renyi, 0.5, 3)),
    "Renyi, α < 0": plain_case(lambda: Renyi(-0.7, 2), partial(renyi, -0.7, 2)),
    "Renyi, α = 1": plain_case(lambda: Renyi(1.0, 2), elbo),
    "ReweightedWakeSleep, wake": rws_case(lambda: ReweightedWakeSleep(3, wake=1), 3, 0.0),
    "ReweightedWakeSleep, both": rws_case(lambda: ReweightedWakeSleep(3, wake=0.3), 3, 0.7),
    "ReweightedWakeSleep, sleep": rws_case(lambda: ReweightedWakeSleep(2, wake=0), 2, 1.0),
    "WakeSleep": rws_case(WakeSleep, 1, 1.0),
}
#: Objectives tested elsewhere.
TESTED_ELSEWHERE = {
    "EnumeratedELBO": "test_enumerated.py",
    "MonteCarloEM": "test_baselines.py",
    "Objective": "abstract",
}


def exact_gradient(case, scales=UNSCALED):
    guide = (1 - case.sleep) * gradient(case.guide(scales=scales), GUIDE)
    if case.sleep:
        guide = guide + case.sleep * gradient(sleep_phase(scales), GUIDE)
    return torch.cat([gradient(case.model(scales=scales), MODEL), guide])


def sample_gradients(objective, scales=UNSCALED, backward=True):
    """Return the loss and one gradient per example, ``(SEEDS, 6)``."""
    program, x = Line(SEEDS, scales), torch.full((SEEDS,), X, dtype=D)
    objective.loss(program.model, program.guide, x)  # selecting the estimator uses random numbers
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
    """Compare means of 40,000 at 5 standard errors: false alarm 6e-7 per entry, 1e-4 in total."""
    error = gradients.std(0) / len(gradients) ** 0.5
    return bool(((gradients.mean(0) - truth).abs() <= 5 * error + 1e-12).all())


@pytest.mark.parametrize("scaled", SCALES)
@pytest.mark.parametrize("name", CASES)
def test_mean_gradient_is_exact(name, scaled):
    case, scales = CASES[name], SCALES[scaled]
    loss, gradients = sample_gradients(case.make(), scales)
    assert agree(gradients, exact_gradient(case, scales))
    # the loss is the bound itself, without scales, to 5 standard errors of 40,000 examples for a
    # single sample, where they are largest (0.0063 nats)
    assert -loss / SEEDS == pytest.approx(float(case.bound()[1].detach()), abs=0.032)
    second_loss, second_gradients = sample_gradients(case.make(), scales, backward=False)
    assert second_loss == pytest.approx(loss, rel=1e-12)
    torch.testing.assert_close(second_gradients, gradients, rtol=1e-9, atol=1e-9)


def test_all_objectives_are_tested():
    classes = {type(case.make()).__name__ for case in CASES.values()}
    assert classes | TESTED_ELSEWHERE.keys() >= set(pv.objectives.__all__)


@pytest.mark.parametrize("k", NODES)
def test_quadrature_has_converged(k):
    finer = iwae(k, NODES[k] * 3 // 2 if k < 4 else 30)
    names = [*MODEL, *GUIDE]
    assert float(iwae(k)[1].detach()) == pytest.approx(float(finer[1].detach()), abs=1e-5)
    torch.testing.assert_close(gradient(iwae(k), names), gradient(finer, names), rtol=0, atol=1e-4)


def test_quadrature_equals_the_closed_form():
    """With one sample, quadrature gives the ELBO."""
    names = [*MODEL, *GUIDE]
    torch.testing.assert_close(
        gradient(iwae(1), names), gradient(elbo(), names), rtol=1e-9, atol=1e-9
    )


@pytest.mark.parametrize(
    ("wrong", "expected"),
    [
        ("IWAE, stl", "IWAE"),  # biased for more than one sample
        ("MIWAE", "IWAE"),
        ("IWAE", "PIWAE"),  # right for the model, wrong for the guide
        ("wake only", "ReweightedWakeSleep, both"),
        ("IWAE", "ReweightedWakeSleep, wake"),
    ],
)
def test_detects_wrong_gradients(wrong, expected):
    """The gradients of two estimators differ by much more than the standard errors."""
    makes = {
        "IWAE, stl": lambda: IWAE(3, "stl"),
        "IWAE": lambda: IWAE(4),
        "MIWAE": lambda: MIWAE(2, 2),
        "wake only": lambda: ReweightedWakeSleep(3, wake=1),
    }
    _, gradients = sample_gradients(makes[wrong]())
    assert not agree(gradients, exact_gradient(CASES[expected]))
