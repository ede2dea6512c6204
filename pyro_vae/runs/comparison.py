"""Evaluated runs side by side."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np

from .run import Run

__all__ = ["compare", "paired_difference"]


def compare(*runs: Run | Path | str) -> str:
    """Return a table of evaluated runs, with the paired differences from the first run.

    The difference of log p̂ is paired by example, so that the variation between examples
    cancels. It is omitted, with the reason, if two runs were evaluated on different data or with
    different numbers of samples K (log p̂ = L_K rises with K), or if one has probabilities and
    the other densities.

    Arguments:
        *runs: evaluated runs, or their folders.

    Raises:
        RunError: if a run has not been evaluated, or if its result is damaged.
        ValueError: if no run is given.
    """
    if not runs:
        raise ValueError("expected at least one run to compare; got none")
    opened = [run if isinstance(run, Run) else Run(run) for run in runs]
    for run in opened:
        run.read_bounds()
    names = [run.name for run in opened]
    width = max(len("run"), *map(len, names))
    head = f"{'run':{width}}{'K':>8}{'N':>7}{'ELBO':>11}{'log p̂':>11}{'± data':>9}{'gap':>9}"
    lines = [f"{head}{'k̂>limit':>9}{'log p̂ − first':>16}{'± paired':>10}"]
    for run, name in zip(opened, names, strict=True):
        bounds = run.read_bounds()
        row = (
            f"{name:{width}}{bounds.num_samples:8}{len(bounds):7}{bounds.elbo:11.3f}"
            f"{bounds.log_evidence:11.3f}{bounds.estimates['log_evidence'].se_data:9.3f}"
            f"{bounds.gap:9.3f}{len(bounds.unreliable):9}"
        )
        if run is not opened[0]:
            difference = paired_difference(run, opened[0])
            row += (
                "{:16.3f}{:10.3f}".format(*difference)
                if difference
                else f"{_find_mismatch(run, opened[0]):>16}"
            )
        lines.append(row)
    lines.append("nats per datum, higher is better")
    return "\n".join(lines)


def paired_difference(run: Run, first: Run, any_values: bool = False) -> tuple[float, float] | None:
    """Return the mean paired difference of log p̂ between two runs and its standard error, in nats.

    Arguments:
        run: an evaluated run.
        first: the evaluated run it is compared with.
        any_values: also compare probabilities of levels with densities of the same levels after
            dequantisation. The standard error is then correct, and the mean is off by the
            constant D log (n + 1).

    Returns:
        The mean and its standard error, or ``None`` if the runs were evaluated on different data,
        with different numbers of samples or with different measures.

    Raises:
        RunError: if a run has not been evaluated.
    """
    if _find_mismatch(run, first, any_values) is not None:
        return None
    ours, theirs = (r.read_bounds().per_datum["log_evidence"] for r in (run, first))
    with np.errstate(invalid="ignore"):  # −∞ − −∞ is NaN, and is printed as such
        difference = ours - theirs
        deviation = difference.std(ddof=1) if len(difference) > 1 else math.nan
        return float(difference.mean()), float(deviation / math.sqrt(len(difference)))


def _find_mismatch(run: Run, first: Run, any_values: bool = False) -> str | None:
    """Return why log p̂ of two runs cannot be compared, or ``None``."""
    bounds = [r.read_bounds() for r in (run, first)]
    same_size = len(bounds[0]) == len(bounds[1])
    if not same_size or _data_key(run, any_values) != _data_key(first, any_values):
        return "other data"
    if bounds[0].num_samples != bounds[1].num_samples:
        return "K differs"
    measures = {b.provenance.get("measure") for b in bounds}
    # results without a measure are comparable with any
    measures -= {None, "density"} if any_values and "probability" in measures else {None}
    return "other measure" if len(measures) > 1 else None


def _data_key(run: Run, any_values: bool) -> tuple[Any, ...]:
    """Return the settings that must agree for two runs to have scored the same examples."""
    data, bounds = run.read_result().get("data", {}), run.read_bounds().provenance
    # the evaluation seed determines dynamic binarisation and dequantisation noise
    return (
        *(data.get(key) for key in ("checksum", "binarize")),
        None if any_values else data.get("values"),
        *(bounds.get(key) for key in ("split", "seed")),
    )
