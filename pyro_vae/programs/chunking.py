"""Chunk sizes of streamed computations, chosen to fit the processor's caches."""

from __future__ import annotations

import functools
import math
from pathlib import Path

from torch import Tensor

__all__ = ["chunk_shape", "limit_pairs", "max_chain_pairs", "max_streamed_pairs"]

#: Target size in bytes of the observations of MCMC chains, (chains × examples).
_CHAIN_BYTES = 1 << 24
#: The observations of a chunk take 1/4 of the last-level cache, as decoders have several tensors
#: of that size. Larger chunks do not fit the cache; smaller ones increase the Python overhead.
_CACHE_FRACTION = 4
#: Limits of the chunk size in bytes, and its default if the cache size is unknown.
_MIN_BYTES, _MAX_BYTES, _DEFAULT_BYTES = 1 << 22, 1 << 24, 1 << 23
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
    """Return the maximum number of (particle, datum) pairs of a chunk.

    Arguments:
        x: the data, ``(N, …)``.
        chunk_size: the number if chosen by the user.

    Raises:
        ValueError: if ``chunk_size`` is below 1.
    """
    if chunk_size is None:
        factor = _device_factor(x)
        return _num_pairs(x, factor * chunk_bytes(), factor * _MAX_PAIRS)
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


@functools.cache
def chunk_bytes(folder: Path = Path("/sys/devices/system/cpu/cpu0/cache")) -> int:
    """Return the target size in bytes of the observations of a chunk, a power of two.

    Arguments:
        folder: the folder in which Linux describes the caches of a processor.
    """
    sizes = []
    for file in folder.glob("index*/size"):
        try:
            sizes.append(_parse_size(file.read_text()))
        except (OSError, ValueError):
            continue
    target = max(sizes, default=_CACHE_FRACTION * _DEFAULT_BYTES) // _CACHE_FRACTION
    return min(max(1 << target.bit_length() - 1, _MIN_BYTES), _MAX_BYTES)


def _parse_size(text: str) -> int:
    """Convert a size such as ``"32768K"`` to bytes."""
    text = text.strip()
    unit = {"K": 1 << 10, "M": 1 << 20, "G": 1 << 30}.get(text[-1:], 1)
    return unit * int(text.rstrip("KMG"))
