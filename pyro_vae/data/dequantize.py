"""Dequantisation: from integer levels to real numbers that a density may score."""

from __future__ import annotations

from typing import Literal, get_args

import torch
from torch import Tensor

__all__ = ["CHOICES", "Values", "dequantize"]

#: What a likelihood sees of image levels 0 … n that are not binarised:
#:
#: * ``unit``: grey values level / n in [0, 1];
#: * ``integer``: the levels themselves;
#: * ``dequantized``: (level + u) / (n + 1) in (0, 1), with u uniform in (0, 1) and drawn anew
#:   each time a datum is used.
Values = Literal["unit", "integer", "dequantized"]

CHOICES: tuple[str, ...] = get_args(Values)


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
