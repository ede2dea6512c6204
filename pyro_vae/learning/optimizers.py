"""One torch optimiser over all parameters, in the form that Pyro's SVI takes."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable
from typing import Any

import pyro
import torch
from pyro.optim import PyroOptim
from torch.nn.utils import clip_grad_norm_

from .fused_adam import FusedAdamStepper

__all__ = ["FusedOptimizer"]

OptimizerFactory = Callable[[Any], torch.optim.Optimizer]


class FusedOptimizer(PyroOptim):
    """A ``PyroOptim`` that steps every parameter with a single torch optimiser.

    ``pyro.optim`` makes one torch optimiser for each parameter, and their overhead is most of
    an ``SVI.step`` of a small network. Here one optimiser, fused where torch has a fused
    form, updates them all; a norm can be clipped over all of them, too.

    Arguments:
        optimizer: ``optimizer(params)`` makes the torch optimiser, for example
            ``partial(torch.optim.Adam, lr=1e-3)``.
        clip_norm: the largest norm of the gradient of all parameters together. SVI's
            gradient is that of the loss summed over the minibatch.
        reduce: called with the parameters when their gradients are there, before they are
            clipped: several processes sum them here.

    Example::

        svi = SVI(model, guide, FusedOptimizer(partial(torch.optim.Adam, lr=1e-3)), Trace_ELBO())
    """

    def __init__(
        self,
        optimizer: OptimizerFactory,
        clip_norm: float | None = None,
        reduce: Callable[[Iterable[torch.Tensor]], None] | None = None,
    ) -> None:
        if clip_norm is not None and not clip_norm > 0:
            raise ValueError(f"expected clip_norm > 0; got {clip_norm}")
        super().__init__(optimizer, {})
        self.clip_norm = clip_norm
        self.reduce = reduce
        self.optimizer: torch.optim.Optimizer | None = None
        self._stepper: FusedAdamStepper | None = None
        self._names: dict[torch.Tensor, str] = {}
        self._waiting: dict[str, Any] | None = None

    @property
    def parameters(self) -> dict[str, torch.Tensor]:
        """The parameters stepped so far, by name, in the optimiser's order."""
        return {name: parameter for parameter, name in self._names.items()}

    def __call__(self, params: Iterable[torch.Tensor], *args: Any, **kwargs: Any) -> None:
        """Steps; parameters not seen before join the optimiser."""
        present = set(params)
        new = [p for p in present if p not in self._names]
        if new:
            store = pyro.get_param_store()
            # SVI hands over a set: sorted, or sums over parameters would vary with its order
            self.add(dict(sorted((str(store.param_name(p)), p) for p in new)))
        for parameter in self._names:
            if parameter not in present:
                # SVI leaves zeros, with which momentum would go on moving it
                parameter.grad = None
        if self.reduce is not None:
            self.reduce(self._names)
        if self.clip_norm is not None:
            clip_grad_norm_(list(self._names), self.clip_norm)
        assert self._stepper is not None
        self._stepper.step()
        if self.reduce is not None:
            for parameter in self._names:
                if parameter not in present:  # SVI does not know of the others' gradients
                    parameter.grad = None

    def add(self, named: dict[str, torch.Tensor]) -> None:
        """Lets named parameters join the optimiser, in this order."""
        if self.optimizer is None:
            self.optimizer = _construct(self.pt_optim_constructor, list(named.values()))
            self._stepper = FusedAdamStepper(self.optimizer)
        else:
            self.optimizer.add_param_group({"params": list(named.values())})
        self._names |= {parameter: name for name, parameter in named.items()}
        if self._waiting and self._waiting["names"] == list(self.parameters):
            self.optimizer.load_state_dict(self._waiting["optimizer"])
            self._waiting = None

    def get_state(self) -> dict[str, Any]:
        """The optimiser's state and the names of its parameters, in order."""
        state = self.optimizer.state_dict() if self.optimizer else {}
        return {"names": list(self.parameters), "optimizer": state}

    def set_state(self, state_dict: dict[str, Any]) -> None:
        """Takes a state from :meth:`get_state`, at once or when its parameters are there."""
        if self.optimizer is not None and state_dict["names"] == list(self.parameters):
            self.optimizer.load_state_dict(state_dict["optimizer"])
        else:
            self._waiting = state_dict


def _construct(factory: Any, params: list[torch.Tensor]) -> torch.optim.Optimizer:
    """The torch optimiser, fused unless the user chose or torch has no fused form of it."""
    try:
        optimizer = _fused(factory, params) or factory(params)
    except ValueError as error:
        raise ValueError(f"the optimizer refuses its arguments: {error}") from error
    closure = inspect.signature(type(optimizer).step).parameters.get("closure")
    if closure is not None and closure.default is inspect.Parameter.empty:
        raise ValueError(
            f"expected an optimizer that steps once for each gradient; {type(optimizer).__name__} "
            f"evaluates the loss many times, which draws anew each time: use Adam, say"
        )
    return optimizer


def _fused(factory: Any, params: list[torch.Tensor]) -> torch.optim.Optimizer | None:
    if getattr(factory, "keywords", {}).get("fused") is not None:
        return None
    try:
        return factory(params, fused=True)
    except (TypeError, RuntimeError):
        return None
