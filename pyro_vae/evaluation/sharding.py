"""Evaluation distributed over processes: each evaluates a shard, all return the full result."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import TypeVar

import numpy as np
import torch

from ..core import distributed
from ..programs.inputs import ProgramInputs
from .bounds import Bounds
from .importance.adaptive import select_examples

__all__ = ["merge_shards", "shard_inputs"]

_Key = TypeVar("_Key", str, int)


def shard_inputs(inputs: ProgramInputs) -> tuple[ProgramInputs, int]:
    """Return this process's shard of the inputs and the index of its first example.

    Raises:
        ValueError: if a shard would be empty, or if the program cannot run on a subset of the
            examples.
    """
    size = len(inputs.x)
    if distributed.world_size() == 1:
        return inputs, 0
    distributed.check_shardable(size)
    shard = distributed.shard(size)
    return select_examples(inputs, torch.arange(shard.start, shard.stop)), shard.start


def merge_shards(shards: Sequence[Bounds], seed: int) -> Bounds:
    """Concatenate the bounds of consecutive shards.

    A column that is missing in some shards is NaN there.

    Arguments:
        shards: the bounds of each shard, from the same estimators.
        seed: the seed from which the seeds of the shards were derived.
    """
    first, *others = shards
    if not others:
        return first
    raw = [shard.log_weights for shard in shards if shard.log_weights is not None]
    settings = dict(first.settings)
    if "total_draws" in settings:
        settings["total_draws"] = sum(shard.settings["total_draws"] for shard in shards)
    sizes = [len(shard) for shard in shards]
    return replace(
        first,
        per_datum=_concatenate_columns(sizes, [shard.per_datum for shard in shards]),
        iwae_per_datum=_concatenate_columns(sizes, [shard.iwae_per_datum for shard in shards]),
        iwae_variance=_concatenate_columns(sizes, [shard.iwae_variance for shard in shards]),
        log_weights=np.concatenate(raw, 1) if raw else None,
        seed=seed,
        settings=settings,
    )


def _concatenate_columns(
    sizes: Iterable[int], shards: Sequence[dict[_Key, np.ndarray]]
) -> dict[_Key, np.ndarray]:
    names = dict.fromkeys(name for shard in shards for name in shard)
    pairs = list(zip(sizes, shards, strict=True))
    return {
        name: np.concatenate([shard.get(name, np.full(size, np.nan)) for size, shard in pairs])
        for name in names
    }
