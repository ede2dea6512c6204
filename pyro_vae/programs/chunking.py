"""Chunk sizes of streamed computations, chosen to fit a processor's caches."""

from __future__ import annotations

import math

from torch import Tensor

__all__ = ["chunk_shape", "limit_pairs", "max_chain_pairs", "max_streamed_pairs"]

#: Target size in bytes of the observations of MCMC chains, (chains × examples).
_CHAIN_BYTES = 1 << 24
#: Target size in bytes of the observations of a chunk: 1/4 of a last-level cache of 32 MiB, as
#: decoders have several tensors of that size. Larger chunks do not fit the cache; smaller ones
#: increase the Python overhead. The same on all machines, because the samples depend on it.
_CHUNK_BYTES = 1 << 23
#: Factor by which chunks are larger on a GPU, to keep it busy.
_GPU_FACTOR = 16
#: Maximum number of elements of the widest tensor of a chunk.
_MAX_ELEMENTS = 1 << 24
#: Maximum number of (particle, datum) pairs, for small examples with wider hidden layers.
_MAX_PAIRS = 1 << 15
#: With fewer particles per chunk the encoder would run too often.
_MIN_PARTICLES = 64


def max_chain_pairs(x: Tensor) -> int:
    """Return the maximum number of (chain, datum) pairs to simulate at once."""
    return _num_pairs(x, _CHAIN_BYTES, _MAX_PAIRS)


def max_streamed_pairs(x: Tensor, chunk_size: int | None = None) -> int:
    """Return the maximum number of (particle, datum) pairs of a chunk; ``chunk_size`` if given.

    Raises:
        ValueError: if ``chunk_size`` is below 1.
    """
    if chunk_size is None:
        factor = _device_factor(x)
        return _num_pairs(x, factor * _CHUNK_BYTES, factor * _MAX_PAIRS)
    if chunk_size < 1:
        raise ValueError(f"expected chunk_size ≥ 1; got {chunk_size}")
    return chunk_size


def limit_pairs(pairs: int, width: int, x: Tensor) -> int:
    """Return ``pairs``, or fewer if the widest site has many elements (``width``) per pair."""
    return max(1, min(pairs, _device_factor(x) * _MAX_ELEMENTS // width))


def chunk_shape(size: int, num_samples: int, pairs: int) -> tuple[int, int]:
    """Return the numbers of particles and examples of a chunk of at most ``pairs`` pairs.

    If possible, both divide their totals without remainder, so that all chunks have the same
    shape: any divisor in the upper half of the allowed range is preferred to the maximum.
    """
    min_particles = min(num_samples, _MIN_PARTICLES, pairs)
    particles = _even_size(num_samples, min(num_samples, max(pairs // size, min_particles, 1)))
    return particles, _even_size(size, min(size, max(1, pairs // particles)))


def _even_size(total: int, maximum: int) -> int:
    """Largest divisor of ``total`` in (maximum / 2, maximum], or ``maximum``."""
    return next((n for n in range(maximum, maximum // 2, -1) if total % n == 0), maximum)


def _num_pairs(x: Tensor, num_bytes: int, maximum: int) -> int:
    return max(1, min(num_bytes // (4 * max(1, math.prod(x.shape[1:]))), maximum))


def _device_factor(x: Tensor) -> int:
    return 1 if x.device.type == "cpu" else _GPU_FACTOR
