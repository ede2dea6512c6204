"""SVI with compiled steps."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from typing import Any, cast

import pyro
import torch
from pyro import poutine
from pyro.infer import SVI
from torch import Tensor

from ..compiler.matmul import (
    TrainingPrecision,
    has_large_products,
    layer_precision,
    matmul_backend,
)
from ..compiler.rewrites import rewrite_formulas
from ..compiler.trace import Graph, NotTraceableError, compile_graph, trace_graph
from ..core.evaluation_mode import owning_modules, preserve_buffers
from .cuda_graph import CudaGraph
from .objectives.base import Objective
from .optimizers import FusedOptimizer

__all__ = ["CompiledSVI"]

_log = logging.getLogger("pyro_vae")

#: Relative tolerance (in norm) between compiled and eager gradients, which differ by rounding.
_TOLERANCE = 1e-3
#: Further tolerance if layers are rounded, relative to the difference that rounding makes to the
#: eager gradient. Values close to a tie round otherwise in a compiled graph, and each layer changes
#: more of them, up to independent rounding errors, which differ by √2 times that.
_ROUNDING_TOLERANCE = 2.0


class CompiledSVI(SVI):
    """Pyro's ``SVI`` with compiled steps: sampling, guide, model, objective and gradient.

    Model, guide and objective are traced once per signature of the arguments (shapes, dtypes and
    devices of tensors, values of other arguments). TorchInductor compiles the resulting graph; the
    optimizer step follows, with ``FusedOptimizer`` as a single fused kernel. On a GPU both are
    captured as a CUDA graph. The random numbers are those of plain ``SVI`` (with an objective that
    has run on the program before), so losses and weights differ by rounding only. The first
    gradient of each signature is checked against the eager one.

    Everything that is not a tensor is fixed at tracing time. Programs with Python state that
    changes between calls, such as a counter, are not supported; schedules of the objective and
    the training mode of modules are, and parameters may be frozen (``requires_grad``).

    Arguments:
        model, guide: the Pyro program.
        optim: ``pyro_vae.learning.optimizers.FusedOptimizer`` for a single optimizer, or any
            ``PyroOptim``.
        loss: an objective of this package.
        draw: maps the arguments of :meth:`step` to those of model and guide, inside the graph;
            for instance gathers a minibatch by index and binarises it.
        worthwhile: predicate on the arguments of :meth:`step`: whether they occur often enough to
            compile.
        precision: precision of the layers, as for :func:`~pyro_vae.fit`.

    Attributes:
        compile_seconds: total time spent on tracing, compiling and checking.
        reasons: reasons why steps run eagerly, if any do.
    """

    def __init__(
        self,
        model: Callable[..., Any],
        guide: Callable[..., Any],
        optim: Any,
        loss: Any,
        draw: Callable[..., tuple] | None = None,
        worthwhile: Callable[..., bool] | None = None,
        precision: TrainingPrecision = "float32",
    ) -> None:
        super().__init__(model, guide, optim, loss=loss.loss, loss_and_grads=loss.loss_and_grads)
        self.objective = loss
        self.compile_seconds = 0.0
        self.reasons: list[str] = []
        self.precision: TrainingPrecision = precision
        self._draw = draw if draw is not None else lambda *args: args
        self._worthwhile = worthwhile
        self._steps: dict[tuple, _CompiledStep | None] = {}
        self._owners = list(owning_modules(model, guide))
        self._owned: list[Tensor] | None = None

    def step(self, *args: Any, **kwargs: Any) -> Any:
        """Take one optimisation step.

        Returns:
            The loss (minus the objective, summed over the minibatch, in nats) as a scalar tensor,
            without device synchronisation.

        Raises:
            TypeError: if keyword arguments are given; use ``draw`` to add them.
        """
        if kwargs:
            raise TypeError(
                f"expected positional arguments; got {', '.join(kwargs)}: bind keyword arguments "
                f"with functools.partial"
            )
        if self._worthwhile is not None and not self._worthwhile(*args):
            return self._step_eagerly(args)
        if self._owned is None:
            self._owned = [p for owner in self._owners for p in owner.parameters()]
        state = [*(m.training for m in self._owners), *(p.requires_grad for p in self._owned)]
        key = (*map(_tensor_signature, args), *state)
        if key not in self._steps:
            self._steps[key] = self._compile(args)
        step = self._steps[key]
        return self._step_eagerly(args) if step is None else step(args)

    def _step_eagerly(self, args: tuple) -> Tensor:
        with layer_precision(self.precision):
            loss: Any = super().step(*self._draw(*args))
        return torch.as_tensor(loss, dtype=torch.float64)

    def _compile(self, args: tuple) -> _CompiledStep | None:
        start = time.perf_counter()
        try:
            return _CompiledStep(self, args)
        except NotTraceableError as error:
            self.reasons.append(str(error))
            _log.warning("the step is not compiled and runs eagerly: %s", error)
            return None
        finally:
            self.compile_seconds += time.perf_counter() - start


class _CompiledStep:
    """Compiled step for one signature of the arguments.

    The graph maps tensor arguments and the values of schedules to the loss and the gradients.
    """

    def __init__(self, svi: CompiledSVI, args: tuple) -> None:
        objective = svi.objective
        if not isinstance(objective, Objective):
            raise NotTraceableError(
                f"{type(objective).__name__} reads its loss back on the host in every step; use an "
                f"objective of pyro_vae.objectives"
            )
        if objective.not_traceable_reason:
            raise NotTraceableError(f"{type(objective).__name__}: {objective.not_traceable_reason}")
        self._svi, self._like = svi, args
        #: Parameters that the program uses, and those that have a gradient.
        self._parameters: list[Tensor] = []
        self._leaves: list[Tensor] = []
        tensors = _tensors(args)
        device = tensors[0].device
        values = objective.schedule_values()
        self._schedules = {n: torch.tensor(v, device=device) for n, v in values.items()}
        with torch.no_grad(), torch.random.fork_rng(), preserve_buffers(svi._owners):
            # run once before tracing, so that the objective selects its estimator
            objective.loss(svi.model, svi.guide, *svi._draw(*args))
        inputs = [*tensors, *self._schedules.values()]
        with preserve_buffers(svi._owners):
            graph, self._constants = trace_graph(self._loss_and_gradients, *inputs)
        inputs += self._constants
        self._large_products = has_large_products(graph)
        self._graph: Graph = compile_graph(rewrite_formulas(graph, inputs), inputs)
        self._check_gradients(tensors)
        on_gpu = any(leaf.is_cuda for leaf in self._leaves) and _is_capturable(svi.optim)
        self._run = CudaGraph(self._run_eagerly, tensors) if on_gpu else self._run_eagerly

    def __call__(self, args: tuple) -> Tensor:
        for name, value in self._svi.objective.schedule_values().items():
            self._schedules[name].fill_(value)
        return self._run(*_tensors(args))

    def _run_eagerly(self, *tensors: Tensor) -> Tensor:
        loss, *gradients = self._run_graph(*tensors)
        for leaf, gradient in zip(self._leaves, gradients, strict=True):
            leaf.grad = gradient
        self._svi.optim(set(self._parameters))
        for leaf in self._leaves:
            leaf.grad = None
        return loss

    def _run_graph(self, *tensors: Tensor) -> tuple[Tensor, ...]:
        # TF32 is a setting of the library; the graph itself rounds to bfloat16
        precision = "tf32" if self._svi.precision == "tf32" else "float32"
        with matmul_backend(precision, self._large_products):
            return self._graph(*tensors, *self._schedules.values(), *self._constants)

    def _loss_and_gradients(
        self, *tensors: Tensor, precision: TrainingPrecision | None = None
    ) -> tuple[Tensor, ...]:
        """Return the loss and the gradients, as computed by Pyro's ``SVI``."""
        with layer_precision(precision or self._svi.precision):
            return self._differentiate(*tensors)

    def _differentiate(self, *tensors: Tensor) -> tuple[Tensor, ...]:
        svi, count = self._svi, len(tensors) - len(self._schedules)
        schedule_values = dict(zip(self._schedules, tensors[count:], strict=True))
        tensor_args = iter(tensors[:count])
        args = [next(tensor_args) if isinstance(like, Tensor) else like for like in self._like]
        with (
            torch.enable_grad(),
            poutine.trace(param_only=True) as capture,
            svi.objective.override_schedules(schedule_values),
        ):
            loss, surrogate = svi.objective.terms(svi.model, svi.guide, *svi._draw(*args))
        sites = cast("Any", capture.trace.nodes).values()
        parameters = [site["value"].unconstrained() for site in sites]
        if isinstance(svi.optim, FusedOptimizer):
            # it steps its parameters whether or not the program registers them with Pyro
            parameters += svi.optim.parameters.values()
        self._parameters = list({id(p): p for p in parameters}.values())
        trainable = [p for p in self._parameters if p.requires_grad]
        gradients = torch.autograd.grad(surrogate, trainable, allow_unused=True)
        pairs = [(p, g) for p, g in zip(trainable, gradients, strict=True) if g is not None]
        self._leaves = [p for p, _ in pairs]
        return (loss, *(g for _, g in pairs))

    def _check_gradients(self, tensors: list[Tensor]) -> None:
        """Raise if the first gradient differs from the eager one with the same random numbers.

        If layers are rounded, the allowed difference follows that between the eager gradients with
        and without rounding.
        """
        inputs = [*tensors, *self._schedules.values()]
        with pyro.validation_enabled(False), preserve_buffers(self._svi._owners):
            with torch.random.fork_rng():
                eager = exact = self._loss_and_gradients(*inputs)
            if self._svi.precision != "float32":
                with torch.random.fork_rng():
                    exact = self._loss_and_gradients(*inputs, precision="float32")
            with torch.random.fork_rng():
                graph = self._run_graph(*tensors)
        norm = torch.linalg.vector_norm
        for a, b, c in zip(eager, graph, exact, strict=True):
            if not norm(a - b) <= _TOLERANCE * norm(a) + _ROUNDING_TOLERANCE * norm(a - c):
                raise NotTraceableError("the compiled gradient differs from the eager gradient")


def _tensors(args: tuple) -> list[Tensor]:
    return [arg for arg in args if isinstance(arg, Tensor)]


def _tensor_signature(arg: Any) -> Any:
    return (arg.shape, arg.dtype, arg.device) if isinstance(arg, Tensor) else arg


def _is_capturable(optim: Any) -> bool:
    """Whether the optimizer step can be captured in a CUDA graph."""
    if not isinstance(optim, FusedOptimizer) or optim.optimizer is None:
        return False
    return all(group.get("capturable", False) for group in optim.optimizer.param_groups)
