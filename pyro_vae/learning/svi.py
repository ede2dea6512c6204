"""Pyro's SVI with a step whose gradient is one compiled graph."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, cast

import pyro
import torch
from pyro import poutine
from pyro.infer import SVI
from torch import Tensor, nn

from ..compile.matmul import matmul_backend
from ..compile.rewrites import rewrite_formulas
from ..compile.trace import Graph, NotTraceableError, compile_graph, trace_graph
from ..core.evaluation_mode import owning_modules
from .cuda_graph import CudaGraph
from .objectives.base import Objective
from .optimizers import FusedOptimizer

__all__ = ["CompiledSVI"]

_log = logging.getLogger("pyro_vae")

#: How far a compiled gradient may be from the eager one, in its norm: both round.
_TOLERANCE = 1e-3


class CompiledSVI(SVI):
    """Pyro's ``SVI`` whose step is one graph: draw, guide, model, objective and gradient.

    Program and objective are run once for each kind of arguments (their shapes, types and
    devices; the values of those that are no tensors), which leaves a graph of tensor operations
    that TorchInductor fuses; then the optimiser steps, which for ``FusedOptimizer`` is a single fused
    kernel. On a GPU both are captured as a CUDA graph. The random numbers are those that plain
    ``SVI`` would draw (with an objective that has looked at the program before), so that losses
    and weights differ by rounding alone; the first gradient of each kind is compared with the
    eager one.

    What is not a tensor is as it was when a kind of arguments was first met: a program that
    changes by itself, say with a counter of its calls, is not for this class, except for
    schedules of the objective and for its modules' training mode.

    Arguments:
        model: the Pyro model.
        guide: its guide.
        optim: ``pyro_vae.learning.optimizers.FusedOptimizer`` for a single optimiser, or any ``PyroOptim``.
        loss: an objective of this package.
        draw: makes the arguments of model and guide of those of :meth:`step`, as a part of the
            graph: gathers a minibatch by its index, binarises it.
        worthwhile: says of the arguments of :meth:`step` whether they come often enough to be
            compiled.

    Attributes:
        compile_seconds: how long tracing, compiling and comparing took so far.
        reasons: why steps are not compiled, if some are not: these run eagerly.
    """

    def __init__(
        self,
        model: Callable[..., Any],
        guide: Callable[..., Any],
        optim: Any,
        loss: Any,
        draw: Callable[..., tuple] | None = None,
        worthwhile: Callable[..., bool] | None = None,
    ) -> None:
        super().__init__(model, guide, optim, loss=loss.loss, loss_and_grads=loss.loss_and_grads)
        self.objective = loss
        self.compile_seconds = 0.0
        self.reasons: list[str] = []
        self._draw = draw if draw is not None else _as_they_are
        self._worthwhile = worthwhile
        self._steps: dict[tuple, _Step | None] = {}
        self._owners = list(owning_modules(model, guide))

    def step(self, *args: Any, **kwargs: Any) -> Any:
        """Makes a step.

        Returns:
            The loss, minus the objective summed over the data, in nats: a tensor without
            dimensions, which nobody has waited for.

        Raises:
            TypeError: if keyword arguments are given; ``draw`` may add what the program needs.
        """
        if kwargs:
            raise TypeError(
                f"expected positional arguments; got {', '.join(kwargs)}: bind others with partial"
            )
        if self._worthwhile is not None and not self._worthwhile(*args):
            return self._eagerly(args)
        key = (*map(_kind, args), *(owner.training for owner in self._owners))
        if key not in self._steps:
            self._steps[key] = self._compile(args)
        step = self._steps[key]
        if step is None:
            return self._eagerly(args)
        return step(args, self._scheduled())

    def _eagerly(self, args: tuple) -> Tensor:
        loss: Any = super().step(*self._draw(*args))
        return torch.as_tensor(loss, dtype=torch.float64)

    def _scheduled(self) -> dict[str, float]:
        return self.objective.scheduled() if isinstance(self.objective, Objective) else {}

    def _compile(self, args: tuple) -> _Step | None:
        start = time.perf_counter()
        try:
            return _Step(self, args)
        except NotTraceableError as error:
            self.reasons.append(str(error))
            _log.warning("the step is not compiled and runs eagerly: %s", error)
            return None
        finally:
            self.compile_seconds += time.perf_counter() - start


class _Step:
    """The step for one kind of arguments."""

    def __init__(self, svi: CompiledSVI, args: tuple) -> None:
        self.gradient = _Gradient(svi, args)
        self.optim = svi.optim
        tensors = [arg for arg in args if isinstance(arg, Tensor)]
        on_gpu = any(leaf.is_cuda for leaf in self.gradient.leaves)
        self._captured = (
            CudaGraph(self._run, tensors) if on_gpu and _capturable(svi.optim) else None
        )

    def __call__(self, args: tuple, scheduled: Mapping[str, float]) -> Tensor:
        for name, value in scheduled.items():
            self.gradient.scheduled[name].fill_(value)
        tensors = [arg for arg in args if isinstance(arg, Tensor)]
        return self._captured(*tensors) if self._captured else self._run(*tensors)

    def _run(self, *tensors: Tensor) -> Tensor:
        loss = self.gradient(*tensors)
        self.optim(set(self.gradient.parameters))
        for leaf in self.gradient.leaves:
            leaf.grad = None
        return loss


class _Gradient:
    """The graph from the tensors among the arguments to the loss and every parameter's ``grad``.

    Attributes:
        parameters: those that the program asks for.
        leaves: those of them with a gradient.
        scheduled: what schedules are at the next step, each a tensor without dimensions.
    """

    def __init__(self, svi: CompiledSVI, args: tuple) -> None:
        objective = svi.objective
        if not isinstance(objective, Objective):
            raise NotTraceableError(
                f"{type(objective).__name__} reads its loss back in every step; "
                f"pyro_vae.objectives has the same bound without"
            )
        if objective.not_traceable_reason:
            raise NotTraceableError(f"{type(objective).__name__}: {objective.not_traceable_reason}")
        self._svi, self._like = svi, args
        self.parameters: list[Tensor] = []
        self.leaves: list[Tensor] = []
        tensors = [arg for arg in args if isinstance(arg, Tensor)]
        device = tensors[0].device
        values = svi._scheduled()
        self.scheduled = {n: torch.tensor(v, device=device) for n, v in values.items()}
        self._look(args)
        with _buffers_kept(svi._owners):
            graph, held = trace_graph(self._terms, *tensors, *self.scheduled.values())
        self._held = held
        inputs = [*tensors, *self.scheduled.values(), *held]
        self._graph: Graph = compile_graph(rewrite_formulas(graph, inputs), inputs)
        self._compare(tensors)

    def __call__(self, *tensors: Tensor) -> Tensor:
        with matmul_backend():
            loss, *gradients = self._graph(*tensors, *self.scheduled.values(), *self._held)
        for leaf, gradient in zip(self.leaves, gradients, strict=True):
            leaf.grad = gradient
        return loss

    def _look(self, args: tuple) -> None:
        """Lets the objective choose an estimator before it is traced."""
        with torch.no_grad(), torch.random.fork_rng(), _buffers_kept(self._svi._owners):
            self._svi.objective.loss(self._svi.model, self._svi.guide, *self._svi._draw(*args))

    def _terms(self, *tensors: Tensor) -> tuple[Tensor, ...]:
        """The loss and the gradients, as Pyro's ``SVI`` gets at them."""
        svi, count = self._svi, len(tensors) - len(self.scheduled)
        given = dict(zip(self.scheduled, tensors[count:], strict=True))
        places = iter(tensors[:count])
        args = [next(places) if isinstance(like, Tensor) else like for like in self._like]
        with (
            torch.enable_grad(),
            poutine.trace(param_only=True) as capture,
            svi.objective.given(given),
        ):
            loss, surrogate = svi.objective.terms(svi.model, svi.guide, *svi._draw(*args))
        sites = cast("Any", capture.trace.nodes).values()
        found = {id(p): p for p in (site["value"].unconstrained() for site in sites)}
        self.parameters = list(found.values())
        learned = [p for p in self.parameters if p.requires_grad]
        slopes = torch.autograd.grad(surrogate, learned, allow_unused=True)
        pairs = [(p, slope) for p, slope in zip(learned, slopes, strict=True) if slope is not None]
        self.leaves = [p for p, _ in pairs]
        return (loss, *(slope for _, slope in pairs))

    def _compare(self, tensors: list[Tensor]) -> None:
        """Holds the first gradient to the eager one, of the same draws."""
        inputs = [*tensors, *self.scheduled.values()]
        with pyro.validation_enabled(False), _buffers_kept(self._svi._owners):
            with torch.random.fork_rng():
                eager = self._terms(*inputs)
            with torch.random.fork_rng():
                graph = self._graph(*inputs, *self._held)
        for a, b in zip(eager, graph, strict=True):
            if not torch.linalg.vector_norm(a - b) <= _TOLERANCE * torch.linalg.vector_norm(a):
                raise NotTraceableError("its compiled gradient is not the eager one")


@contextmanager
def _buffers_kept(modules: Iterable[nn.Module]) -> Iterator[None]:
    """Lets statistics that a run changes, as batch norm's, be as they were before it."""
    buffers = [buffer for module in modules for buffer in module.buffers()]
    before = [buffer.clone() for buffer in buffers]
    try:
        yield
    finally:
        with torch.no_grad():
            for buffer, value in zip(buffers, before, strict=True):
                buffer.copy_(value)


def _kind(arg: Any) -> Any:
    return (arg.shape, arg.dtype, arg.device) if isinstance(arg, Tensor) else arg


def _as_they_are(*args: Any) -> tuple:
    return args


def _capturable(optim: Any) -> bool:
    """Whether a CUDA graph may hold the optimiser's step."""
    if not isinstance(optim, FusedOptimizer) or optim.optimizer is None:
        return False
    return all(group.get("capturable", False) for group in optim.optimizer.param_groups)
