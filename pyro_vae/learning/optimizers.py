"""One torch optimizer over all parameters, for Pyro's SVI."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable
from functools import partial
from typing import Any, cast

import pyro
import torch
from pyro.optim import PyroOptim
from torch.nn.utils import clip_grad_norm_
from torch.optim.lr_scheduler import LRScheduler, ReduceLROnPlateau

from .fused_adam import FusedAdamStepper

__all__ = ["FusedOptimizer", "create_scheduler", "optimizer_factory"]

OptimizerFactory = Callable[[Any], torch.optim.Optimizer]

#: Steps between two removals of negligible moments, which decay by a factor of 10⁻⁵ in between.
_STEPS_BETWEEN_REMOVALS = 100
#: First moments below this multiple of the smallest normal number are negligible: about 10⁻³⁰ in
#: float32. Their products with the learning rate are denormal, or soon will be.
_NEGLIGIBLE = 1e8


class FusedOptimizer(PyroOptim):
    """A ``PyroOptim`` that steps all parameters with a single torch optimizer.

    ``pyro.optim`` creates one torch optimizer per parameter, whose overhead dominates an
    ``SVI.step`` of a small network. Here one optimizer, fused if torch supports it, updates all
    parameters, and gradients can be clipped by their global norm. Plain ``SVI`` passes the
    parameters that the program registers with Pyro (``pyro.module``, a ``PyroModule``);
    :meth:`add` adds others.

    Arguments:
        optimizer: ``optimizer(params)`` creates the torch optimizer, for example
            ``partial(torch.optim.Adam, lr=1e-3)``.
        clip_norm: maximum global norm of the gradients. SVI's gradient is that of the loss
            summed over the minibatch.
        reduce: called with the parameters before clipping, to reduce their gradients across
            processes.

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
        self._steps_since_removal = 0
        self._names: dict[torch.Tensor, str] = {}
        self._pending_state: dict[str, Any] | None = None

    @property
    def parameters(self) -> dict[str, torch.Tensor]:
        """All parameters by name, in the optimizer's order."""
        return {name: parameter for parameter, name in self._names.items()}

    def __call__(self, params: Iterable[torch.Tensor], *args: Any, **kwargs: Any) -> None:
        """Step all parameters that have a gradient, and remove the gradients.

        Parameters that are not known yet and not frozen are added to the optimizer first. Those
        known are stepped whether or not they are among ``params``, the parameters that the program
        registered with Pyro in this step.

        Raises:
            ValueError: if there are no parameters.
        """
        new = [p for p in set(params) if p.requires_grad and p not in self._names]
        if new:
            store = pyro.get_param_store()
            # SVI passes a set: sort it, so that sums over parameters have a fixed order
            self.add(dict(sorted((str(store.param_name(p)), p) for p in new)))
        if self._stepper is None:
            raise ValueError(
                "expected parameters to train; the program registered none with Pyro: call "
                "pyro.module in model and guide, or make the program a PyroModule"
            )
        if self.reduce is not None:
            self.reduce(self._names)
        if self.clip_norm is not None:
            clip_grad_norm_(list(self._names), self.clip_norm)
        self._stepper.step()
        for parameter in self._names:
            # SVI would set it to zero, with which momentum keeps moving a parameter that another
            # program owns
            parameter.grad = None
        self._steps_since_removal += 1
        if self._steps_since_removal >= _STEPS_BETWEEN_REMOVALS:
            self.drop_denormals()

    def add(self, named: dict[str, torch.Tensor]) -> None:
        """Add named parameters to the optimizer, in this order."""
        if self.optimizer is None:
            self.optimizer = _create_optimizer(self.pt_optim_constructor, list(named.values()))
            self._stepper = FusedAdamStepper(self.optimizer)
        else:
            self.optimizer.add_param_group({"params": list(named.values())})
        self._names |= {parameter: name for name, parameter in named.items()}
        if self._pending_state and self._pending_state["names"] == list(self.parameters):
            self.optimizer.load_state_dict(self._pending_state["optimizer"])
            self._pending_state = None

    @torch.no_grad()
    def drop_denormals(self) -> None:
        """Set denormal and negligible numbers in the state to zero, as every 100th step does.

        The first moment of a weight without a gradient decays to the smallest denormal number, and
        rounding keeps it there, where each step is many times slower on some processors. Its
        update is far below the resolution of the weight.
        """
        self._steps_since_removal = 0
        states = self.optimizer.state.values() if self.optimizer else ()
        for name, value in (item for state in states for item in state.items()):
            if isinstance(value, torch.Tensor) and value.is_floating_point():
                tiny = torch.finfo(value.dtype).tiny
                size = _NEGLIGIBLE * tiny if name == "exp_avg" else tiny
                # one pass, which keeps NaN
                torch.hardshrink(value, size, out=value)

    def get_state(self) -> dict[str, Any]:
        """Return the optimizer's state and the names of its parameters, in order."""
        state = self.optimizer.state_dict() if self.optimizer else {}
        return {"names": list(self.parameters), "optimizer": state}

    def set_state(self, state_dict: dict[str, Any]) -> None:
        """Restore a state from :meth:`get_state`, once all its parameters have been added."""
        if self.optimizer is not None and state_dict["names"] == list(self.parameters):
            self.optimizer.load_state_dict(state_dict["optimizer"])
        else:
            self._pending_state = state_dict


def _create_optimizer(factory: Any, params: list[torch.Tensor]) -> torch.optim.Optimizer:
    """Create the torch optimizer, fused if supported and not set by the user."""
    try:
        optimizer = _create_fused(factory, params) or factory(params)
    except ValueError as error:
        raise ValueError(f"invalid arguments of the optimizer: {error}") from error
    closure = inspect.signature(type(optimizer).step).parameters.get("closure")
    if closure is not None and closure.default is inspect.Parameter.empty:
        raise ValueError(
            f"expected an optimizer that evaluates the loss once per step; got "
            f"{type(optimizer).__name__}, whose evaluations would use different samples: use Adam, "
            f"for example"
        )
    try:
        _make_trial(factory, params[0]).step()
    except Exception as error:
        raise ValueError(
            f"expected an optimizer that can step the parameters; got {type(optimizer).__name__}: "
            f"{error}"
        ) from error
    return optimizer


def _make_trial(factory: Any, like: torch.Tensor) -> torch.optim.Optimizer:
    """Create an optimizer of a copy of one parameter, with a gradient of zero."""
    parameter = torch.nn.Parameter(like.detach().clone())
    parameter.grad = torch.zeros_like(parameter)
    return factory([parameter])


def create_scheduler(
    schedule: Callable[[torch.optim.Optimizer], LRScheduler], optim: FusedOptimizer, epochs: int
) -> LRScheduler:
    """Create a schedule of the learning rate, after a trial of up to 1000 epochs.

    Raises:
        ValueError: if the schedule has invalid arguments or ends before the last epoch.
    """
    assert optim.optimizer is not None
    try:
        trial = _make_trial(optim.pt_optim_constructor, next(iter(optim.parameters.values())))
        scheduler = schedule(trial)
        trial.step()  # torch warns of a schedule that steps before its optimizer
        for _ in range(min(epochs, 1000)):
            scheduler.step(0.0) if isinstance(scheduler, ReduceLROnPlateau) else scheduler.step()
        return schedule(optim.optimizer)
    except Exception as error:
        raise ValueError(
            f"invalid arguments of the learning rate schedule, for {epochs} epochs: {error}"
        ) from error


def _create_fused(factory: Any, params: list[torch.Tensor]) -> torch.optim.Optimizer | None:
    if getattr(factory, "keywords", {}).get("fused") is not None:
        return None
    try:
        return factory(params, fused=True)
    except (TypeError, RuntimeError):
        return None


def optimizer_factory(optimizer: Any) -> Callable[[Any], torch.optim.Optimizer]:
    """Return a function that creates the torch optimizer of all parameters.

    Arguments:
        optimizer: such a function, or an optimizer of ``pyro.optim`` with fixed arguments.

    Raises:
        ValueError: if it is an instance of a torch optimizer, which has parameters already, or an
            optimizer of ``pyro.optim`` that clips gradients, schedules its learning rate, or has
            arguments per parameter.
    """
    if isinstance(optimizer, torch.optim.Optimizer):
        name = type(optimizer).__name__
        raise ValueError(
            f"expected a class of torch.optim or a partial of one, to create the optimizer of all "
            f"parameters; got an instance of {name}: pass functools.partial(torch.optim.{name}, "
            f"lr=…)"
        )
    if not isinstance(optimizer, PyroOptim):
        return optimizer
    args = optimizer.pt_optim_args
    is_scheduled = hasattr(optimizer, "pt_scheduler_constructor")
    if is_scheduled or callable(args) or optimizer.pt_clip_args:
        raise ValueError(
            "expected an optimizer of pyro.optim with one set of arguments for all parameters; got "
            "one with a scheduler, clipping or arguments per parameter: pass "
            "functools.partial(torch.optim.Adam, …), with schedule and clip_norm"
        )
    return partial(cast(Any, optimizer.pt_optim_constructor), **args)
