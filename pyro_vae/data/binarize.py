"""Binarisation: from grey levels to the 0/1 that a Bernoulli likelihood scores.

Published MNIST figures differ by nats with the way the digits were binarised, so the choice
has no default and is recorded with every result.
"""

from __future__ import annotations

from typing import Literal, get_args

import torch
from torch import Tensor

from .._random import seeded

__all__ = ["CHOICES", "Binarize", "binarize"]

#: * ``dynamic``: every pixel is drawn anew, Bernoulli(grey), each time it is used (IWAE);
#: * ``static``: drawn once, when the data are loaded, with their seed;
#: * ``threshold``: 1 where grey > ½;
#: * ``none``: left as it is.
Binarize = Literal["dynamic", "static", "threshold", "none"]

CHOICES: tuple[str, ...] = get_args(Binarize)


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
