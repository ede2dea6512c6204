"""Annealed importance sampling in an evaluation: of all data, or of those with a bad k̂."""

from __future__ import annotations

from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch

from ..programs.inputs import ProgramInputs
from .bounds import Bounds
from .importance.adaptive import some

if TYPE_CHECKING:
    from .annealing.sampler import Annealing

__all__ = ["annealed", "chosen", "escalated", "try_out"]


def chosen(ais: bool | Annealing, escalate: bool | Annealing) -> Annealing | None:
    """How to anneal, if it was asked for.

    Raises:
        ValueError: if there are two answers.
    """
    from .annealing.sampler import Annealing

    told = [option for option in (ais, escalate) if isinstance(option, Annealing)]
    if len(told) > 1 and told[0] != told[1]:
        raise ValueError(
            "expected one Annealing for ais and escalate; got two that differ: AIS of all data "
            "has those with a bad k̂ among them"
        )
    return told[0] if told else Annealing() if ais or escalate else None


def try_out(given: ProgramInputs, annealing: Annealing) -> None:
    """Lets AIS refuse the program before anything else is computed.

    Raises:
        ValueError: if it does.
    """
    short = replace(annealing, num_chains=2, num_temperatures=1, num_steps=1)
    few = torch.arange(min(2, len(given.x)))
    annealed(given, short, seed=0, checkpoint=None, progress=False, rows=few.numpy())


def annealed(
    given: ProgramInputs,
    annealing: Annealing,
    seed: int,
    checkpoint: Path | None,
    progress: bool,
    rows: np.ndarray | None = None,
) -> Bounds:
    """AIS of some of the data, NaN for all others; of none of them, no more than how."""
    from .annealing.sampler import ais

    size = len(given.x)
    rows = np.arange(size) if rows is None else rows
    if not len(rows):
        nothing = {"ais": np.full(size, np.nan)}
        settings = {"annealing": asdict(annealing)}
        return Bounds(annealing.num_chains, nothing, seed=seed, settings=settings)
    part = some(given, torch.from_numpy(rows))
    found = ais(
        (part.model, part.guide),
        part.x,
        *part.args,
        annealing=annealing,
        seed=seed,
        checkpoint=checkpoint,
        progress=progress,
        **part.kwargs,
    )
    columns = {}
    for name, values in found.per_datum.items():
        columns[name] = np.full(size, np.nan)
        columns[name][rows] = values
    return replace(found, per_datum=columns)


def escalated(bounds: Bounds, annealed: Bounds) -> Bounds:
    """AIS with the row of those data that it took and of log p̂ elsewhere."""
    bad = np.zeros(len(bounds), dtype=bool)
    bad[bounds.unreliable] = True
    ours, theirs = bounds.per_datum, annealed.per_datum
    columns = {}
    for name in ("", "_variance"):
        other = theirs.get(f"ais{name}", np.full(len(bounds), np.nan))
        columns[f"escalated{name}"] = np.where(bad, other, ours[f"log_evidence{name}"])
    return replace(annealed, per_datum={**theirs, **columns})
