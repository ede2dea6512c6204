"""Evaluation distributed over processes: each evaluates a shard, all return the full result."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch

from ..core import distributed
from ..programs.arguments import ProgramInputs
from .bounds import Bounds
from .subsets import select_examples

__all__ = ["merge_shards", "shard_inputs"]


def shard_inputs(inputs: ProgramInputs) -> tuple[ProgramInputs, int]:
    """Return this process's shard of the inputs and the index of its first example."""
    size = len(inputs.x)
    if distributed.world_size() == 1:
        return inputs, 0
    distributed.check_shardable(size)
    shard = distributed.shard(size)
    return select_examples(inputs, torch.arange(shard.start, shard.stop)), shard.start


def merge_shards(shards: Sequence[Bounds], seed: int) -> Bounds:
    """Concatenate the bounds of consecutive shards; ``seed`` is that of the whole result.

    A column that is missing in some shards is NaN there.
    """
    first, *others = shards
    if not others:
        return first
    raw = [shard.log_weights for shard in shards if shard.log_weights is not None]
    settings = dict(first.settings)
    if "total_draws" in settings:
        settings["total_draws"] = sum(shard.settings["total_draws"] for shard in shards)
    for name in ("left_out", "unnormalized"):
        entries = {k: v for shard in shards for k, v in shard.settings.get(name, {}).items()}
        if entries:
            settings[name] = entries
    columns: dict[str, Any] = {}
    for field in ("per_datum", "iwae_per_datum", "iwae_variance"):
        parts = [(getattr(shard, field), np.full(len(shard), np.nan)) for shard in shards]
        names = dict.fromkeys(name for part, _ in parts for name in part)
        columns[field] = {
            name: np.concatenate([part.get(name, missing) for part, missing in parts])
            for name in names
        }
    log_weights = np.concatenate(raw, 1) if raw else None
    return replace(first, log_weights=log_weights, seed=seed, settings=settings, **columns)
