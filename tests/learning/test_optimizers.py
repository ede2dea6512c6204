"""One optimiser over all parameters does what one per parameter does."""

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
        # has no fused form
        (partial(torch.optim.RMSprop, lr=0.01), lambda: pyro.optim.RMSprop({"lr": 0.01})),
    ],
)
def test_same_steps_as_pyro_s(ours, theirs):
    (losses, weights), (expected_losses, expected) = (
        _train(lambda: FusedOptimizer(ours)),
        _train(theirs),
    )
    assert losses == pytest.approx(expected_losses, rel=1e-9)
    for a, b in zip(weights, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-12)


def test_fused_where_torch_has_it_unless_the_user_chose():
    parameter = {"p": torch.nn.Parameter(torch.zeros(3))}
    for factory, fused in (
        (torch.optim.Adam, True),
        (partial(torch.optim.Adam, fused=False), False),
    ):
        optim = FusedOptimizer(factory)
        optim.add(parameter)
        assert optim.optimizer.defaults["fused"] is fused


def test_clips_the_norm_of_all_parameters_together():
    a, b = (torch.nn.Parameter(torch.zeros(2)) for _ in range(2))
    optim = FusedOptimizer(partial(torch.optim.SGD, lr=1.0), clip_norm=5.0)
    optim.add({"a": a, "b": b})
    a.grad, b.grad = torch.tensor([6.0, 0.0]), torch.tensor([0.0, 8.0])
    optim({a, b})
    torch.testing.assert_close(a.detach(), torch.tensor([-3.0, 0.0]))
    torch.testing.assert_close(b.detach(), torch.tensor([0.0, -4.0]))
    with pytest.raises(ValueError, match="expected clip_norm > 0; got 0"):
        FusedOptimizer(torch.optim.Adam, clip_norm=0.0)


def test_state_goes_on_where_it_stopped():
    def steps(optim, parameter, count):
        for _ in range(count):
            parameter.grad = 2 * parameter.detach() - 1
            optim({parameter})

    whole = torch.nn.Parameter(torch.ones(3))
    optim = FusedOptimizer(partial(torch.optim.Adam, lr=0.1))
    optim.add({"p": whole})
    steps(optim, whole, 3)
    # copies, as a file would give: the state is the optimiser's own tensors
    state, half = copy.deepcopy(optim.get_state()), torch.nn.Parameter(whole.detach().clone())
    assert state["names"] == ["p"]
    steps(optim, whole, 3)
    for early in (True, False):
        part = torch.nn.Parameter(half.detach().clone())
        again = FusedOptimizer(partial(torch.optim.Adam, lr=0.1))
        if early:  # before the parameter is known
            again.set_state(copy.deepcopy(state))
            again.add({"p": part})
        else:
            again.add({"p": part})
            again.set_state(copy.deepcopy(state))
        steps(again, part, 3)
        assert torch.equal(part, whole)


def test_parameters_that_take_no_part_stay_where_they_are():
    # two models may share one optimiser; momentum must not move the absent one
    a, b = (torch.nn.Parameter(torch.ones(1)) for _ in range(2))
    optim = FusedOptimizer(partial(torch.optim.Adam, lr=0.1))
    optim.add({"a": a, "b": b})
    a.grad, b.grad = torch.ones(1), torch.zeros(1)
    optim({a})
    moved = a.detach().clone()
    for _ in range(3):
        a.grad, b.grad = torch.zeros(1), torch.ones(1)
        optim({b})
    assert torch.equal(a, moved) and float(moved) == pytest.approx(0.9)
    assert float(b.detach()) == pytest.approx(0.7, abs=1e-5)


# lists that are gathered once


def _weights(count=3):
    generator = streams.generator(0)
    return [torch.nn.Parameter(torch.randn(n + 2, generator=generator)) for n in range(count)]


def _stepped(gathered, make, each, steps=12):
    """Weights and state after steps, with the gathered lists or with torch's own method."""
    weights = _weights()
    optimizer = make(weights)
    stepper = FusedAdamStepper(optimizer)
    for step in range(steps):
        for p in weights:
            p.grad = torch.sin(3 * p.detach()) + 0.1 * step
        each(step, optimizer, weights)
        stepper.step() if gathered else optimizer.step()
    return [p.detach() for p in weights], optimizer.state_dict()


def _nothing(step, optimizer, weights):
    pass


def _reload(step, optimizer, weights):
    if step == 5:
        optimizer.load_state_dict(copy.deepcopy(optimizer.state_dict()))


def _join(step, optimizer, weights):
    if step == 4:
        weights.append(torch.nn.Parameter(torch.ones(2)))
        weights[-1].grad = torch.ones(2)
        optimizer.add_param_group({"params": [weights[-1]], "lr": 0.5})


def _absent(step, optimizer, weights):
    if step in (3, 7):
        weights[1].grad = None


def _schedule(step, optimizer, weights):
    for group in optimizer.param_groups:
        group["lr"] = 0.1 / (1 + step)
        group["betas"] = (0.8, 0.99)


@pytest.mark.parametrize("each", [_nothing, _reload, _join, _absent, _schedule])
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
def test_gathered_steps_are_the_optimizers_own(make, each):
    weights, state = _stepped(True, make, each)
    expected, expected_state = _stepped(False, make, each)
    for a, b in zip(weights, expected, strict=True):
        assert torch.equal(a, b)
    assert state["param_groups"] == expected_state["param_groups"]
    for key, row in expected_state["state"].items():
        assert all(torch.equal(state["state"][key][name], value) for name, value in row.items())


def test_weights_of_two_types_are_stepped_each_in_its_own():
    weights = [torch.nn.Parameter(torch.ones(3)), torch.nn.Parameter(torch.ones(2).double())]
    stepper = FusedAdamStepper(torch.optim.Adam(weights, lr=0.1, fused=True))
    for step in range(1, 4):
        for p in weights:
            p.grad = torch.ones_like(p)
        stepper.step()
        for p in weights:  # of a constant gradient Adam's steps are as long as its step size
            torch.testing.assert_close(p.detach(), torch.full_like(p, 1 - 0.1 * step))


def test_adams_own_method_steps_only_when_it_must():
    calls = []

    class Watched(FusedAdamStepper):
        def _gather(self):
            calls.append(1)
            super()._gather()

    weights = _weights()
    optimizer = torch.optim.Adam(weights, lr=0.1, fused=True)
    stepper = Watched(optimizer)
    for _ in range(6):
        for p in weights:
            p.grad = torch.ones_like(p)
        stepper.step()
    assert len(calls) == 1
    # a schedule that counts steps, and a hook, must see one
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


def test_hooks_of_all_optimizers_see_every_step():
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
