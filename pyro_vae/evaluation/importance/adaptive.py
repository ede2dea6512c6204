"""How many draws each datum needs, found out by draws that are then thrown away."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise

import torch
from torch import Tensor

from ...core.evaluation_mode import eval_mode
from ...core.random import seeded
from ...programs.base import use_own_parameters
from ...programs.importance_weights import find_layout
from ...programs.inputs import ProgramInputs
from ...programs.particles import map_batched
from .streaming import khat_threshold

__all__ = ["chosen", "some", "stages"]

#: No pilot has fewer draws than these.
_FEWEST = 200
#: A standard error is aimed this far below the tolerance, since a pilot's is a guess.
_MARGIN = 0.9


def stages(most: int) -> list[int]:
    """The numbers of draws to choose from: ``most``, halved as often as leaves 200, rising."""
    sizes = [most]
    while sizes[0] > 1 and -(-sizes[0] // 2) >= _FEWEST:
        sizes.insert(0, -(-sizes[0] // 2))
    return sizes


def chosen(
    errors: Callable[[int, Tensor], tuple[Tensor, Tensor]],
    size: int,
    sizes: list[int],
    tolerance: float,
) -> tuple[Tensor, int]:
    """The number of draws with which each datum's standard error will be within the tolerance.

    A pilot of n draws whose k̂ is good knows the error of any number of draws, by the root of
    it; one whose k̂ is bad knows nothing and is followed by another of twice as many. Whatever
    is reported later rests on other draws: a pilot that happened to miss the large weights
    promises too much, and would be believed if it were reported itself.

    Arguments:
        errors: ``errors(n, rows)`` gives the standard errors and k̂ of n draws for some data.
        size: the number N of data.
        sizes: the numbers of draws to choose from, rising.
        tolerance: in nats.

    Returns:
        The number for each datum, ``(N,)``, the largest where no other is known to do, and the
        number of draws of all pilots together.
    """
    draws = torch.full((size,), sizes[-1])
    waiting, spent = torch.arange(size), 0
    for count, following in pairwise(sizes):
        if not len(waiting):
            break
        error, khat = errors(count, waiting)
        spent += count * len(waiting)
        needed = count * (error / (_MARGIN * tolerance)).square()
        known = (khat < khat_threshold(count)) & (needed <= following)
        least = torch.where(needed <= count, count, following)
        draws[waiting[known]] = least[known]
        waiting = waiting[~known]
    return draws, spent


def some(given: ProgramInputs, rows: Tensor) -> ProgramInputs:
    """The program with some of the data, and of what is per datum.

    Raises:
        ValueError: if it cannot be run on them alone.
    """
    model, guide, x, args, kwargs = given
    size = len(x)
    if len(rows) == size:
        return given
    (x, *args_), kwargs = map_batched(lambda t: t[rows.to(t.device)], size, (x, *args), kwargs)
    part = ProgramInputs(model, guide, x, tuple(args_), kwargs)
    try:
        with seeded(0), use_own_parameters(model, guide), eval_mode(model, guide):
            find_layout(model, guide, part.x, *part.args, **part.kwargs)
    except (RuntimeError, ValueError, IndexError) as error:
        raise ValueError(
            f"expected a program that can be run on some of the data alone, for `tolerance`, "
            f"`escalate` and several processes; this one cannot: leave them out, or take `ais` of "
            f"all data in one process ({error})"
        ) from error
    return part
