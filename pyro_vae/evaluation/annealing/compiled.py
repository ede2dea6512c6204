"""Compiled gradients along an annealing path."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import torch
from torch import Tensor

from ...compiler.cache import compile_cached, log_not_compiled, worth_compiling
from ...compiler.hoist import hoist_invariants
from ...compiler.matmul import matmul_backend
from ...compiler.trace import NotTraceableError, trace_graph
from ...programs.hmc import HMCState
from .path import AnnealingPath

__all__ = ["compile_path"]

#: Relative tolerance (in norm) of compiled values, and the β at which they are checked.
_TOLERANCE, _TEST_BETA = 1e-3, 0.5


def compile_path(path: AnnealingPath, gradients: int, width: int) -> AnnealingPath:
    """Return the path with a compiled gradient, if that is possible and faster overall.

    The gradient is compiled at its first evaluation, for that number of chains. Results differ
    by rounding.

    Arguments:
        path: the path.
        gradients: the expected number of gradient evaluations of all chains.
        width: the size of the widest site for one chain and example.
    """
    compiled: _CompiledGradient | None = None
    decided = False

    def evaluate(beta: float, position: Mapping[str, Tensor]) -> tuple[HMCState, Tensor] | None:
        nonlocal compiled, decided
        if decided:
            return None if compiled is None else compiled(beta, position)
        decided = True
        point, difference = path.evaluate(beta, position)
        if worth_compiling(gradients * difference.numel() * width):
            try:
                with torch.random.fork_rng():
                    compiled = _CompiledGradient(path, point)
            except NotTraceableError as error:
                log_not_compiled(error)
        return point, difference

    return replace(path, compiled=evaluate)


class _CompiledGradient:
    """Compiled graph of log f_β, its gradient and log f_1 − log f_0 as functions of β and v.

    Arguments:
        path: the path, whose gradient was evaluated before: results that it caches, such as
            those of the guide, are not part of the graph.
        point: positions of the chains, with the shapes of later calls.

    Raises:
        NotTraceableError: if the gradient is not a single graph, cannot be compiled here, or the
            compiled graph gives different values.
    """

    def __init__(self, path: AnnealingPath, point: HMCState) -> None:
        position = point.position
        self._shapes = _shapes(position)

        def function(beta: Tensor, *parts: Tensor) -> tuple[Tensor, ...]:
            with torch.enable_grad():
                leaves = [part.detach().requires_grad_() for part in parts]
                first, difference = path.terms(dict(zip(self._shapes, leaves, strict=True)))
                value = first + beta * difference
                gradients = torch.autograd.grad(value.sum(), leaves, allow_unused=True)
            results = (
                torch.zeros_like(leaf) if gradient is None else gradient
                for leaf, gradient in zip(leaves, gradients, strict=True)
            )
            return value.detach(), difference.detach(), *results

        inputs = [torch.tensor(_TEST_BETA, dtype=torch.float64), *position.values()]
        graph, constants = trace_graph(function, *inputs)
        hoisted, body = hoist_invariants(graph, [*inputs, *constants], changing=len(inputs))
        with torch.no_grad():
            self._constants = [*constants, *hoisted(*inputs, *constants)]
        self._body = compile_cached(body, [*inputs, *self._constants])
        expected, _ = path.evaluate(_TEST_BETA, position)
        result = self(_TEST_BETA, position)
        assert result is not None  # the shapes are the same
        if not _is_close(result[0].log_density, expected.log_density):
            raise NotTraceableError("its compiled graph gives a different log-density")
        for name, gradient in expected.gradient.items():
            if not _is_close(result[0].gradient[name], gradient):
                raise NotTraceableError(
                    f"its compiled graph gives a different gradient of {name!r}"
                )

    def __call__(
        self, beta: float, position: Mapping[str, Tensor]
    ) -> tuple[HMCState, Tensor] | None:
        if _shapes(position) != self._shapes:
            return None
        parts = [position[name].contiguous() for name in self._shapes]
        with torch.no_grad(), matmul_backend():
            results = self._body(torch.tensor(beta, dtype=torch.float64), *parts, *self._constants)
        value, difference, *gradients = results
        position = dict(zip(self._shapes, (part.detach() for part in parts), strict=True))
        return HMCState(
            position, value, dict(zip(self._shapes, gradients, strict=True))
        ), difference


def _shapes(position: Mapping[str, Tensor]) -> dict[str, tuple[torch.Size, torch.dtype]]:
    return {name: (part.shape, part.dtype) for name, part in position.items()}


def _is_close(actual: Tensor, expected: Tensor) -> bool:
    finite = expected.isfinite()
    error = (actual - expected)[finite].norm()
    return bool(error <= _TOLERANCE * expected[finite].norm().clamp(min=1))
