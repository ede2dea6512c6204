"""Evaluate the claims of a paper on the finished rows of a table."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from pyro_vae.runs.comparison import paired_difference

from .cells import Cell
from .claims import Claim, claim_verdict

__all__ = ["evaluate_claim"]


def evaluate_claim(claim: Claim, cells: Mapping[tuple[str, int], Cell]) -> dict[str, Any] | None:
    """Return the value and verdict of a claim for JSON, or ``None`` if a row is missing.

    Values are means over the seeds that all rows have. ``se`` covers the test examples only, not
    the variation between seeds.

    Arguments:
        claim: the claim.
        cells: the complete cells, by row and seed.
    """
    row_seeds = [{seed for row, seed in cells if row == name} for name in claim.weights]
    seeds = sorted(set.intersection(*row_seeds))
    if not seeds:
        return None
    rows = {row: [cells[row, seed] for seed in seeds] for row in claim.weights}
    estimate = (
        _weighted_measure(claim, rows) if claim.measure else _paired_log_evidence(claim, rows)
    )
    if estimate is None:
        return None
    value, error = estimate
    return {
        "sentence": claim.sentence,
        "of": claim.measure or "log_evidence",
        "weights": dict(claim.weights),
        "seeds": seeds,
        "value": value if math.isfinite(value) else None,
        "se": error if math.isfinite(error) else None,
        "paired": claim.measure is None,
        "verdict": claim_verdict(value, error),
    }


def _paired_log_evidence(
    claim: Claim, cells: Mapping[str, Sequence[Cell]]
) -> tuple[float, float] | None:
    """Weighted sum of log p̂ over paired examples; ``None`` if the rows have different examples."""
    runs = [cell.run for row_cells in cells.values() for cell in row_cells]
    if any(paired_difference(run, runs[0]) is None for run in runs):
        return None
    total = sum(
        weight * np.mean([c.run.read_bounds().per_datum["log_evidence"] for c in cells[row]], 0)
        for row, weight in claim.weights.items()
    )
    per_datum = np.asarray(total, float)
    deviation = per_datum.std(ddof=1) if len(per_datum) > 1 else math.nan
    return float(per_datum.mean()), float(deviation / math.sqrt(len(per_datum)))


def _weighted_measure(claim: Claim, cells: Mapping[str, Sequence[Cell]]) -> tuple[float, float]:
    """Weighted sum of a measure, with the errors of different models added in quadrature."""
    value = variance = 0.0
    for row, weight in claim.weights.items():
        measures = [cell.read_measures()[claim.measure or ""] for cell in cells[row]]
        errors = [measure.get("se", math.nan) for measure in measures]
        value += weight * float(np.mean([measure["value"] for measure in measures]))
        variance += weight**2 * sum(error**2 for error in errors) / len(errors) ** 2
    return value, math.sqrt(variance)
