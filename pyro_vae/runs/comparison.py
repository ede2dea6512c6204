"""Evaluated runs side by side."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from ..evaluation import Bounds
from .run import Run

__all__ = ["compare", "paired_difference", "require_comparable", "subtract"]


def compare(*runs: Run | Path | str) -> str:
    """Return a table of evaluated runs, with the paired differences from the first run.

    The difference of log p̂ is paired by example, so that the variation between examples
    cancels. It is omitted if two runs were evaluated on different data or with different numbers
    of samples K (log p̂ = L_K rises with K, except with ``reliable=True`` for both), or if one has
    probabilities and the other densities.
    Sentences below the table name all settings that differ from those of the first run.

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
            mismatches = _find_mismatches(run, evaluated[0])
            row += (
                "{:16.3f}{:10.3f}".format(*subtract(bounds, evaluated[0].bounds))
                if not mismatches
                else f"{mismatches[0].short:>16}"
            )
        lines.append(row)
    lines.append("nats per datum, higher is better")
    for run, name in zip(evaluated[1:], names[1:], strict=True):
        lines += _describe_mismatches(run, name, evaluated[0], names[0])
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
    if _find_mismatches(ours, theirs, any_values):
        return None
    return subtract(ours.bounds, theirs.bounds)


def require_comparable(first: Run, *others: Run) -> None:
    """Raise unless log p̂ of all runs can be compared with that of the first.

    Raises:
        RunError: if a run has not been evaluated.
        ValueError: if a run was evaluated on different data, with different numbers of samples or
            with different measures.
    """
    theirs = _read(first)
    for run in others:
        ours = _read(run)
        if _find_mismatches(ours, theirs):
            raise ValueError(_describe_mismatches(ours, run.name, theirs, first.name)[0])


class _Evaluated(NamedTuple):
    """The bounds of a run and the data that it was trained on, from ``result.json``."""

    bounds: Bounds
    data: Mapping[str, Any]


def _read(run: Run) -> _Evaluated:
    return _Evaluated(run.read_bounds(), run.read_result().get("data", {}))


def subtract(ours: Bounds, theirs: Bounds) -> tuple[float, float]:
    """Return the mean paired difference of log p̂ of the same examples and its standard error."""
    with np.errstate(invalid="ignore"):  # −∞ − −∞ is NaN, and is printed as such
        difference = ours.per_datum["log_evidence"] - theirs.per_datum["log_evidence"]
        deviation = difference.std(ddof=1) if len(difference) > 1 else math.nan
    corrections = [bounds.correction_error() for bounds in (ours, theirs)]
    error = math.hypot(deviation / math.sqrt(len(difference)), *corrections)
    return float(difference.mean()), error


class _Mismatch(NamedTuple):
    """A setting that makes log p̂ of two runs incomparable, in a table and in a sentence."""

    short: str
    text: str


def _find_mismatches(
    ours: _Evaluated, theirs: _Evaluated, any_values: bool = False
) -> list[_Mismatch]:
    """Return why log p̂ of two runs cannot be compared; empty if it can."""
    found = []
    settings = [_data_settings(run, any_values) for run in (ours, theirs)]
    for key, value in settings[0].items():
        other = settings[1][key]
        if value != other:
            text = "other data" if key == "checksum" else f"{key} {value} instead of {other}"
            found.append(_Mismatch("other data", text))
    sizes = [len(run.bounds) for run in (ours, theirs)]
    if sizes[0] != sizes[1]:
        found.append(_Mismatch("other data", f"{sizes[0]} examples instead of {sizes[1]}"))
    samples = [_describe_samples(run.bounds) for run in (ours, theirs)]
    counts = [run.bounds.sample_counts for run in (ours, theirs)]
    has_ladder = all(run.bounds.proposals for run in (ours, theirs))
    differ = sizes[0] == sizes[1] and (counts[0] != counts[1]).any() and not has_ladder
    if samples[0] != samples[1] or differ:
        text = f"{samples[0]} instead of {samples[1]} (log p̂ = L_K rises with K)"
        found.append(_Mismatch("K differs", text))
    measures = [run.bounds.provenance.get("measure") for run in (ours, theirs)]
    # results without a measure are comparable with any
    has_levels = any_values and "probability" in measures
    if len({*measures} - ({None, "density"} if has_levels else {None})) > 1:
        text = f"a {measures[0]} instead of a {measures[1]}"
        found.append(_Mismatch("other measure", text))
    return found


def _data_settings(run: _Evaluated, any_values: bool) -> dict[str, Any]:
    """Return the settings that must agree for two runs to have scored the same examples."""
    keys = ("checksum", "binarize", "scale", *(() if any_values else ("values",)))
    # the evaluation seed determines dynamic binarisation and dequantisation noise
    return {key: run.data.get(key) for key in keys} | {
        key: run.bounds.provenance.get(key) for key in ("split", "seed")
    }


def _describe_samples(bounds: Bounds) -> str:
    counts = bounds.sample_counts
    if bounds.proposals:
        return "a ladder"
    if "num_samples" not in bounds.per_datum:
        return f"K = {bounds.num_samples}"
    tolerance = bounds.settings.get("tolerance")
    return f"K = {counts.min()} to {counts.max()} (tolerance {tolerance})"


def _describe_mismatches(
    run: _Evaluated, name: str, first: _Evaluated, first_name: str
) -> list[str]:
    """Return sentences about the settings of a run that differ from those of the first."""
    lines = []
    mismatches = _find_mismatches(run, first)
    if mismatches:
        texts = "; ".join(mismatch.text for mismatch in mismatches)
        lines.append(
            f"log p̂ of {name} cannot be compared with that of {first_name}: {texts}. Evaluate both "
            f"with the same settings on the same data."
        )
    changes = [
        (n, r.bounds.settings.get("precision")) for n, r in ((name, run), (first_name, first))
    ]
    low = [(n, change) for n, change in changes if change is not None]
    if len(low) == 1:
        ((low_name, change),) = low
        error = max(r.bounds.correction_error() for r in (run, first))
        effect = (
            f"its correction adds {error:.1g} nats to the standard error of log p̂"
            if "rows" in change
            else "its rounding is not corrected (an earlier version)"
        )
        lines.append(
            f"{low_name} was evaluated with precision {change['name']}, the other with float32: "
            f"{effect}."
        )
    return lines
