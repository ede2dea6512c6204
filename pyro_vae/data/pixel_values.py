"""Binarisation and dequantisation of grey levels.

Published MNIST results differ by nats with the binarisation scheme. The scheme therefore has no
default and is recorded with every result.
"""

from __future__ import annotations

from typing import Literal, get_args

import torch
from torch import Tensor

from ..core.random import seeded

__all__ = ["BINARIZE_CHOICES", "VALUES_CHOICES", "Binarize", "Values", "binarize", "dequantize"]

#: * ``dynamic``: every pixel is resampled from Bernoulli(grey) on each use (IWAE);
#: * ``static``: every pixel is sampled once, when the data are loaded, with the data seed;
#: * ``threshold``: 1 if grey > ½, else 0;
#: * ``none``: unchanged.
Binarize = Literal["dynamic", "static", "threshold", "none"]

BINARIZE_CHOICES: tuple[str, ...] = get_args(Binarize)


def binarize(grey: Tensor, how: Binarize, *entropy: int) -> Tensor:
    """Convert grey values in [0, 1] to 0/1 of type uint8; ``static`` is seeded by ``entropy``."""
    if how == "threshold":
        return (grey > 0.5).to(torch.uint8)
    with seeded(*entropy):
        return torch.bernoulli(grey).to(torch.uint8)


#: The values that a likelihood sees for image levels 0 … n that are not binarised:
#:
#: * ``unit``: grey values level / n in [0, 1];
#: * ``integer``: the levels themselves;
#: * ``dequantized``: (level + u) / (n + 1) in (0, 1), with u uniform in (0, 1) and resampled on
#:   each use.
Values = Literal["unit", "integer", "dequantized"]

VALUES_CHOICES: tuple[str, ...] = get_args(Values)


def dequantize(levels: Tensor, peak: float) -> Tensor:
    """Return (x + u) / (peak + 1), strictly inside (0, 1), with u from torch's global generator.

    A density p of these values assigns the levels the probability P(x) = ∫ p((x + u) / (n + 1))
    du / (n + 1)^D, and E_u log p − D log (n + 1) ≤ log P(x). Without the noise, a density can
    diverge at the levels, and its value is meaningless; see :meth:`Dataset.bits_per_dim`.

    Arguments:
        levels: x, integers 0 … peak of a floating-point type.
        peak: n, the highest level.
    """
    step = torch.finfo(levels.dtype).eps / 2
    # torch samples multiples of this step, including 0; sums just below 1 can round to 1
    noise = torch.rand_like(levels).clamp(min=step / 2)
    return ((levels + noise) / (peak + 1)).clamp(max=1 - step)
