"""Compiled particle runs of a fixed shape, with sample-independent work hoisted out."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ..compiler.cache import compile_cached, log_not_compiled
from ..compiler.hoist import hoist_invariants
from ..compiler.matmul import matmul_backend
from ..compiler.trace import NotTraceableError, trace_graph
from .arguments import ProgramInputs
from .particles import Particles

__all__ = ["CompiledRuns", "compile_runs"]

#: Relative tolerance of the compiled log weights, and the maximum fraction of pairs outside of it:
#: rounding may change the outcome of a discrete draw.
_TOLERANCE, _MAX_MISMATCH = 1e-3, 0.01


def compile_runs(
    run: Callable[..., Particles], inputs: ProgramInputs, num_samples: int
) -> CompiledRuns | None:
    """Return :class:`CompiledRuns`, or ``None`` if the program cannot be compiled.

    The reason is logged.
    """
    try:
        return CompiledRuns(run, inputs, num_samples)
    except NotTraceableError as error:
        log_not_compiled(error)
        return None


class CompiledRuns:
    """Compiled :func:`~pyro_vae.programs.particles.run_particles` for blocks of data of one shape.

    Draws the same random numbers as the program; results differ by rounding. Work that depends
    only on the data and the parameters, such as an encoder, runs once per block. Compiled code is
    cached: another instance with the same graph is only traced.

    Arguments:
        run: runs the program with its arguments; called at least once before.
        inputs: a block of data with the shapes of all later blocks.
        num_samples: the number K of particles of each run.

    Raises:
        NotTraceableError: if the program is not a single graph, cannot be compiled, or gives
            different weights when compiled.
    """

    def __init__(
        self, run: Callable[..., Particles], inputs: ProgramInputs, num_samples: int
    ) -> None:
        names: list[list[str]] = []
        _, _, x, args, kwargs = inputs

        def flat(*tensors: Tensor) -> tuple[Tensor, ...]:
            remaining = iter(tensors)

            def replace(value: Any) -> Any:
                return next(remaining) if isinstance(value, Tensor) else value

            positional = [replace(value) for value in (x, *args)]
            named = {name: replace(value) for name, value in kwargs.items()}
            particles = run(*positional, num_samples=num_samples, **named)
            parts = (particles.log_p, particles.log_q, particles.latents)
            names[:] = [list(part) for part in parts]
            return tuple(value for part in parts for value in part.values())

        graph, self._closure = trace_graph(flat, *_tensors(inputs))
        self._names = names
        self._once, each = hoist_invariants(graph, [*_tensors(inputs), *self._closure])
        self.set_inputs(inputs)
        self._each = compile_cached(each, self._inputs)
        self._check(lambda: run(x, *args, num_samples=num_samples, **kwargs))

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

    def set_inputs(self, inputs: ProgramInputs) -> None:
        """Set the data of the following runs, of the same shape, and run the hoisted part."""
        tensors = [*_tensors(inputs), *self._closure]
        self._inputs = [*tensors, *self._once(*tensors)]

    def __call__(self) -> Particles:
        """Run on the current inputs."""
        with matmul_backend():
            outputs = iter(self._each(*self._inputs))
        return Particles(*({name: next(outputs) for name in names} for names in self._names))


def _tensors(inputs: ProgramInputs) -> list[Tensor]:
    values = (inputs.x, *inputs.args, *inputs.kwargs.values())
    return [value for value in values if isinstance(value, Tensor)]
