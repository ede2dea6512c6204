"""Adam's step without a look at each parameter."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.optim.optimizer import _global_optimizer_post_hooks, _global_optimizer_pre_hooks

__all__ = ["FusedAdamStepper"]

#: Whose kernels ``Adam(fused=True)`` and ``AdamW(fused=True)`` end in; torch declares none of them.
_torch: Any = torch


class FusedAdamStepper:
    """Steps a fused ``Adam`` or ``AdamW`` with lists of its tensors that are gathered once.

    ``Optimizer.step`` finds parameters, moments and counters anew each time, in Python, and adds
    one to each counter by itself; here the counters become views of one tensor. The tensors and
    the numbers stay the optimiser's own, so that schedules, ``state_dict`` and
    ``load_state_dict`` are as they were; and ``Optimizer.step`` itself makes the first step, the
    next one after anything of this changed, and every step in which hooks, its own or those of
    all optimisers, wait or a parameter has no gradient.

    Arguments:
        optimizer: any; those of other kinds are stepped as they are.
    """

    def __init__(self, optimizer: torch.optim.Optimizer) -> None:
        self._optimizer = optimizer
        self._adam = type(optimizer) in (torch.optim.Adam, torch.optim.AdamW)
        self._groups: list[_Group] = []
        self._state: Any = None
        self._sizes: tuple[int, ...] = ()
        self._method: Any = None

    def step(self) -> None:
        """Makes a step with the gradients that are there."""
        if not self._adam:
            self._optimizer.step()
            return
        gradients = self._gradients()
        if gradients is None:
            self._optimizer.step()
            self._gather()
            return
        with torch.no_grad():
            for group, row in zip(self._groups, gradients, strict=True):
                group.step(row)

    def _gradients(self) -> list[list[Tensor]] | None:
        """Of each group, if the lists are those of today and nothing else is wanted."""
        optimizer = self._optimizer
        if (
            optimizer.state is not self._state
            or tuple(len(group["params"]) for group in optimizer.param_groups) != self._sizes
            or optimizer.__dict__.get("step") is not self._method
            or any(_hooks(optimizer))
        ):
            return None
        rows = [[p.grad for p in group.parameters] for group in self._groups]
        there = [[g for g in row if g is not None] for row in rows]
        return there if [*map(len, there)] == [*map(len, rows)] else None

    def _gather(self) -> None:
        """Makes the lists of the optimiser as it is now, if it has a moment for everything."""
        optimizer = self._optimizer
        self._state = None
        groups = optimizer.param_groups
        if all(map(_fused, groups)) and all(
            p in optimizer.state for g in groups for p in g["params"]
        ):
            self._groups = [_Group(group, optimizer.state) for group in groups]
            self._state, self._method = optimizer.state, optimizer.__dict__.get("step")
            self._sizes = tuple(len(group["params"]) for group in groups)


class _Group:
    """The tensors of a group, and the numbers that schedules change."""

    def __init__(self, numbers: dict[str, Any], state: Any) -> None:
        self._numbers = numbers
        self.parameters: list[Tensor] = list(numbers["params"])
        names = ("exp_avg", "exp_avg_sq", "max_exp_avg_sq")
        lists = ([state[p][n] for p in self.parameters if n in state[p]] for n in names)
        self._averages, self._squares, self._largest = lists
        self._count = torch.stack([state[p]["step"] for p in self.parameters])
        self._steps = list(self._count.unbind())
        for parameter, step in zip(self.parameters, self._steps, strict=True):
            state[parameter]["step"] = step

    def step(self, gradients: list[Tensor]) -> None:
        numbers = self._numbers
        beta1, beta2 = numbers["betas"]
        decoupled = numbers["decoupled_weight_decay"]
        kernel = _torch._fused_adamw_ if decoupled else _torch._fused_adam_
        self._count += 1
        kernel(
            self.parameters,
            gradients,
            self._averages,
            self._squares,
            self._largest,
            self._steps,
            lr=numbers["lr"],
            beta1=beta1,
            beta2=beta2,
            weight_decay=numbers["weight_decay"],
            eps=numbers["eps"],
            amsgrad=numbers["amsgrad"],
            maximize=numbers["maximize"],
        )


def _hooks(optimizer: torch.optim.Optimizer) -> tuple[Any, ...]:
    """Whoever wants to be told of a step."""
    return (
        optimizer._optimizer_step_pre_hooks,
        optimizer._optimizer_step_post_hooks,
        _global_optimizer_pre_hooks,
        _global_optimizer_post_hooks,
    )


def _fused(group: dict[str, Any]) -> bool:
    """Whether one kernel may step a group: it wants one type of numbers, on one device."""
    kinds = {(p.dtype, p.device) for p in group["params"]}
    return bool(group.get("fused")) and not group["differentiable"] and len(kinds) == 1
