"""Binarisation and dequantisation of grey levels.

Published MNIST figures differ by nats with the way the digits were binarised, so the choice
has no default and is recorded with every result.
"""

from __future__ import annotations

from typing import Literal, get_args

import torch
from torch import Tensor

from ..core.random import seeded

__all__ = ["BINARIZE_CHOICES", "VALUES_CHOICES", "Binarize", "Values", "binarize", "dequantize"]

#: * ``dynamic``: every pixel is drawn anew, Bernoulli(grey), each time it is used (IWAE);
#: * ``static``: drawn once, when the data are loaded, with their seed;
#: * ``threshold``: 1 where grey > ½;
#: * ``none``: left as it is.
Binarize = Literal["dynamic", "static", "threshold", "none"]

BINARIZE_CHOICES: tuple[str, ...] = get_args(Binarize)


def binarize(grey: Tensor, how: Binarize, *entropy: int) -> Tensor:
    """Grey values in [0, 1] as 0/1 of type uint8, by ``static`` or ``threshold``.

    Arguments:
        grey: the values, of any shape.
        how: the way.
        *entropy: the seed of ``static``, one or more numbers.
    """
    if how == "threshold":
        return (grey > 0.5).to(torch.uint8)
    with seeded(*entropy):
        return torch.bernoulli(grey).to(torch.uint8)


#: What a likelihood sees of image levels 0 … n that are not binarised:
#:
#: * ``unit``: grey values level / n in [0, 1];
#: * ``integer``: the levels themselves;
#: * ``dequantized``: (level + u) / (n + 1) in (0, 1), with u uniform in (0, 1) and drawn anew
#:   each time a datum is used.
Values = Literal["unit", "integer", "dequantized"]

VALUES_CHOICES: tuple[str, ...] = get_args(Values)


def dequantize(levels: Tensor, peak: float) -> Tensor:
    """(x + u) / (peak + 1), strictly inside (0, 1), with u from torch's global generator.

    A density p of these numbers gives the levels the probability P(x) = ∫ p((x + u) / (n + 1))
    du / (n + 1)^D, and E_u log p − D log (n + 1) ≤ log P(x). Without the noise a density can be
    infinite at the levels, and says nothing.

    Arguments:
        levels: x, integers 0 … peak of a floating-point type.
        peak: n, the highest level.

    References:
        A note on the evaluation of generative models (Theis et al., 2016), section 3.1.
        https://arxiv.org/abs/1511.01844
    """
    step = torch.finfo(levels.dtype).eps / 2
    # torch draws multiples of this step, 0 among them; and what is nearest 1 is rounded to it
    noise = torch.rand_like(levels).clamp(min=step / 2)
    return ((levels + noise) / (peak + 1)).clamp(max=1 - step)
