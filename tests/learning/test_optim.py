"""One optimiser over all parameters does what one per parameter does."""

from __future__ import annotations

import copy
from functools import partial

import pyro
import pytest
import torch
from components import SMALL
from pyro.infer import SVI, Trace_ELBO

import pyro_vae as pv
from pyro_vae.learning.optim import Joint

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
    (losses, weights), (expected_losses, expected) = _train(lambda: Joint(ours)), _train(theirs)
    assert losses == pytest.approx(expected_losses, rel=1e-9)
    for a, b in zip(weights, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-12)


def test_fused_where_torch_has_it_unless_the_user_chose():
    parameter = {"p": torch.nn.Parameter(torch.zeros(3))}
    for factory, fused in (
        (torch.optim.Adam, True),
        (partial(torch.optim.Adam, fused=False), False),
    ):
        optim = Joint(factory)
        optim.add(parameter)
        assert optim.optimizer.defaults["fused"] is fused


def test_clips_the_norm_of_all_parameters_together():
    a, b = (torch.nn.Parameter(torch.zeros(2)) for _ in range(2))
    optim = Joint(partial(torch.optim.SGD, lr=1.0), clip_norm=5.0)
    optim.add({"a": a, "b": b})
    a.grad, b.grad = torch.tensor([6.0, 0.0]), torch.tensor([0.0, 8.0])
    optim({a, b})
    torch.testing.assert_close(a.detach(), torch.tensor([-3.0, 0.0]))
    torch.testing.assert_close(b.detach(), torch.tensor([0.0, -4.0]))
    with pytest.raises(ValueError, match="expected clip_norm > 0; got 0"):
        Joint(torch.optim.Adam, clip_norm=0.0)


def test_state_goes_on_where_it_stopped():
    def steps(optim, parameter, count):
        for _ in range(count):
            parameter.grad = 2 * parameter.detach() - 1
            optim({parameter})

    whole = torch.nn.Parameter(torch.ones(3))
    optim = Joint(partial(torch.optim.Adam, lr=0.1))
    optim.add({"p": whole})
    steps(optim, whole, 3)
    # copies, as a file would give: the state is the optimiser's own tensors
    state, half = copy.deepcopy(optim.get_state()), torch.nn.Parameter(whole.detach().clone())
    assert state["names"] == ["p"]
    steps(optim, whole, 3)
    for early in (True, False):
        part = torch.nn.Parameter(half.detach().clone())
        again = Joint(partial(torch.optim.Adam, lr=0.1))
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
    optim = Joint(partial(torch.optim.Adam, lr=0.1))
    optim.add({"a": a, "b": b})
    a.grad, b.grad = torch.ones(1), torch.zeros(1)
    optim({a})
    moved = a.detach().clone()
    for _ in range(3):
        a.grad, b.grad = torch.zeros(1), torch.ones(1)
        optim({b})
    assert torch.equal(a, moved) and float(moved) == pytest.approx(0.9)
    assert float(b.detach()) == pytest.approx(0.7, abs=1e-5)
