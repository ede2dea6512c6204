"""Compiled particle runs of a fixed shape, with sample-independent work hoisted out."""

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

__all__ = ["CompiledRuns", "compile_runs"]

#: Relative tolerance of the compiled log weights, and the maximum fraction of pairs outside of it:
#: rounding may change the outcome of a discrete draw.
_TOLERANCE, _MAX_MISMATCH = 1e-3, 0.01


def compile_runs(
    run: Callable[..., Particles],
    args: tuple[Any, ...],
    kwargs: Mapping[str, Any],
    shape: tuple[int, int],
    num_runs: int,
    layout: Layout,
    enabled: bool | None = None,
) -> CompiledRuns | None:
    """Compile the runs of a program if requested, or if it pays off.

    Arguments:
        run: runs the program; called at least once before.
        args: its arguments, the data first.
        kwargs: its keyword arguments.
        shape: numbers of particles and examples of each run.
        num_runs: number of runs.
        layout: layout of the particles.
        enabled: whether to compile; by default, if the computation is large enough.

    Returns:
        The compiled runs; ``None`` if not compiled. The reason is logged if the program cannot be
        compiled.
    """
    if enabled is None:
        enabled = worth_compiling(num_runs * shape[0] * shape[1] * layout.width)
    if not enabled:
        return None
    try:
        return CompiledRuns(run, args, kwargs, shape[0])
    except NotTraceableError as error:
        log_not_compiled(error)
        return None


class CompiledRuns:
    """Compiled :func:`~pyro_vae.programs.particles.run_particles` for blocks of data of one shape.

    Draws the same random numbers as the program; results differ by rounding. Work that depends
    only on the data and the parameters, such as an encoder, runs once per block. Compiled code is
    cached: another instance with the same graph is only traced.

    Arguments:
        run: runs the program; called at least once before.
        args: its arguments, the data first, with the shapes of all later blocks.
        kwargs: its keyword arguments.
        num_samples: the number K of particles of each run.

    Raises:
        NotTraceableError: if the program is not a single graph, cannot be compiled, or gives
            different weights when compiled.
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
            remaining = iter(tensors)
            inputs = [next(remaining) if isinstance(value, Tensor) else value for value in args]
            named = {
                name: next(remaining) if isinstance(value, Tensor) else value
                for name, value in kwargs.items()
            }
            particles = run(*inputs, num_samples=num_samples, **named)
            parts = (particles.log_p, particles.log_q, particles.latents)
            names[:] = [list(part) for part in parts]
            return tuple(value for part in parts for value in part.values())

        tensors = _tensors(args, kwargs)
        graph, self._closure = trace_graph(flat, *tensors)
        self._names = names
        inputs = [*tensors, *self._closure]
        self._once, each = hoist_invariants(graph, inputs)
        self._inputs = [*inputs, *self._once(*inputs)]
        self._each = compile_cached(each, self._inputs)
        self._check(lambda: run(*args, num_samples=num_samples, **kwargs))

    def _check(self, run: Callable[[], Particles]) -> None:
        """Check that the graph and the program agree for the same random numbers."""
        weights = []
        for function in (run, self):
            with torch.random.fork_rng():
                weights.append(function().log_weights)
        expected, got = weights
        scale = expected.abs().clamp(min=1)
        close = ((got - expected).abs() <= _TOLERANCE * scale) | (got == expected)
        close |= got.isnan() & expected.isnan()
        if (~close).double().mean() > _MAX_MISMATCH:
            raise NotTraceableError(
                f"its compiled log weights differ by up to "
                f"{float((got - expected).abs().max()):.3g}"
            )

    def set_inputs(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
        """Set the data of the following runs, of the same shape, and run the hoisted part."""
        inputs = [*_tensors(args, kwargs), *self._closure]
        self._inputs = [*inputs, *self._once(*inputs)]

    def __call__(self) -> Particles:
        """Run on the current inputs."""
        with matmul_backend():
            outputs = iter(self._each(*self._inputs))
        return Particles(*({name: next(outputs) for name in names} for names in self._names))


def _tensors(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> list[Tensor]:
    return [value for value in (*args, *kwargs.values()) if isinstance(value, Tensor)]
