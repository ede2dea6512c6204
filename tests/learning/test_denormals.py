"""Training makes no denormal numbers, with which some processors are many times slower."""

from __future__ import annotations

import math
import sys
from functools import partial
from pathlib import Path

import pytest
import torch

import pyro_vae as pv
from pyro_vae import objectives
from pyro_vae.learning.objectives import weighted
from pyro_vae.learning.objectives.base import StepInfo
from pyro_vae.learning.optimizers import FusedOptimizer

sys.path.insert(0, str(Path(__file__).parents[2] / "experiments" / "benchmarks"))
from denormals import DenormalCounter

OBJECTIVES = {
    "CIWAE": objectives.CIWAE(30),
    "ELBO": objectives.ELBO(),
    "ELBO, stl": objectives.ELBO(gradient="stl"),
    "IWAE": objectives.IWAE(30),
    "IWAE, dreg": objectives.IWAE(30, gradient="dreg"),
    "IWAE, stl": objectives.IWAE(30, gradient="stl"),
    "MIWAE": objectives.MIWAE(3, 10),
    "PIWAE": objectives.PIWAE(3, 10),
    "Renyi": objectives.Renyi(0.5, 30),
    "ReweightedWakeSleep": objectives.ReweightedWakeSleep(30),
    "WakeSleep": objectives.WakeSleep(),
}


@pytest.fixture(scope="module")
def problem():
    """A VAE with log weights that differ by hundreds of nats, and a minibatch."""
    torch.manual_seed(0)
    network = partial(pv.networks.MLP, hidden=(30,))
    vae = pv.VAE((64,), 10, encoder=network, decoder=network)
    with torch.no_grad():
        vae.likelihood.network.layers[-1].weight.mul_(30)
    return vae, torch.bernoulli(torch.full((20, 64), 0.5))


def count(problem, objective):
    vae, x = problem
    objective.set_step(StepInfo(1.0, 100, torch.arange(20)))
    objective.loss(vae.model, vae.guide, x)
    vae.zero_grad()
    torch.manual_seed(1)
    with DenormalCounter() as counter:
        objective.loss_and_grads(vae.model, vae.guide, x)
    return counter.found


@pytest.mark.parametrize("name", OBJECTIVES)
def test_a_step_makes_none(name, problem):
    assert count(problem, OBJECTIVES[name]) == 0


def test_negligible_weights_would_make_them(problem, monkeypatch):
    monkeypatch.setattr(weighted, "_NEGLIGIBLE", math.inf)
    assert count(problem, objectives.IWAE(30)) > 1000


@pytest.mark.parametrize("spread", [1.0, 10.0, 100.0])
def test_sums_and_gradients_do_not_change(spread):
    torch.manual_seed(0)
    log_w = (spread * torch.randn(50, 200, dtype=torch.float64)).requires_grad_()
    exact, bound = log_w.logsumexp(0) - math.log(50), weighted.log_mean_exp(log_w)
    torch.testing.assert_close(bound, exact, rtol=0, atol=1e-12)
    gradients = [torch.autograd.grad(value.sum(), log_w)[0] for value in (exact, bound)]
    torch.testing.assert_close(*gradients, rtol=0, atol=1e-12)
    if spread == 100:
        assert (gradients[1] == 0).double().mean() > 0.5


def test_infinite_and_undefined_weights_keep_their_meaning():
    log_w = torch.tensor([[-math.inf, math.nan, 0.0], [-math.inf, 0.0, -math.inf]])
    expected = log_w.logsumexp(0) - math.log(2)
    torch.testing.assert_close(weighted.log_mean_exp(log_w), expected, equal_nan=True)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_moments_of_dead_weights_become_zero(dtype, monkeypatch):
    weights = torch.nn.Parameter(torch.ones(5, dtype=dtype))
    optim = FusedOptimizer(partial(torch.optim.Adam, lr=0.1))
    optim.add({"weights": weights})

    def step(gradients, count=1):
        for _ in range(count):
            weights.grad = torch.tensor(gradients, dtype=dtype)
            optim([weights])

    step([1.0, -1.0, 1e-3, 0.0, math.nan])
    (state,) = optim.optimizer.state.values()
    moment, tiny = state["exp_avg"], torch.finfo(dtype).tiny
    for factor in (1e3, 1e-3):
        moment[:3] = factor * tiny
        # the first removal is at the hundredth step
        step([0.0] * 5, 50 if factor > 1 else 48)
        before = weights.detach().clone()
        assert ((moment[:3] != 0) & (moment[:3].abs() < tiny)).sum() == (0 if factor > 1 else 3)
    step([0.0] * 5)
    assert moment[:4].tolist() == [0.0] * 4 and state["exp_avg_sq"][0] > 0
    assert torch.equal(weights[:4], before[:4])
    # NaN is kept, so that it is reported
    assert moment[4].isnan() and weights[4].isnan()


def test_epochs_start_without_denormal_moments():
    weights = torch.nn.Parameter(torch.ones(3))
    optim = FusedOptimizer(partial(torch.optim.Adam, lr=0.1))
    optim.add({"weights": weights})
    weights.grad = torch.ones(3)
    optim([weights])
    (state,) = optim.optimizer.state.values()
    # the second would be denormal in a few steps, and its product with the learning rate before
    small = torch.tensor([1e-40, 1e-31, 1e-20])
    for name, kept in (("exp_avg", [False, False, True]), ("exp_avg_sq", [False, True, True])):
        state[name].copy_(small)
        optim.drop_denormals()
        assert torch.equal(state[name], torch.where(torch.tensor(kept), small, 0.0))
    # a resumed run removes them in the same steps as an uninterrupted one
    for _ in range(99):
        weights.grad = torch.zeros(3)
        state["exp_avg"][0] = 1e-40
        optim([weights])
    assert state["exp_avg"][0] > 0
    weights.grad = torch.zeros(3)
    optim([weights])
    assert state["exp_avg"][0] == 0
