"""How many draws and data to hold at once: as many as the processor's caches hold."""

from __future__ import annotations

import functools
import math
from pathlib import Path

from torch import Tensor

__all__ = ["chunk_shape", "limit_pairs", "max_pairs", "max_streamed_pairs"]

#: Bytes that the observations of walks, (chains × data), should take.
_WALK_BYTES = 1 << 24
#: Of a processor's last-level cache, what the observations of a chunk should take: decoders
#: have several tensors of that size. Larger ones leave the cache, smaller ones pay Python's
#: overhead more often.
_CACHE_SHARE = 4
#: The least and the most that this may be, and what it is where the cache is not known.
_LEAST_BYTES, _MOST_BYTES, _USUAL_BYTES = 1 << 22, 1 << 24, 1 << 23
#: How much more a GPU should be given at once, for it to be busy.
_GPU_FACTOR = 16
#: Numbers that the widest tensor of a chunk may have.
_MOST_NUMBERS = 1 << 24
#: (particle, datum) pairs in a chunk, however small a datum is: networks between have width.
_MOST_PAIRS = 1 << 15
#: Fewer particles than this in a chunk would repeat the encoder's work too often.
_MIN_PARTICLES = 64


def max_pairs(x: Tensor) -> int:
    """How many (chain, datum) pairs to walk at once."""
    return _pairs(x, _WALK_BYTES, _MOST_PAIRS)


def max_streamed_pairs(x: Tensor, chunk_size: int | None = None) -> int:
    """How many (particle, datum) pairs to hold at once.

    Arguments:
        x: the data, ``(N, …)``.
        chunk_size: so many.

    Raises:
        ValueError: if ``chunk_size`` is below 1.
    """
    if chunk_size is None:
        factor = _factor(x)
        return _pairs(x, factor * cached_bytes(), factor * _MOST_PAIRS)
    if chunk_size < 1:
        raise ValueError(f"expected chunk_size ≥ 1; got {chunk_size}")
    return chunk_size


def limit_pairs(pairs: int, width: int, x: Tensor) -> int:
    """So many pairs, or fewer if each has a site of many numbers."""
    return max(1, min(pairs, _factor(x) * _MOST_NUMBERS // width))


def chunk_shape(size: int, num_samples: int, pairs: int) -> tuple[int, int]:
    """How many draws and how many data make up at most so many pairs.

    Both divide what there is without remainder where a number in the upper half of what is
    allowed does, so that all chunks have one shape.
    """
    fewest = min(num_samples, _MIN_PARTICLES, pairs)
    draws = _even(num_samples, min(num_samples, max(pairs // size, fewest, 1)))
    return draws, _even(size, min(size, max(1, pairs // draws)))


def _even(total: int, most: int) -> int:
    """The largest divisor of ``total`` that is more than half of ``most``, or ``most``."""
    return next((n for n in range(most, most // 2, -1) if total % n == 0), most)


def _pairs(x: Tensor, num_bytes: int, most: int) -> int:
    return max(1, min(num_bytes // (4 * max(1, math.prod(x.shape[1:]))), most))


def _factor(x: Tensor) -> int:
    return 1 if x.device.type == "cpu" else _GPU_FACTOR


@functools.cache
def cached_bytes(folder: Path = Path("/sys/devices/system/cpu/cpu0/cache")) -> int:
    """Bytes that the observations of a chunk should take, a power of two.

    Arguments:
        folder: where Linux describes the caches of a processor.
    """
    sizes = []
    for file in folder.glob("index*/size"):
        try:
            sizes.append(_bytes(file.read_text()))
        except (OSError, ValueError):
            continue
    share = max(sizes, default=_CACHE_SHARE * _USUAL_BYTES) // _CACHE_SHARE
    return min(max(1 << share.bit_length() - 1, _LEAST_BYTES), _MOST_BYTES)


def _bytes(text: str) -> int:
    """``"32768K"`` in bytes."""
    text = text.strip()
    unit = {"K": 1 << 10, "M": 1 << 20, "G": 1 << 30}.get(text[-1:], 1)
    return unit * int(text.rstrip("KMG"))
