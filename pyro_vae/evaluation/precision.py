"""Correction of bounds from bfloat16 networks by examples that are scored again in float32.

The networks of a random subset S of the examples run twice, with the same samples: in bfloat16 and
in float32. Values of the examples in S are those of float32. The others are shifted by the mean
difference d over S, so the mean over all examples is

    mean_all(bfloat16) + mean_S(float32 − bfloat16),

the difference estimator of survey sampling: S does not depend on the values, so its expectation is
that of float32.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..compiler.matmul import Precision
from ..core.random import Stream, seeded
from ..programs.inputs import AnyProgram, program_dtype
from .bounds import Bounds
from .estimates import finite_or_none
from .table_parts import TablePart, register

__all__ = ["RESCORED", "check_dtype", "choose_rescored", "correct_rounding", "rounding_columns"]

#: Column that is true for the examples that were scored again in float32.
RESCORED = "rescored"
#: Share of the examples that are scored again, and the minimum number.
_SHARE, _MIN_RESCORED = 0.05, 50
#: Start of the names of the columns with the differences float32 − bfloat16.
_PREFIX = "rounding_"
#: Error of the correction over the data error, above which the table advises float32.
_MAX_ERROR_RATIO = 0.25


def check_dtype(program: AnyProgram, precision: Precision) -> None:
    """Raise a ``ValueError`` if layers of the program cannot run in a lower precision."""
    dtype = program_dtype(program)
    if dtype is not torch.float32:
        raise ValueError(
            f"expected a float32 program with precision {precision}, which rounds float32 layers; "
            f"got {str(dtype).removeprefix('torch.')}: use precision float32, which keeps its dtype"
        )


def choose_rescored(size: int, seed: int) -> Tensor:
    """Return which examples are scored again in float32: booleans ``(size,)``.

    They are a random 5 % of the examples, and at least 50. The error of the correction is then at
    most √20 = 4.5 times the data error, times the ratio of the standard deviations over the
    examples of the change by rounding and of the row itself.
    """
    count = min(size, max(_MIN_RESCORED, round(_SHARE * size)))
    with seeded(seed, Stream.PRECISION_SUBSET):
        rows = torch.randperm(size)[:count]
    rescored = torch.zeros(size, dtype=torch.bool)
    rescored[rows] = True
    return rescored


def rounding_columns(
    exact: Mapping[str, Tensor], rounded: Mapping[str, Tensor]
) -> dict[str, Tensor]:
    """Return the differences of the estimates in float32 and in bfloat16, ``(n,)`` each."""
    names = [name for name in exact if f"{name}_variance" in exact]
    names += [name for name in ("log_evidence", "psis", "jackknife", "khat") if name in exact]
    columns = {}
    for name in dict.fromkeys(names):
        difference = exact[name] - rounded[name]
        # two infinite values are equal
        columns[name] = torch.where(exact[name] == rounded[name], 0.0, difference)
    columns["gap"] = columns["log_evidence"] - columns["elbo"]
    return {f"{_PREFIX}{name}": column for name, column in columns.items()}


def correct_rounding(bounds: Bounds, precision: Precision) -> Bounds:
    """Return bounds whose means over the examples are unbiased estimates of those in float32.

    With the standard deviation s of d over the m = |S| examples, the error of the correction of a
    mean is s √((1 − m/N) / m). The squared error of an example outside S grows by s² (1 + 1/m).
    The part s²/m is the same for all of them, see :meth:`Bounds.correction_error`.

    Arguments:
        bounds: merged bounds of all examples, with the column ``rescored`` and the columns of
            :func:`rounding_columns`, which are removed.
        precision: the precision of the other examples.

    References:
        Model Assisted Survey Sampling (Särndal, Swensson and Wretman, 1992), section 6.3.
        https://doi.org/10.1007/978-1-4612-4378-6
    """
    data = dict(bounds.per_datum)
    rescored = data[RESCORED].astype(bool)
    differences = {
        name.removeprefix(_PREFIX): data.pop(name)[rescored]
        for name in list(data)
        if name.startswith(_PREFIX)
    }
    others, count = ~rescored, int(rescored.sum())
    khat = np.abs(differences.pop("khat"))
    settings: dict[str, Any] = {"name": precision, "num_rescored": count, "rows": {}}
    values, variances = dict(bounds.iwae_per_datum), dict(bounds.iwae_variance)
    for name, difference in differences.items() if others.any() else ():
        with np.errstate(invalid="ignore"):  # infinite values
            shift, spread = float(difference.mean()), float(difference.std(ddof=1))
        settings["rows"][name] = {
            "shift": finite_or_none(shift),
            "shift_se": finite_or_none(spread / math.sqrt(count)),
            "spread": finite_or_none(spread),
        }
        variance = np.where(others, spread**2 * (1 + 1 / count), 0.0)
        if name.startswith("iwae_"):
            k = int(name.removeprefix("iwae_"))
            values[k] = np.where(others, values[k] + shift, values[k])
            variances[k] = variances[k] + variance
            continue
        if name in data:  # the gap is a difference of two columns
            data[name] = np.where(others, data[name] + shift, data[name])
        data[f"{name}_variance"] = data[f"{name}_variance"] + variance
    if settings["rows"] and np.isfinite(khat).any():
        settings["khat_change"] = float(np.median(khat[np.isfinite(khat)]))
    return replace(
        bounds,
        per_datum=data | {RESCORED: rescored},
        iwae_per_datum=values,
        iwae_variance=variances,
        settings={**bounds.settings, "precision": settings},
    )


def _describe(bounds: Bounds) -> str | None:
    settings = bounds.settings.get("precision")
    if settings is None:
        return None
    if "rows" not in settings:
        return f"network layers in {settings['name']}, without a correction (an earlier version)"
    count = settings["num_rescored"]
    if not settings["rows"]:
        return f"network layers in float32: {count} examples are too few for {settings['name']}"
    rows = [("elbo", "ELBO"), ("log_evidence", "log p̂")]
    shifts = ", ".join(
        f"{label} {_number(settings['rows'][name]['shift']):+.4f} ± "
        f"{bounds.correction_error(name):.4f}"
        for name, label in rows
    )
    spread = _number(settings["rows"]["log_evidence"]["spread"])
    lines = [
        f"network layers in {settings['name']} for {len(bounds) - count} of {len(bounds)} "
        f"examples, corrected by the other {count} in float32: {shifts}; log p̂ of an example "
        f"± {spread:.4f}, k̂ ± {settings.get('khat_change', math.nan):.2f}"
    ]
    estimates = bounds.estimates
    # also if an error is NaN
    if not all(
        bounds.correction_error(name) <= _MAX_ERROR_RATIO * estimates[name].se_data
        for name, _ in rows
    ):
        lines.append(
            "The error of the correction is above a quarter of the data error: use float32."
        )
    return "\n".join(lines)


def _number(value: float | None) -> float:
    return math.nan if value is None else value


register(TablePart(order=40, describe=_describe))
