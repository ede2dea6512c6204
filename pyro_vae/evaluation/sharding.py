"""An evaluation that several processes share: each judges some of the data, and all get all."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import TypeVar

import numpy as np
import torch

from ..core import distributed
from ..programs.inputs import ProgramInputs
from .bounds import Bounds
from .importance.adaptive import some

__all__ = ["joined", "mine"]

_Key = TypeVar("_Key", str, int)


def mine(given: ProgramInputs) -> tuple[ProgramInputs, int]:
    """The program with this process's share of the data, and the number of the first of them.

    Raises:
        ValueError: if a process would have none, or if the program cannot be run on some alone.
    """
    size = len(given.x)
    if distributed.world_size() == 1:
        return given, 0
    distributed.check_shardable(size)
    share = distributed.shard(size)
    return some(given, torch.arange(share.start, share.stop)), share.start


def joined(parts: Sequence[Bounds], seed: int) -> Bounds:
    """The bounds of all data from those of shares of them, in order.

    A ruler that some of the shares had no use for says NaN there.

    Arguments:
        parts: what was found of each share, by the same rulers.
        seed: what the seeds of the parts were made of.
    """
    first, *others = parts
    if not others:
        return first
    raw = [part.log_weights for part in parts if part.log_weights is not None]
    settings = dict(first.settings)
    if "total_draws" in settings:
        settings["total_draws"] = sum(part.settings["total_draws"] for part in parts)
    sizes = [len(part) for part in parts]
    return replace(
        first,
        per_datum=_columns(sizes, [part.per_datum for part in parts]),
        iwae_per_datum=_columns(sizes, [part.iwae_per_datum for part in parts]),
        iwae_variance=_columns(sizes, [part.iwae_variance for part in parts]),
        log_weights=np.concatenate(raw, 1) if raw else None,
        seed=seed,
        settings=settings,
    )


def _columns(
    sizes: Iterable[int], parts: Sequence[dict[_Key, np.ndarray]]
) -> dict[_Key, np.ndarray]:
    names = dict.fromkeys(name for part in parts for name in part)
    pairs = list(zip(sizes, parts, strict=True))
    return {
        name: np.concatenate([part.get(name, np.full(size, np.nan)) for size, part in pairs])
        for name in names
    }
