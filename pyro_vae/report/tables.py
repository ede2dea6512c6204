"""Tables of bounds, for the terminal and the page."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from ..runs.run import Run

__all__ = ["bits_per_dim", "comparison", "flat_settings", "paired_difference"]


def bits_per_dim(figures: dict[str, dict[str, float | None]]) -> str:
    """The bits per dimension of ``result.json`` as one line."""
    names = {"elbo": "ELBO", "log_evidence": "log p̂"}
    told = []
    for name, row in figures.items():
        value, error = (math.nan if row[k] is None else row[k] for k in ("value", "se_data"))
        told.append(f"{names[name]} {value:.4f} ± {error:.4f}")
    return f"bits per dimension (lower is better, ± data): {', '.join(told)}"


def comparison(runs: Sequence[Run]) -> str:
    """Evaluated runs side by side, and how each differs from the first on the same data.

    The difference of log p̂ is paired, datum by datum, so that the spread of the data cancels;
    it is left out where two runs did not score the very same data, or by another measure: a
    density is no probability.

    Raises:
        RunError: if a run has not been evaluated, or its result is damaged.
    """
    for run in runs:
        run.read_result()
    names = [run.name for run in runs]
    wide = max(len("run"), *map(len, names))
    head = f"{'run':{wide}}{'K':>8}{'N':>7}{'ELBO':>11}{'log p̂':>11}{'± data':>9}{'gap':>9}"
    lines = [f"{head}{'k̂>limit':>9}{'log p̂ − first':>16}{'± paired':>10}"]
    for run, name in zip(runs, names, strict=True):
        bounds = run.read_bounds()
        row = (
            f"{name:{wide}}{bounds.num_samples:8}{len(bounds):7}{bounds.elbo:11.3f}"
            f"{bounds.log_evidence:11.3f}{bounds.estimates['log_evidence'].se_data:9.3f}"
            f"{bounds.gap:9.3f}{len(bounds.unreliable):9}"
        )
        if run is not runs[0]:
            difference = paired_difference(run, runs[0])
            why = "other measure" if _same_data(run, runs[0]) else "other data"
            row += "{:16.3f}{:10.3f}".format(*difference) if difference else f"{why:>16}"
        lines.append(row)
    lines.append("nats per datum, higher is better")
    return "\n".join(lines)


def paired_difference(run: Run, first: Run, any_values: bool = False) -> tuple[float, float] | None:
    """log p̂ of a run minus that of the first, and its standard error over the data.

    In nats per datum. Paired, datum by datum, so that the spread of the data cancels.

    Arguments:
        run: an evaluated run.
        first: the evaluated run that it is compared with.
        any_values: allow that one gave probabilities to levels and the other a density to the
            same levels dequantised: the error is then right, and the mean off by a constant,
            D log (n + 1).

    Returns:
        the mean and its standard error, or ``None`` if they did not score the very same data
        by the same measure.

    Raises:
        RunError: if one of them has not been evaluated.
    """
    if not _same_data(run, first, any_values) or not _same_measure(run, first, any_values):
        return None
    ours, theirs = (r.read_bounds().per_datum["log_evidence"] for r in (run, first))
    with np.errstate(invalid="ignore"):  # −∞ less −∞ is not a number, and printed as such
        difference = ours - theirs
        deviation = difference.std(ddof=1) if len(difference) > 1 else math.nan
        return float(difference.mean()), float(deviation / math.sqrt(len(difference)))


def flat_settings(settings: dict[str, Any], prefix: str = "") -> list[tuple[str, Any]]:
    """A nested configuration as ``(dotted key, value)`` rows."""
    rows: list[tuple[str, Any]] = []
    for key, value in settings.items():
        name = f"{prefix}{key}"
        rows += flat_settings(value, f"{name}.") if isinstance(value, dict) else [(name, value)]
    return rows


def _same_data(run: Run, first: Run, any_values: bool = False) -> bool:
    sizes = {len(r.read_bounds()) for r in (run, first)}
    return len(sizes) == 1 and _data(run, any_values) == _data(first, any_values)


def _same_measure(run: Run, first: Run, any_values: bool) -> bool:
    measures = {r.read_result().get("bounds", {}).get("measure") for r in (run, first)}
    # results of before it was noted compare as they did
    measures -= {None, "density"} if any_values and "probability" in measures else {None}
    return len(measures) <= 1


def _data(run: Run, any_values: bool) -> tuple[Any, ...]:
    """What must agree for two runs to have scored the same numbers."""
    result = run.read_result()
    data, bounds = result.get("data", {}), result.get("bounds", {})
    # dynamic pixels and noise are drawn with the evaluation's seed
    return (
        *(data.get(key) for key in ("checksum", "binarize")),
        None if any_values else data.get("values"),
        *(bounds.get(key) for key in ("split", "seed")),
    )
