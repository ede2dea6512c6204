"""Fused Adam steps with cached tensor lists."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.optim.optimizer import _global_optimizer_post_hooks, _global_optimizer_pre_hooks

__all__ = ["FusedAdamStepper"]

#: Gives access to the kernels of ``Adam(fused=True)``, which have no type stubs.
_torch: Any = torch


class FusedAdamStepper:
    """Steps a fused ``Adam`` or ``AdamW`` with cached lists of its tensors.

    ``Optimizer.step`` collects parameters, moments and step counters in Python in every step, and
    increments each counter separately. Here the lists are cached and the counters are views of one
    tensor. Tensors and hyperparameters stay those of the optimizer, so schedules, ``state_dict``
    and ``load_state_dict`` work as usual. ``Optimizer.step`` is called for the first step, after
    any change of the optimizer, and whenever there are hooks or other parameters have a gradient
    than in the step before.

    Arguments:
        optimizer: any optimizer; those other than fused Adam are stepped as usual.
    """

    def __init__(self, optimizer: torch.optim.Optimizer) -> None:
        self._optimizer = optimizer
        self._is_adam = type(optimizer) in (torch.optim.Adam, torch.optim.AdamW)
        self._groups: list[_ParameterGroup] = []
        #: Parameters without optimizer state, because they never had a gradient.
        self._idle: list[Tensor] = []
        self._state: Any = None
        self._sizes: tuple[int, ...] = ()
        self._step_method: Any = None

    def step(self) -> None:
        """Step with the current gradients."""
        if not self._is_adam:
            self._optimizer.step()
            return
        gradients = self._cached_gradients()
        if gradients is None:
            self._optimizer.step()
            self._cache_groups()
            return
        with torch.no_grad():
            for group, group_gradients in zip(self._groups, gradients, strict=True):
                group.step(group_gradients)

    def _cached_gradients(self) -> list[list[Tensor]] | None:
        """Return the gradients of each group, or ``None`` if the cached lists cannot be used."""
        optimizer = self._optimizer
        if (
            optimizer.state is not self._state
            or tuple(len(group["params"]) for group in optimizer.param_groups) != self._sizes
            or optimizer.__dict__.get("step") is not self._step_method
            or any(_hooks(optimizer))
            or any(p.grad is not None for p in self._idle)
        ):
            return None
        gradients = [[p.grad for p in group.parameters] for group in self._groups]
        present = [[g for g in group if g is not None] for group in gradients]
        return present if [*map(len, present)] == [*map(len, gradients)] else None

    def _cache_groups(self) -> None:
        """Cache the tensor lists, if all groups are fused."""
        optimizer = self._optimizer
        self._state = None
        groups, state = optimizer.param_groups, optimizer.state
        if all(map(_is_fused, groups)):
            stepped = [[p for p in group["params"] if p in state] for group in groups]
            self._groups = [
                _ParameterGroup(parameters, group, state)
                for parameters, group in zip(stepped, groups, strict=True)
                if parameters
            ]
            self._idle = [p for group in groups for p in group["params"] if p not in state]
            self._state, self._step_method = state, optimizer.__dict__.get("step")
            self._sizes = tuple(len(group["params"]) for group in groups)


class _ParameterGroup:
    """Tensors and hyperparameters of the parameters of one group that have optimizer state."""

    def __init__(self, parameters: list[Tensor], options: dict[str, Any], state: Any) -> None:
        self._options, self.parameters = options, parameters
        names = ("exp_avg", "exp_avg_sq", "max_exp_avg_sq")
        lists = ([state[p][n] for p in self.parameters if n in state[p]] for n in names)
        self._exp_avgs, self._exp_avg_sqs, self._max_exp_avg_sqs = lists
        self._count = torch.stack([state[p]["step"] for p in self.parameters])
        self._steps = list(self._count.unbind())
        for parameter, step in zip(self.parameters, self._steps, strict=True):
            state[parameter]["step"] = step

    def step(self, gradients: list[Tensor]) -> None:
        options = self._options
        beta1, beta2 = options["betas"]
        decoupled = options["decoupled_weight_decay"]
        kernel = _torch._fused_adamw_ if decoupled else _torch._fused_adam_
        self._count += 1
        kernel(
            self.parameters,
            gradients,
            self._exp_avgs,
            self._exp_avg_sqs,
            self._max_exp_avg_sqs,
            self._steps,
            lr=options["lr"],
            beta1=beta1,
            beta2=beta2,
            weight_decay=options["weight_decay"],
            eps=options["eps"],
            amsgrad=options["amsgrad"],
            maximize=options["maximize"],
        )


def _hooks(optimizer: torch.optim.Optimizer) -> tuple[Any, ...]:
    """Return the hooks of the optimizer and the global hooks."""
    return (
        optimizer._optimizer_step_pre_hooks,
        optimizer._optimizer_step_post_hooks,
        _global_optimizer_pre_hooks,
        _global_optimizer_post_hooks,
    )


def _is_fused(group: dict[str, Any]) -> bool:
    """Whether one fused kernel can step a group: one dtype and one device."""
    types = {(p.dtype, p.device) for p in group["params"]}
    return bool(group.get("fused")) and not group["differentiable"] and len(types) == 1
