"""Mean of per-example values with its standard errors."""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np

__all__ = ["Estimate", "estimate_mean", "finite_or_none", "median_and_worst"]


class Estimate(NamedTuple):
    """Mean over examples, in nats, with two standard errors.

    Attributes:
        value: the mean over the examples.
        se_data: the standard error for the population of examples: the spread of the mean over
            *other* examples of the same kind. Includes the Monte Carlo noise. NaN for a single
            example.
        se_monte_carlo: the standard error from sampling alone: the spread of a repetition on the
            *same* examples, and the estimated bias. NaN where a single sample does not determine
            it.
    """

    value: float
    se_data: float
    se_monte_carlo: float

    def summary(self) -> dict[str, float | None]:
        """Return the numbers for JSON; non-finite ones become null."""
        return {key: finite_or_none(number) for key, number in self._asdict().items()}


def estimate_mean(
    values: np.ndarray,
    variances: np.ndarray,
    bias: np.ndarray | None = None,
    shared: np.ndarray | None = None,
) -> Estimate:
    """Return the mean of values ``(N,)``.

    Arguments:
        values: the values, ``(N,)``.
        variances: their mean squared Monte Carlo errors, ``(N,)``.
        bias: their expected errors, ``(N,)``. Independent errors average out over the examples,
            their common bias does not.
        shared: standard deviations of an error that the examples share, such as that of a
            correction, ``(N,)``; ``variances`` include it.
    """
    size = len(values)
    spread = float(values.std(ddof=1)) if size > 1 else math.nan
    data_variance = spread**2 / size
    variance = float(variances.sum()) / size**2
    if bias is not None:  # a single error includes its bias
        variance += (1 - 1 / size) * float(bias.mean()) ** 2
    if shared is not None:
        total = float(shared.sum()) ** 2
        variance += (total - float(np.square(shared).sum())) / size**2
        data_variance += total / size**2
    return Estimate(
        value=float(values.mean()),
        se_data=math.sqrt(data_variance),
        se_monte_carlo=math.sqrt(variance),
    )


def median_and_worst(values: np.ndarray, lowest: bool = False) -> dict[str, float | None]:
    """Return the median and the maximum (minimum if ``lowest``) for JSON, ignoring NaN."""
    known = values if np.isnan(values).all() else values[~np.isnan(values)]
    return {
        "median": finite_or_none(np.median(known)),
        "worst": finite_or_none(known.min() if lowest else known.max()),
    }


def finite_or_none(value: float) -> float | None:
    """Return a finite number as it is and ``None`` (null in JSON) otherwise."""
    return float(value) if math.isfinite(value) else None
