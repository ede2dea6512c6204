"""The gradient along a path of annealing as one compiled graph."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import torch
from torch import Tensor

from ...compile.cache import compile_cached, log_not_compiled, worth_compiling
from ...compile.hoist import hoist_invariants
from ...compile.matmul import matmul_backend
from ...compile.trace import NotTraceableError, trace_graph
from ...programs.hmc import Point
from .path import Path

__all__ = ["compiled_path"]

#: How far compiled numbers may be from the path's own, in their norm, and the β that is tried.
_TOLERANCE, _TRIED = 1e-3, 0.5


def compiled_path(path: Path, gradients: int, width: int) -> Path:
    """The path with a compiled gradient, if that is worth its seconds and possible.

    It is compiled when the first gradient is asked for, for as many chains. Results differ by
    rounding.

    Arguments:
        path: the path.
        gradients: how often all chains will ask for one.
        width: the numbers of the widest site for one chain and datum.
    """
    slope: _Slope | None = None
    decided = False

    def at(beta: float, position: Mapping[str, Tensor]) -> tuple[Point, Tensor] | None:
        nonlocal slope, decided
        if decided:
            return None if slope is None else slope(beta, position)
        decided = True
        point, difference = path.at(beta, position)
        if worth_compiling(gradients * difference.numel() * width):
            try:
                with torch.random.fork_rng():
                    slope = _Slope(path, point)
            except NotTraceableError as error:
                log_not_compiled(error)
        return point, difference

    return replace(path, slope=at)


class _Slope:
    """log f_β, its gradient, and log f_1 − log f_0, of β and v.

    Arguments:
        path: the path, which has been asked for a gradient before: what it runs once and keeps,
            such as the guide, is no part of the graph.
        point: where chains are, of the shapes to come.

    Raises:
        NotOneGraphError: if it is no single graph, if none can be compiled here, or if that has
            other values.
    """

    def __init__(self, path: Path, point: Point) -> None:
        position = point.position
        self._shapes = _shapes(position)

        def function(beta: Tensor, *parts: Tensor) -> tuple[Tensor, ...]:
            with torch.enable_grad():
                leaves = [part.detach().requires_grad_() for part in parts]
                first, difference = path.terms(dict(zip(self._shapes, leaves, strict=True)))
                value = first + beta * difference
                gradients = torch.autograd.grad(value.sum(), leaves, allow_unused=True)
            found = (
                torch.zeros_like(leaf) if gradient is None else gradient
                for leaf, gradient in zip(leaves, gradients, strict=True)
            )
            return value.detach(), difference.detach(), *found

        moving = [torch.tensor(_TRIED, dtype=torch.float64), *position.values()]
        graph, held = trace_graph(function, *moving)
        once, each = hoist_invariants(graph, [*moving, *held], changing=len(moving))
        with torch.no_grad():
            self._rest = [*held, *once(*moving, *held)]
        self._each = compile_cached(each, [*moving, *self._rest])
        expected, _ = path.at(_TRIED, position)
        found = self(_TRIED, position)
        assert found is not None  # the shapes are the same
        if not _near(found[0].log_density, expected.log_density):
            raise NotTraceableError("its graph has another log-density")
        for name, gradient in expected.gradient.items():
            if not _near(found[0].gradient[name], gradient):
                raise NotTraceableError(f"its graph has another gradient by {name!r}")

    def __call__(self, beta: float, position: Mapping[str, Tensor]) -> tuple[Point, Tensor] | None:
        if _shapes(position) != self._shapes:
            return None
        parts = [position[name].contiguous() for name in self._shapes]
        with torch.no_grad(), matmul_backend():
            found = self._each(torch.tensor(beta, dtype=torch.float64), *parts, *self._rest)
        value, difference, *gradients = found
        at = dict(zip(self._shapes, (part.detach() for part in parts), strict=True))
        return Point(at, value, dict(zip(self._shapes, gradients, strict=True))), difference


def _shapes(position: Mapping[str, Tensor]) -> dict[str, tuple[torch.Size, torch.dtype]]:
    return {name: (part.shape, part.dtype) for name, part in position.items()}


def _near(got: Tensor, expected: Tensor) -> bool:
    usable = expected.isfinite()
    apart = (got - expected)[usable].norm()
    return bool(apart <= _TOLERANCE * expected[usable].norm().clamp(min=1))
