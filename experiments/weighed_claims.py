"""Claims of a paper, evaluated on the finished rows of a table."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from pyro_vae.report.tables import paired_difference

from .cells import Cell
from .claims import Claim, verdict

__all__ = ["weighed"]


def weighed(claim: Claim, cells: Mapping[tuple[str, int], Cell]) -> dict[str, Any] | None:
    """What the cells say of a claim, for JSON; ``None`` where a row of it is missing.

    Means over the seeds that all rows have. ``se`` is over the test data alone: seeds differ, too,
    and one seed does not show by how much.

    Arguments:
        claim: the claim.
        cells: the complete cells, by row and seed.
    """
    found = [{seed for row, seed in cells if row == name} for name in claim.weights]
    seeds = sorted(set.intersection(*found))
    if not seeds:
        return None
    mine = {row: [cells[row, seed] for seed in seeds] for row in claim.weights}
    values = _measured(claim, mine) if claim.measure else _paired(claim, mine)
    if values is None:
        return None
    value, error = values
    return {
        "sentence": claim.sentence,
        "of": claim.measure or "log_evidence",
        "weights": dict(claim.weights),
        "seeds": seeds,
        "value": value if math.isfinite(value) else None,
        "se": error if math.isfinite(error) else None,
        "paired": claim.measure is None,
        "verdict": verdict(value, error),
    }


def _paired(claim: Claim, cells: Mapping[str, Sequence[Cell]]) -> tuple[float, float] | None:
    """The weighted sum of log p̂, datum by datum; ``None`` if rows scored other data."""
    every = [cell.run for some in cells.values() for cell in some]
    if any(paired_difference(run, every[0]) is None for run in every):
        return None
    total = sum(
        weight * np.mean([c.run.read_bounds().per_datum["log_evidence"] for c in cells[row]], 0)
        for row, weight in claim.weights.items()
    )
    table = np.asarray(total, float)
    spread = table.std(ddof=1) if len(table) > 1 else math.nan
    return float(table.mean()), float(spread / math.sqrt(len(table)))


def _measured(claim: Claim, cells: Mapping[str, Sequence[Cell]]) -> tuple[float, float]:
    """The weighted sum of a measure, the errors of different models added as squares."""
    value = variance = 0.0
    for row, weight in claim.weights.items():
        figures = [cell.measured()[claim.measure or ""] for cell in cells[row]]
        errors = [figure.get("se", math.nan) for figure in figures]
        value += weight * float(np.mean([figure["value"] for figure in figures]))
        variance += weight**2 * sum(error**2 for error in errors) / len(errors) ** 2
    return value, math.sqrt(variance)
