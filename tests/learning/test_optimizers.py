"""``FusedOptimizer`` and ``FusedAdamStepper`` against Pyro's and torch's optimizers."""

from __future__ import annotations

import copy
import warnings
from functools import partial

import pyro
import pytest
import streams
import torch
from components import SMALL
from pyro.infer import SVI, Trace_ELBO
from torch.optim.optimizer import register_optimizer_step_post_hook

import pyro_vae as pv
from pyro_vae.learning.fused_adam import FusedAdamStepper
from pyro_vae.learning.optimizers import FusedOptimizer

X = (torch.arange(24).reshape(8, 3) % 5 < 2).float()


def _train(make, steps=20):
    pyro.clear_param_store()
    pyro.set_rng_seed(0)
    vae = pv.VAE((3,), 2, encoder=SMALL, decoder=SMALL).double()
    svi = SVI(vae.model, vae.guide, make(), Trace_ELBO())
    losses = [svi.step(X.double()) for _ in range(steps)]
    return losses, [p.detach().clone() for p in vae.parameters()]


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        (partial(torch.optim.Adam, lr=0.01), lambda: pyro.optim.Adam({"lr": 0.01})),
        (partial(torch.optim.Adagrad, lr=0.1), lambda: pyro.optim.Adagrad({"lr": 0.1})),
        (partial(torch.optim.SGD, lr=0.001), lambda: pyro.optim.SGD({"lr": 0.001})),
        # no fused implementation
        (partial(torch.optim.RMSprop, lr=0.01), lambda: pyro.optim.RMSprop({"lr": 0.01})),
    ],
)
def test_steps_equal_those_of_pyro_optimizers(ours, theirs):
    (losses, weights), (expected_losses, expected) = (
        _train(lambda: FusedOptimizer(ours)),
        _train(theirs),
    )
    assert losses == pytest.approx(expected_losses, rel=1e-9)
    for a, b in zip(weights, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-12)


def test_fused_by_default():
    parameter = {"p": torch.nn.Parameter(torch.zeros(3))}
    for factory, fused in (
        (torch.optim.Adam, True),
        (partial(torch.optim.Adam, fused=False), False),
    ):
        optim = FusedOptimizer(factory)
        optim.add(parameter)
        assert optim.optimizer.defaults["fused"] is fused


def test_clips_the_global_gradient_norm():
    a, b = (torch.nn.Parameter(torch.zeros(2)) for _ in range(2))
    optim = FusedOptimizer(partial(torch.optim.SGD, lr=1.0), clip_norm=5.0)
    optim.add({"a": a, "b": b})
    a.grad, b.grad = torch.tensor([6.0, 0.0]), torch.tensor([0.0, 8.0])
    optim({a, b})
    torch.testing.assert_close(a.detach(), torch.tensor([-3.0, 0.0]))
    torch.testing.assert_close(b.detach(), torch.tensor([0.0, -4.0]))
    with pytest.raises(ValueError, match="expected clip_norm > 0; got 0"):
        FusedOptimizer(torch.optim.Adam, clip_norm=0.0)


def test_state_round_trip():
    def steps(optim, parameter, count):
        for _ in range(count):
            parameter.grad = 2 * parameter.detach() - 1
            optim({parameter})

    whole = torch.nn.Parameter(torch.ones(3))
    optim = FusedOptimizer(partial(torch.optim.Adam, lr=0.1))
    optim.add({"p": whole})
    steps(optim, whole, 3)
    # copy the state, because it shares the optimizer's tensors
    state, half = copy.deepcopy(optim.get_state()), torch.nn.Parameter(whole.detach().clone())
    assert state["names"] == ["p"]
    steps(optim, whole, 3)
    for early in (True, False):
        part = torch.nn.Parameter(half.detach().clone())
        again = FusedOptimizer(partial(torch.optim.Adam, lr=0.1))
        if early:  # before the parameter is added
            again.set_state(copy.deepcopy(state))
            again.add({"p": part})
        else:
            again.add({"p": part})
            again.set_state(copy.deepcopy(state))
        steps(again, part, 3)
        assert torch.equal(part, whole)


def test_steps_all_parameters_with_a_gradient():
    """Whichever of them SVI passes; momentum must not move the others."""
    a, b = (torch.nn.Parameter(torch.ones(1)) for _ in range(2))
    optim = FusedOptimizer(partial(torch.optim.Adam, lr=0.1))
    optim.add({"a": a, "b": b})
    a.grad = torch.ones(1)
    optim({b})
    moved = a.detach().clone()
    assert a.grad is None
    for _ in range(3):
        b.grad = torch.ones(1)
        optim(())
    assert torch.equal(a, moved) and float(moved) == pytest.approx(0.9)
    assert float(b.detach()) == pytest.approx(0.7, abs=1e-5)


def test_frozen_parameters_are_not_added():
    a, b = torch.nn.Parameter(torch.ones(1)), torch.nn.Parameter(torch.ones(1), False)
    optim = FusedOptimizer(partial(torch.optim.Adam, lr=0.1))
    a.grad = torch.ones(1)
    optim({a, b})
    assert list(optim.parameters.values()) == [a]
    with pytest.raises(ValueError, match="expected parameters to train; the program registered"):
        FusedOptimizer(torch.optim.Adam)({b})


# FusedAdamStepper


def _weights(count=3):
    generator = streams.generator(0)
    return [torch.nn.Parameter(torch.randn(n + 2, generator=generator)) for n in range(count)]


def _run_steps(cached, make, before_step, steps=12):
    """Return weights and state after some steps, with cached lists or ``Optimizer.step``."""
    weights = _weights()
    optimizer = make(weights)
    stepper = FusedAdamStepper(optimizer)
    for step in range(steps):
        for p in weights:
            p.grad = torch.sin(3 * p.detach()) + 0.1 * step
        before_step(step, optimizer, weights)
        stepper.step() if cached else optimizer.step()
    return [p.detach() for p in weights], optimizer.state_dict()


def _no_change(step, optimizer, weights):
    pass


def _reload(step, optimizer, weights):
    if step == 5:
        optimizer.load_state_dict(copy.deepcopy(optimizer.state_dict()))


def _add_parameter(step, optimizer, weights):
    if step == 4:
        weights.append(torch.nn.Parameter(torch.ones(2)))
        weights[-1].grad = torch.ones(2)
        optimizer.add_param_group({"params": [weights[-1]], "lr": 0.5})


def _drop_gradient(step, optimizer, weights):
    if step in (3, 7):
        weights[1].grad = None


def _no_gradient_at_first(step, optimizer, weights):
    if step < 6:
        weights[2].grad = None


def _never_a_gradient(step, optimizer, weights):
    weights[0].grad = None


def _change_hyperparameters(step, optimizer, weights):
    for group in optimizer.param_groups:
        group["lr"] = 0.1 / (1 + step)
        group["betas"] = (0.8, 0.99)


@pytest.mark.parametrize(
    "before_step",
    [
        _no_change,
        _reload,
        _add_parameter,
        _drop_gradient,
        _no_gradient_at_first,
        _never_a_gradient,
        _change_hyperparameters,
    ],
)
@pytest.mark.parametrize(
    "make",
    [
        partial(torch.optim.Adam, lr=0.1, fused=True),
        partial(torch.optim.Adam, lr=0.1, weight_decay=0.1, fused=True),
        partial(torch.optim.AdamW, lr=0.1, weight_decay=0.1, fused=True),
        partial(torch.optim.Adam, lr=0.1, amsgrad=True, maximize=True, fused=True),
        partial(torch.optim.Adam, lr=0.1, fused=False),
        partial(torch.optim.NAdam, lr=0.1),
    ],
)
def test_cached_steps_equal_optimizer_steps(make, before_step):
    weights, state = _run_steps(True, make, before_step)
    expected, expected_state = _run_steps(False, make, before_step)
    for a, b in zip(weights, expected, strict=True):
        assert torch.equal(a, b)
    assert state["param_groups"] == expected_state["param_groups"]
    for key, expected_row in expected_state["state"].items():
        row = state["state"][key]
        assert all(torch.equal(row[name], value) for name, value in expected_row.items())


def test_mixed_dtypes():
    weights = [torch.nn.Parameter(torch.ones(3)), torch.nn.Parameter(torch.ones(2).double())]
    stepper = FusedAdamStepper(torch.optim.Adam(weights, lr=0.1, fused=True))
    for step in range(1, 4):
        for p in weights:
            p.grad = torch.ones_like(p)
        stepper.step()
        for p in weights:  # with a constant gradient, every Adam step has length lr
            torch.testing.assert_close(p.detach(), torch.full_like(p, 1 - 0.1 * step))


def test_falls_back_to_optimizer_step_only_if_needed():
    calls = []

    class Recording(FusedAdamStepper):
        def _cache_groups(self):
            calls.append(1)
            super()._cache_groups()

    weights = _weights()
    optimizer = torch.optim.Adam(weights, lr=0.1, fused=True)
    stepper = Recording(optimizer)
    for _ in range(6):
        for p in weights:
            p.grad = torch.ones_like(p)
        stepper.step()
    assert len(calls) == 1
    # a parameter that never has a gradient, e.g. because it is frozen
    optimizer.add_param_group({"params": [torch.nn.Parameter(torch.ones(2))]})
    calls.clear()
    for _ in range(6):
        stepper.step()
    assert len(calls) == 1
    # schedulers that count steps and hooks must see the steps
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        schedule = torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.5)
        stepper.step()
        schedule.step()
    assert optimizer.param_groups[0]["lr"] == 0.05
    hooked = []
    optimizer.register_step_post_hook(lambda *_: hooked.append(1))
    stepper.step()
    stepper.step()
    assert len(hooked) == 2


def test_global_hooks_see_every_step():
    weights, hooked = _weights(), []
    stepper = FusedAdamStepper(torch.optim.Adam(weights, lr=0.1, fused=True))
    for p in weights:
        p.grad = torch.ones_like(p)
    stepper.step()
    handle = register_optimizer_step_post_hook(lambda *_: hooked.append(1))
    try:
        stepper.step()
        stepper.step()
    finally:
        handle.remove()
    stepper.step()
    assert len(hooked) == 2
