"""Annealed importance sampling in an evaluation, for all examples or those with a bad k̂."""

from __future__ import annotations

from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import torch

from ..programs.arguments import ProgramInputs
from .annealing.sampler import Annealing, ais
from .bounds import Bounds
from .importance.adaptive import select_examples
from .table_parts import BoundsRow, TablePart, register

__all__ = ["merge_escalated", "resolve_annealing", "run_ais"]


def resolve_annealing(ais: bool | Annealing, escalate: bool | Annealing) -> Annealing | None:
    """Return the annealing settings, or ``None`` if neither option is set.

    Raises:
        ValueError: if the two options have different settings.
    """
    settings = [option for option in (ais, escalate) if isinstance(option, Annealing)]
    if len(settings) > 1 and settings[0] != settings[1]:
        raise ValueError(
            "expected the same Annealing for ais and escalate; got two that differ: set one only, "
            "since AIS of all examples includes those with a bad k̂"
        )
    return settings[0] if settings else Annealing() if ais or escalate else None


def run_ais(
    inputs: ProgramInputs,
    annealing: Annealing,
    seed: int,
    checkpoint: Path | None,
    progress: bool,
    rows: np.ndarray | None = None,
) -> Bounds:
    """Run AIS on the given rows (all by default); the other rows are NaN."""
    size = len(inputs.x)
    rows = np.arange(size) if rows is None else rows
    if not len(rows):
        empty = {"ais": np.full(size, np.nan)}
        settings = {"annealing": asdict(annealing)}
        return Bounds(annealing.num_chains, empty, seed=seed, settings=settings)
    part = select_examples(inputs, torch.from_numpy(rows))
    bounds = ais(
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
    for name, values in bounds.per_datum.items():
        columns[name] = np.full(size, np.nan)
        columns[name][rows] = values
    return replace(bounds, per_datum=columns)


def merge_escalated(bounds: Bounds, annealed: Bounds) -> Bounds:
    """Add the column ``escalated`` to AIS: AIS where k̂ is bad and log p̂ elsewhere."""
    bad = np.zeros(len(bounds), dtype=bool)
    bad[bounds.unreliable] = True
    columns = {}
    for suffix in ("", "_variance"):
        values = annealed.per_datum.get(f"ais{suffix}", np.full(len(bounds), np.nan))
        evidence = bounds.per_datum[f"log_evidence{suffix}"]
        columns[f"escalated{suffix}"] = np.where(bad, values, evidence)
    return replace(annealed, per_datum={**annealed.per_datum, **columns})


register(
    TablePart(
        order=61,
        rows=(BoundsRow("escalated", "log p̂ or AIS", "estimate"),),
        summarize=lambda bounds: (
            {"escalated": len(bounds.unreliable)} if "escalated" in bounds.per_datum else {}
        ),
        remedy="AIS does not use these weights.",
    )
)
