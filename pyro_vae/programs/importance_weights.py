"""Importance weights of a Pyro program: K particles of guide and model for each example.

Training objectives and estimators all build on the per-site log-probabilities computed here, so
plates, masks and the log|det J| of flows are handled in one place.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Generator
from contextlib import closing
from numbers import Integral
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..compiler.allocator import keep_freed_memory
from ..compiler.cache import worth_compiling
from ..compiler.matmul import Precision, check_precision, log_slow_precision, matmul_backend
from ..core.evaluation_mode import eval_mode, owning_modules
from .arguments import ProgramInputs
from .audit import SingleRun, audit_inputs, weights_match
from .autoguides import sample_directly
from .base import Site, marginal
from .chunking import chunk_shape, limit_pairs, max_streamed_pairs
from .compiled import CompiledRuns, compile_runs
from .context import use_own_parameters
from .inputs import (
    AnyData,
    add_split_arguments,
    check_examples,
    expect_missing,
    materialize,
    read_data,
)
from .particles import Layout, Particles, run_particles
from .plates import normalize_plate

__all__ = [
    "Chunk",
    "audited_log_weights",
    "check_num_samples",
    "find_block_layout",
    "find_layout",
    "log_weights",
    "stream_particles",
]


@torch.no_grad()
def find_layout(
    model: Callable[..., Any], guide: Callable[..., Any], *args: Any, **kwargs: Any
) -> Layout:
    """Find a layout for the particles of a program that has passed the audit.

    The program runs once without particles and then again on the same draws with two particles.
    If the weights differ or the second run fails, the program depends on the position of a batch
    dimension, and its particles are tiled.

    Raises:
        ValueError: if the sites define no weights per datum, as for
            :func:`~.checks.check_sites`, or if particles depend on each other.
    """
    run = SingleRun(ProgramInputs(model, guide, args[0], args[1:], kwargs))
    size = len(args[0])
    width = max(_site_width(s, size) for m in run.sites for s in m.values())
    failure: Exception | None = None
    for layout in (Layout(run.nesting, False, width), Layout(run.nesting, True, width)):
        try:
            double = run_particles(
                model, guide, *args, num_samples=2, layout=layout, draws=run.draws, **kwargs
            ).log_weights
        except (RuntimeError, ValueError, IndexError) as error:
            failure = error
            continue
        if weights_match(double, run.log_weights.expand(2, size)):
            if layout.tiled:
                warnings.warn(
                    "the program does not support a particle dimension to the left of its plates: "
                    "each particle runs as an additional example, including the encoder",
                    stacklevel=2,
                )
            return layout
    raise ValueError(_MIXES) from failure


_MIXES = (
    "expected weights that do not depend on the other particles of a run; got a program that mixes "
    "particles (e.g. by a batch statistic), also if each particle runs as an additional example: "
    "compute each particle from its own latents"
)


@torch.no_grad()
def log_weights(
    model: Callable[..., Any],
    guide: Callable[..., Any],
    x: AnyData,
    *args: Any,
    num_samples: int,
    chunk_size: int | None = None,
    compile: bool | None = None,
    precision: Precision = "float32",
    plate: str | None = None,
    **kwargs: Any,
) -> Tensor:
    """Log importance weights log p(x_n, z_kn) − log q(z_kn | x_n), z_kn ~ q, **per datum**.

    The mean over k estimates the ELBO of each example, and the log-mean-exp over k is L_K. All
    sample sites of the program must be inside one plate over the data. Unlike this
    function, Pyro's ``vectorized_importance_weights`` returns one weight for the whole minibatch.

    Arguments:
        model: the Pyro model, called as ``model(x, *args, **kwargs)``.
        guide: its guide, called with the same arguments.
        x: the data, ``(N, …)``, a tensor or anything that :func:`~pyro_vae.data.as_split` accepts.
            Dynamic binarisation or noise of a split is drawn with seed 0.
        *args: further arguments of both. A tensor of leading size N, here or in ``**kwargs``,
            is split with ``x``, unless the program works only if all examples share it.
        num_samples: the number K of samples for each example.
        chunk_size: maximum number of (particle, datum) pairs in memory at once; by default chosen
            from the size of an example. Bounds the memory in addition to the result. Chunks are
            drawn independently, so the samples for a given seed depend on it.
        compile: whether to compile the program into one graph. Compiling takes some seconds and
            halves the time. The draws are the same; weights differ by rounding. By default only
            long computations are compiled. A program that cannot be compiled runs eagerly, with a
            warning.
        precision: ``bfloat16`` computes the layers of networks in bfloat16, which is faster on
            some processors; :func:`~pyro_vae.evaluate` measures the error.
        plate: the name of the plate over the data; by default the plate of the size of the data
            that encloses all sites, see :func:`~pyro_vae.programs.plates.normalize_plate`.

    Returns:
        The log weights, ``(K, N)``, in nats, without gradient.

    Raises:
        ValueError: if ``x`` is empty, if ``num_samples`` < 1, or if weights per datum are
            undefined, see :func:`~pyro_vae.programs.audit.audit_inputs`.

    References:
        Importance Weighted Autoencoders (Burda et al., 2015), equation 8.
        https://arxiv.org/abs/1509.00519

    Example:
        >>> log_w = pv.log_weights(vae.model, vae.guide, x, num_samples=50)
        >>> log_w.shape
        torch.Size([50, 20])
        >>> elbo, l_50 = log_w.mean(0), log_w.logsumexp(0) - torch.tensor(50.0).log()
        >>> bool((elbo <= l_50).all())
        True
    """
    examples = read_data((model, guide), x)
    check_examples(examples)
    x = materialize((model, guide), examples, seed=0)
    expect_missing(x, *owning_modules(model, guide))
    inputs = add_split_arguments(ProgramInputs(model, guide, x, args, kwargs), examples)
    inputs = normalize_plate(sample_directly(inputs), plate)
    return audited_log_weights(
        audit_inputs(inputs),
        num_samples,
        chunk_size=chunk_size,
        compile=compile,
        precision=precision,
    )


@torch.no_grad()
def audited_log_weights(inputs: ProgramInputs, num_samples: int, **options: Any) -> Tensor:
    """Return :func:`log_weights` of audited inputs, ``(K, N)``."""
    result: Tensor | None = None
    with closing(stream_particles(inputs, num_samples, **options)) as chunks:
        for chunk in chunks:
            log_w = chunk.particles.log_weights
            if result is None:
                result = log_w.new_empty(num_samples, len(inputs.x))
            result[chunk.draws, chunk.data] = log_w
    assert result is not None  # there is at least one example
    return result


class Chunk(NamedTuple):
    """A subset of the draws for a subset of the examples.

    Attributes:
        data: slice of the examples.
        draws: slice of the draws.
        particles: the weighted run.
        inputs: the program with these examples.
        layout: layout of the particles.
    """

    data: slice
    draws: slice
    particles: Particles
    inputs: ProgramInputs
    layout: Layout


@torch.no_grad()
def stream_particles(
    inputs: ProgramInputs,
    num_samples: int,
    *,
    chunk_size: int | None = None,
    compile: bool | None = None,
    precision: Precision = "float32",
) -> Generator[Chunk]:
    """Yield K particles for each of N examples in chunks, see :func:`log_weights` for the options.

    The inputs have passed the audit. All draws for one block of examples come before the next
    block. The program runs in evaluation mode (no dropout), with the parameters of its modules.
    Mode and parameter store are restored when the generator ends: wrap it in
    ``contextlib.closing`` if you may stop early, otherwise they are restored only when it is
    garbage-collected.
    """
    model, guide, x = inputs.model, inputs.guide, inputs.x
    num_samples = check_num_samples(num_samples)
    log_slow_precision(check_precision(precision), x.device)
    keep_freed_memory()
    pairs, size = max_streamed_pairs(x, chunk_size), len(x)
    with use_own_parameters(model, guide), eval_mode(model, guide):
        draws_at_once, data_at_once = chunk_shape(size, num_samples, pairs)
        layout, min_block = find_block_layout(inputs, data_at_once)
        if min_block > data_at_once:
            draws_at_once, data_at_once = max(1, pairs // size), size
        if chunk_size is None and limit_pairs(pairs, layout.width, x) < pairs:
            pairs = limit_pairs(pairs, layout.width, x)
            draws_at_once = max(1, min(draws_at_once, pairs // data_at_once))

        def run(*args: Any, **kwargs: Any) -> Particles:
            with matmul_backend(precision):
                return run_particles(model, guide, *args, layout=layout, **kwargs)

        full_shape = (draws_at_once, data_at_once)
        if compile is None:
            num_runs = (num_samples // draws_at_once) * (size // data_at_once)
            compile = worth_compiling(num_runs * draws_at_once * data_at_once * layout.width)
        compiled: CompiledRuns | None = None
        for data, block in inputs.blocks(data_at_once):
            if compile and data.start == 0:
                compiled = compile_runs(run, block, draws_at_once)
            if compiled is not None and len(block.x) == data_at_once:
                compiled.set_inputs(block)
            for first in range(0, num_samples, draws_at_once):
                draws = slice(first, min(first + draws_at_once, num_samples))
                count = draws.stop - first
                if compiled is not None and (count, len(block.x)) == full_shape:
                    particles = compiled()
                else:
                    particles = run(block.x, *block.args, num_samples=count, **block.kwargs)
                yield Chunk(data, draws, particles, block, layout)


def find_block_layout(inputs: ProgramInputs, block: int) -> tuple[Layout, int]:
    """Find the layout of a program on its first ``block`` examples; see :func:`find_layout`.

    Returns:
        The layout, and the minimum number of examples in a run: N for a guide with parameters
        per example, which cannot run on a subset, else 1.
    """
    size = len(inputs.x)
    model, guide, x, args, kwargs = inputs.select(slice(0, block))
    try:
        return find_layout(model, guide, x, *args, **kwargs), 1
    except (RuntimeError, ValueError, IndexError):
        if block >= size:
            raise
        return find_layout(model, guide, inputs.x, *inputs.args, **inputs.kwargs), size


def check_num_samples(num_samples: int) -> int:
    """Return ``num_samples`` as an int.

    Raises:
        ValueError: if it is not an integer from 1 to 10¹².
    """
    if isinstance(num_samples, bool) or not isinstance(num_samples, Integral) or num_samples < 1:
        raise ValueError(f"expected num_samples to be an integer ≥ 1; got {num_samples!r}")
    if num_samples > 10**12:
        raise ValueError(
            f"expected num_samples to be at most 10¹²; got {num_samples}, which takes years"
        )
    return int(num_samples)


def _site_width(site: Site, size: int) -> int:
    """Elements per example of the largest tensor of a site: its value or a parameter."""
    summed = marginal(site)
    copies = 1 if summed is None else summed.num_values
    tensors, distributions = [site["value"]], [site["fn"]]
    while distributions:
        for part in vars(distributions.pop()).values():
            if isinstance(part, Tensor):
                tensors.append(part)
            elif isinstance(part, torch.distributions.Distribution):
                distributions.append(part)
    return copies * max(tensor.numel() for tensor in tensors) // size
