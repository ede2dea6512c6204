"""A figure of many data, with its errors."""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np

__all__ = ["Estimate", "estimate", "finite"]


class Estimate(NamedTuple):
    """A mean over data, in nats, with its two standard errors.

    Attributes:
        value: the mean over data.
        se_data: the spread of the data: how far the mean over *other* data of the same kind
            would be. Includes the Monte Carlo noise. NaN for a single datum.
        se_monte_carlo: the noise of the draws alone: how far a repetition on the *same* data
            would be. NaN where a single draw cannot tell.
    """

    value: float
    se_data: float
    se_monte_carlo: float

    def summary(self) -> dict[str, float | None]:
        """Its numbers for JSON; those that are not finite become null."""
        return {key: finite(number) for key, number in self._asdict().items()}


def estimate(values: np.ndarray, variances: np.ndarray) -> Estimate:
    """The mean of values ``(N,)`` whose Monte Carlo variances are given."""
    size = len(values)
    spread = float(values.std(ddof=1)) if size > 1 else math.nan
    return Estimate(
        value=float(values.mean()),
        se_data=spread / math.sqrt(size),
        se_monte_carlo=float(np.sqrt(variances.sum()) / size),
    )


def finite(value: float) -> float | None:
    """A number as JSON knows it: null if it is not finite."""
    return float(value) if math.isfinite(value) else None
