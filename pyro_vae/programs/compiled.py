"""Runs of one shape as a compiled graph: what no draw reaches once, the rest for every draw."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from ..compile.cache import compile_cached, log_not_compiled, worth_compiling
from ..compile.hoist import hoist_invariants
from ..compile.matmul import matmul_backend
from ..compile.trace import NotTraceableError, trace_graph
from .particles import Layout, Particles

__all__ = ["CompiledRuns", "compiled_runs"]

#: How far log weights of the compiled graph may be from those of the program, relative to them,
#: and for how many pairs: a rounding may decide which of several values is drawn.
_TOLERANCE, _MOST_APART = 1e-3, 0.01


def compiled_runs(
    run: Callable[..., Particles],
    args: tuple[Any, ...],
    kwargs: Mapping[str, Any],
    shape: tuple[int, int],
    times: int,
    layout: Layout,
    wanted: bool | None = None,
) -> CompiledRuns | None:
    """Compiled runs if they are wanted, or worth it if nobody said, and possible.

    Arguments:
        run: makes a run, and has made one.
        args: what it is called with, the data first.
        kwargs: by name.
        shape: how many particles of how many data a run has.
        times: how many such runs there will be.
        layout: of its particles.
        wanted: whether they are wanted.
    """
    if wanted is None:
        wanted = worth_compiling(times * shape[0] * shape[1] * layout.width)
    if not wanted:
        return None
    try:
        return CompiledRuns(run, args, kwargs, shape[0])
    except NotTraceableError as error:
        log_not_compiled(error)
        return None


class CompiledRuns:
    """:func:`~pyro_vae.programs.particles.run_particles` for blocks of data of one shape.

    It draws the same random numbers; results differ by rounding. What depends on the data and on
    the weights alone, such as an encoder's outputs, is computed once for each block. Compiled
    code of equal graphs is shared, so that whoever asks again pays for the tracing only.

    Arguments:
        run: makes a run, and has made one.
        args: what it is called with, the data first: of the shapes to come.
        kwargs: by name.
        num_samples: the number K of particles of each run.

    Raises:
        NotOneGraphError: if the program is no single graph, if none can be compiled here, or if
            it gives other weights than the program does.
    """

    def __init__(
        self,
        run: Callable[..., Particles],
        args: tuple[Any, ...],
        kwargs: Mapping[str, Any],
        num_samples: int,
    ) -> None:
        names: list[list[str]] = []

        def flat(*tensors: Tensor) -> tuple[Tensor, ...]:
            rest = iter(tensors)
            given = [next(rest) if isinstance(value, Tensor) else value for value in args]
            named = {
                name: next(rest) if isinstance(value, Tensor) else value
                for name, value in kwargs.items()
            }
            found = run(*given, num_samples=num_samples, **named)
            parts = (found.log_p, found.log_q, found.latents)
            names[:] = [list(part) for part in parts]
            return tuple(value for part in parts for value in part.values())

        tensors = _tensors(args, kwargs)
        graph, self._held = trace_graph(flat, *tensors)
        self._names = names
        inputs = [*tensors, *self._held]
        self._once, each = hoist_invariants(graph, inputs)
        self._inputs = [*inputs, *self._once(*inputs)]
        self._each = compile_cached(each, self._inputs)
        self._compare(lambda: run(*args, num_samples=num_samples, **kwargs))

    def _compare(self, run: Callable[[], Particles]) -> None:
        """Refuses a graph that does not repeat the program on the same random numbers."""
        weights = []
        for way in (run, self):
            with torch.random.fork_rng():
                weights.append(way().log_weights)
        expected, got = weights
        scale = expected.abs().clamp(min=1)
        near = ((got - expected).abs() <= _TOLERANCE * scale) | (got == expected)
        near |= got.isnan() & expected.isnan()
        if (~near).double().mean() > _MOST_APART:
            raise NotTraceableError(
                f"its graph has other weights, by up to {float((got - expected).abs().max()):.3g}"
            )

    def block(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
        """Makes ready for other data of the same shape."""
        inputs = [*_tensors(args, kwargs), *self._held]
        self._inputs = [*inputs, *self._once(*inputs)]

    def __call__(self) -> Particles:
        """A run on the data that it was made ready for."""
        with matmul_backend():
            found = iter(self._each(*self._inputs))
        return Particles(*({name: next(found) for name in names} for names in self._names))


def _tensors(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> list[Tensor]:
    return [value for value in (*args, *kwargs.values()) if isinstance(value, Tensor)]
