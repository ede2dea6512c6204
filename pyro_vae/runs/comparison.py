"""Evaluated runs side by side."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from ..evaluation import Bounds
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
    evaluated = [_read(run) for run in opened]
    names = [run.name for run in opened]
    width = max(len("run"), *map(len, names))
    head = f"{'run':{width}}{'K':>8}{'N':>7}{'ELBO':>11}{'log p̂':>11}{'± data':>9}{'gap':>9}"
    lines = [f"{head}{'k̂>limit':>9}{'log p̂ − first':>16}{'± paired':>10}"]
    for run, name in zip(evaluated, names, strict=True):
        bounds = run.bounds
        row = (
            f"{name:{width}}{bounds.num_samples:8}{len(bounds):7}{bounds.elbo:11.3f}"
            f"{bounds.log_evidence:11.3f}{bounds.estimates['log_evidence'].se_data:9.3f}"
            f"{bounds.gap:9.3f}{len(bounds.unreliable):9}"
        )
        if run is not evaluated[0]:
            mismatch = _find_mismatch(run, evaluated[0])
            row += (
                "{:16.3f}{:10.3f}".format(*_subtract(bounds, evaluated[0].bounds))
                if mismatch is None
                else f"{mismatch:>16}"
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
    ours, theirs = _read(run), _read(first)
    if _find_mismatch(ours, theirs, any_values) is not None:
        return None
    return _subtract(ours.bounds, theirs.bounds)


class _Evaluated(NamedTuple):
    """The bounds of a run and the data that it was trained on, from ``result.json``."""

    bounds: Bounds
    data: Mapping[str, Any]


def _read(run: Run) -> _Evaluated:
    return _Evaluated(run.read_bounds(), run.read_result().get("data", {}))


def _subtract(ours: Bounds, theirs: Bounds) -> tuple[float, float]:
    """Return the mean paired difference of log p̂ and its standard error."""
    with np.errstate(invalid="ignore"):  # −∞ − −∞ is NaN, and is printed as such
        difference = ours.per_datum["log_evidence"] - theirs.per_datum["log_evidence"]
        deviation = difference.std(ddof=1) if len(difference) > 1 else math.nan
        return float(difference.mean()), float(deviation / math.sqrt(len(difference)))


def _find_mismatch(ours: _Evaluated, theirs: _Evaluated, any_values: bool = False) -> str | None:
    """Return why log p̂ of two runs cannot be compared, or ``None``."""
    same_size = len(ours.bounds) == len(theirs.bounds)
    if not same_size or _data_key(ours, any_values) != _data_key(theirs, any_values):
        return "other data"
    if ours.bounds.num_samples != theirs.bounds.num_samples:
        return "K differs"
    measures = {run.bounds.provenance.get("measure") for run in (ours, theirs)}
    # results without a measure are comparable with any
    measures -= {None, "density"} if any_values and "probability" in measures else {None}
    return "other measure" if len(measures) > 1 else None


def _data_key(run: _Evaluated, any_values: bool) -> tuple[Any, ...]:
    """Return the settings that must agree for two runs to have scored the same examples."""
    # the evaluation seed determines dynamic binarisation and dequantisation noise
    return (
        *(run.data.get(key) for key in ("checksum", "binarize")),
        None if any_values else run.data.get("values"),
        *(run.bounds.provenance.get(key) for key in ("split", "seed")),
    )
