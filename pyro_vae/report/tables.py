"""Tables of bounds, for the terminal and the page."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ..runs import Run

__all__ = ["comparison", "flat_settings"]


def comparison(runs: Sequence[Run]) -> str:
    """Evaluated runs side by side, and how each differs from the first on the same data.

    The difference of log p̂ is paired, datum by datum, so that the spread of the data cancels;
    it is left out where two runs did not score the very same data.

    Raises:
        RunError: if a run has not been evaluated.
    """
    names = [run.name for run in runs]
    wide = max(len("run"), *map(len, names))
    head = f"{'run':{wide}}{'K':>8}{'N':>7}{'ELBO':>11}{'log p̂':>11}{'± data':>9}{'gap':>9}"
    lines = [f"{head}{'k̂>limit':>9}{'log p̂ − first':>16}{'± paired':>10}"]
    first, first_data = runs[0].read_bounds(), _data(runs[0])
    for run, name in zip(runs, names, strict=True):
        bounds = run.read_bounds()
        row = (
            f"{name:{wide}}{bounds.num_samples:8}{len(bounds):7}{bounds.elbo:11.3f}"
            f"{bounds.log_evidence:11.3f}{bounds.estimates['log_evidence'].se_data:9.3f}"
            f"{bounds.gap:9.3f}{len(bounds.unreliable):9}"
        )
        if run is runs[0]:
            pass
        elif _data(run) == first_data and len(bounds) == len(first):
            ours, theirs = (b.per_datum["log_evidence"] for b in (bounds, first))
            difference = ours - theirs
            error = difference.std(ddof=1) / math.sqrt(len(difference))
            row += f"{difference.mean():16.3f}{error:10.3f}"
        else:
            row += f"{'other data':>16}"
        lines.append(row)
    lines.append("nats per datum, higher is better")
    return "\n".join(lines)


def flat_settings(settings: dict[str, Any], prefix: str = "") -> list[tuple[str, Any]]:
    """A nested configuration as ``(dotted key, value)`` rows."""
    rows: list[tuple[str, Any]] = []
    for key, value in settings.items():
        name = f"{prefix}{key}"
        rows += flat_settings(value, f"{name}.") if isinstance(value, dict) else [(name, value)]
    return rows


def _data(run: Run) -> tuple[Any, ...]:
    """What must agree for two runs to have scored the same numbers."""
    result = run.read_result()
    data, bounds = result.get("data", {}), result.get("bounds", {})
    # dynamic pixels are drawn with the evaluation's seed
    return (data.get("checksum"), data.get("binarize"), bounds.get("split"), bounds.get("seed"))
