"""Weighted runs of a Pyro program: K particles of guide and model on a minibatch.

Everything that judges a program (and, later, everything that learns it) is a function of
the per-site log-probabilities computed here, so that there is one place where a plate, a
mask or a flow's log|det J| can be right or wrong.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Generator, Mapping
from contextlib import closing
from functools import partial
from numbers import Integral
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..compile.allocator import keep_freed_memory
from ..compile.matmul import Precision, check_precision, matmul_backend
from ..core.evaluation_mode import eval_mode
from .base import Site, attach_noise, check_program, sample_sites, trace_program, use_own_parameters
from .chunking import chunk_shape, limit_pairs, max_pairs, max_streamed_pairs
from .compiled import CompiledRuns, compiled_runs
from .particles import (
    Layout,
    Particles,
    expand_inputs,
    has_batch,
    log_prob_of,
    log_probs_at,
    map_batched,
    map_site,
    run_particles,
)

__all__ = [
    "Chunk",
    "Layout",
    "Particles",
    "check_num_samples",
    "expand_inputs",
    "find_layout",
    "log_prob_of",
    "log_probs_at",
    "log_weights",
    "max_pairs",
    "run_particles",
    "stream",
    "stream_particles",
]


@torch.no_grad()
def find_layout(
    model: Callable[..., Any], guide: Callable[..., Any], *args: Any, **kwargs: Any
) -> Layout:
    """Checks that the program's weights exist per datum, and finds a layout that gives them.

    One run without particles is repeated, on the same draws, with two particles. Where the
    repetition has other weights or fails, the program reads a batch dimension by position,
    and its particles are tiled.

    Raises:
        ValueError: if there are no weights per datum, saying why.
    """
    both = trace_program(model, guide, args, kwargs)
    draws = attach_noise(both[0])
    guide_sites, model_sites = map(sample_sites, both)
    size = len(args[0])
    nesting = check_program(guide_sites, model_sites, size)
    width = max(_width(s, size) for m in (guide_sites, model_sites) for s in m.values())
    once = Particles(
        log_p={n: log_prob_of(s, None, (1, size)) for n, s in model_sites.items()},
        log_q={n: log_prob_of(s, None, (1, size)) for n, s in guide_sites.items()},
    ).log_weights
    half = _half(model, guide, args, kwargs, draws, nesting)
    if half is not None and not _same(half, once[:, : half.shape[1]]):
        raise ValueError(_MIXES)
    failure: Exception | None = None
    for layout in (Layout(nesting, False, width), Layout(nesting, True, width)):
        try:
            twice = run_particles(
                model, guide, *args, num_samples=2, layout=layout, draws=draws, **kwargs
            ).log_weights
        except (RuntimeError, ValueError, IndexError) as error:
            failure = error
            continue
        if _same(twice, once.expand(2, size)):
            if layout.tiled:
                warnings.warn(
                    "the program does not allow a particle dimension on the left of its plates: "
                    "each draw runs as one more datum, the encoder included",
                    stacklevel=2,
                )
            return layout
    raise ValueError(_MIXES) from failure


_MIXES = (
    "expected weights that do not depend on which other data and draws are run beside; this "
    "program's do: it mixes data (a statistic over the batch?), or reads a tensor of leading "
    "size N that is not per datum (bind that one with functools.partial)"
)


def _same(a: Tensor, b: Tensor) -> bool:
    return torch.allclose(a, b, rtol=1e-4, atol=1e-3, equal_nan=True)


def _half(
    model: Callable[..., Any],
    guide: Callable[..., Any],
    args: tuple,
    kwargs: Mapping[str, Any],
    draws: Mapping[str, Site],
    nesting: int,
) -> Tensor | None:
    """The weights of the first half of the data, by themselves, on the draws they had.

    ``None`` where there is no half, where another tensor has as many entries as there are
    data (it may not be per datum), or where the guide knows these data alone.
    """
    size = len(args[0])
    if size < 2 or has_batch(size, (*args[1:], *kwargs.values())):
        return None
    layout = Layout(nesting, tiled=True)  # of one particle: no dimension is added
    taken = {n: map_site(s, lambda v, dim: v.narrow(dim, 0, size // 2)) for n, s in draws.items()}
    try:
        x = args[0][: size // 2]
        halved = run_particles(
            model, guide, x, *args[1:], num_samples=1, layout=layout, draws=taken, **kwargs
        )
    except (RuntimeError, ValueError, IndexError):
        return None
    return halved.log_weights


@torch.no_grad()
def log_weights(
    model: Callable[..., Any],
    guide: Callable[..., Any],
    x: Tensor,
    *args: Any,
    num_samples: int,
    chunk_size: int | None = None,
    compile: bool | None = None,
    precision: Precision = "float32",
    **kwargs: Any,
) -> Tensor:
    """log p(x_n, z_kn) − log q(z_kn | x_n) with z_kn ~ q: importance weights **per datum**.

    The mean over k is the ELBO, the log-mean-exp over k is L_K, of each datum. For any Pyro
    program whose sample sites all lie in ``pyro.plate("data", len(x))``; Pyro's own
    ``vectorized_importance_weights`` gives one weight for the whole minibatch instead.

    Arguments:
        model: the Pyro model, called as ``model(x, *args, **kwargs)``.
        guide: its guide, called likewise.
        x: the data, ``(N, …)``.
        *args: further arguments of both. A tensor of leading size N, here or in ``**kwargs``,
            is taken to be per datum and split with ``x`` (bind others with ``partial``).
        num_samples: the number K of draws for each datum.
        chunk_size: how many (particle, datum) pairs to hold at once; chosen from the size of
            a datum and of the processor's caches if not given. Bounds the memory beyond the
            result itself. As every chunk draws by itself, the draws of a seed depend on it.
        compile: whether to fuse the program into one graph, which takes some seconds and then
            half the time. The draws are the same and the weights differ by rounding. If not
            given, long computations do; a program that is no single graph runs as it is, and
            says why.
        precision: ``bfloat16`` computes the networks' layers in it: faster on some processors,
            and wrong by as much as :func:`~pyro_vae.evaluate` measures.

    Returns:
        The log weights, ``(K, N)``, in nats, without gradient.

    Raises:
        ValueError: if ``x`` is empty, ``num_samples`` < 1, or the program's weights do not
            exist per datum (a site outside the plate, sites that only one of the two samples,
            data that depend on each other).

    References:
        Importance Weighted Autoencoders (Burda et al., 2015), equation 8.
        https://arxiv.org/abs/1509.00519
    """
    result: Tensor | None = None
    options: dict[str, Any] = {"compile": compile, "precision": precision, **kwargs}
    with closing(
        stream(model, guide, x, *args, num_samples=num_samples, chunk_size=chunk_size, **options)
    ) as chunks:
        for data, draws, chunk in chunks:
            if result is None:
                result = chunk.new_empty(num_samples, len(x))
            result[draws, data] = chunk
    assert result is not None  # there is at least one datum and one draw
    return result


class Chunk(NamedTuple):
    """Some of the draws for some of the data, and what they were run with.

    Attributes:
        data: which of the data.
        draws: which of the draws.
        particles: the run.
        args: what model and guide were called with, the data first.
        kwargs: by name.
        layout: how the particles were laid out.
    """

    data: slice
    draws: slice
    particles: Particles
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    layout: Layout


@torch.no_grad()
def stream(
    model: Callable[..., Any],
    guide: Callable[..., Any],
    x: Tensor,
    *args: Any,
    num_samples: int,
    **options: Any,
) -> Generator[tuple[slice, slice, Tensor]]:
    """:func:`log_weights` chunk by chunk: ``(data, draws, (draws, data) weights)``.

    As :func:`stream_particles`, of which these are the weights.
    """
    chunks = stream_particles(model, guide, x, *args, num_samples=num_samples, **options)
    with closing(chunks):
        for chunk in chunks:
            yield chunk.data, chunk.draws, chunk.particles.log_weights


@torch.no_grad()
def stream_particles(
    model: Callable[..., Any],
    guide: Callable[..., Any],
    x: Tensor,
    *args: Any,
    num_samples: int,
    chunk_size: int | None = None,
    compile: bool | None = None,
    precision: Precision = "float32",
    **kwargs: Any,
) -> Generator[Chunk]:
    """K particles for each of N data, chunk by chunk, with the options of :func:`log_weights`.

    All draws of one block of data come before the next block. The programs run in
    evaluation mode (no dropout), with the parameters that their modules hold. The mode and
    Pyro's parameter store are as they were once it ends: who may stop before wraps it in
    ``contextlib.closing``, or that happens whenever it is collected as garbage.
    """
    if not isinstance(x, Tensor) or x.ndim < 1 or not len(x):
        got = f"shape {tuple(x.shape)}" if isinstance(x, Tensor) else type(x).__name__
        raise ValueError(f"expected x to be a tensor of shape (N ≥ 1, …); got {got}")
    num_samples = check_num_samples(num_samples)
    check_precision(precision)
    keep_freed_memory()
    pairs = max_streamed_pairs(x, chunk_size)
    size = len(x)

    def block(data: slice) -> tuple[tuple, dict[str, Any]]:
        return map_batched(lambda tensor: tensor[data], size, (x, *args), kwargs)

    with use_own_parameters(model, guide), eval_mode(model, guide):
        draws_at_once, data_at_once = chunk_shape(size, num_samples, pairs)
        if data_at_once < size <= pairs and has_batch(size, (*args, *kwargs.values())):
            # there is room for all data at once, so nothing needs to be taken for per datum
            draws_at_once, data_at_once = max(1, pairs // size), size
        try:
            inputs, named = block(slice(0, data_at_once))
            layout = find_layout(model, guide, *inputs, **named)
        except (RuntimeError, ValueError, IndexError):
            if data_at_once >= size:
                raise
            # a guide with parameters for each datum wants to see all of them
            layout = find_layout(model, guide, x, *args, **kwargs)
            draws_at_once, data_at_once = max(1, pairs // size), size
        if chunk_size is None and limit_pairs(pairs, layout.width, x) < pairs:
            pairs = limit_pairs(pairs, layout.width, x)
            draws_at_once = max(1, min(draws_at_once, pairs // data_at_once))
        once = partial(_run, model, guide, layout=layout, precision=precision)
        whole = (draws_at_once, data_at_once)
        times = (num_samples // draws_at_once) * (size // data_at_once)
        runs: CompiledRuns | None = None
        for start in range(0, size, data_at_once):
            data = slice(start, min(start + data_at_once, size))
            inputs, named = block(data)
            if data.stop - start == data_at_once:
                if start == 0:
                    runs = compiled_runs(once, inputs, named, whole, times, layout, compile)
                if runs is not None:
                    runs.block(inputs, named)
            for first in range(0, num_samples, draws_at_once):
                draws = slice(first, min(first + draws_at_once, num_samples))
                count = draws.stop - first
                if runs is not None and (count, data.stop - start) == whole:
                    particles = runs()
                else:
                    particles = once(*inputs, num_samples=count, **named)
                yield Chunk(data, draws, particles, inputs, named, layout)


def _run(*args: Any, precision: Precision, **kwargs: Any) -> Particles:
    with matmul_backend(precision):
        return run_particles(*args, **kwargs)


def check_num_samples(num_samples: int) -> int:
    """``num_samples`` if it is a number of draws, else a ``ValueError``."""
    if isinstance(num_samples, bool) or not isinstance(num_samples, Integral) or num_samples < 1:
        raise ValueError(f"expected num_samples to be an integer ≥ 1; got {num_samples!r}")
    return int(num_samples)


def _width(site: Site, size: int) -> int:
    """The numbers of the largest tensor of a site, its value or a parameter, for one datum."""
    found, waiting = [site["value"]], [site["fn"]]
    while waiting:
        for part in vars(waiting.pop()).values():
            if isinstance(part, Tensor):
                found.append(part)
            elif isinstance(part, torch.distributions.Distribution):
                waiting.append(part)
    return max(tensor.numel() for tensor in found) // size
