"""Simultaneous bands for uniform values, and the direction of a deviation from uniformity."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache
from typing import NamedTuple

import numpy as np
import torch

__all__ = ["Band", "Shape", "describe_shape", "make_band", "measure_shape"]

#: Number of points at which an ECDF is compared with its band, denser towards 0 and 1.
_NUM_POINTS = 30
#: Expected number of simulated ECDFs outside of the band, and the maximum number of simulations.
_NUM_OUTSIDE, _MAX_SIMULATIONS = 20, 10_000
#: Standard errors above which a deviation of the shift or of the width gets a name.
_MIN_ERRORS = 3.0
#: Shift above which a small spread is that of ranks at the end of their range.
_MAX_SHIFT = 2.0
#: Distance between the 10 % and the 90 % quantile of a standard normal distribution, and the
#: asymptotic standard errors of spread and shift for one value.
_NORMAL_RANGE, _SPREAD_ERROR, _SHIFT_ERROR = 2.5631, 0.889, 1.2533


@dataclass(frozen=True)
class Band:
    """Simultaneous band for the ECDF of N uniform values.

    Attributes:
        points: the points at which the ECDF is compared, ``(P,)``.
        lower, upper: the limits of the ECDF there, ``(P,)``.
    """

    points: np.ndarray
    lower: np.ndarray
    upper: np.ndarray

    def excludes(self, values: np.ndarray) -> bool:
        """Whether the ECDF of N values leaves the band."""
        ecdf = self._ecdf(values)
        return bool(((ecdf < self.lower) | (ecdf > self.upper)).any())

    def excludes_extremes(self, values: np.ndarray) -> bool:
        """Whether too many of the values are close to 0 or 1.

        For values that are closer to ½ than uniform ones if all is well.
        """
        return bool((self._ecdf(2 * np.abs(values - 0.5)) < self.lower).any())

    def _ecdf(self, values: np.ndarray) -> np.ndarray:
        from arviz_stats.ecdf_utils import compute_ecdf

        return np.asarray(compute_ecdf(values, self.points))


@lru_cache(maxsize=32)
def make_band(size: int, false_alarm_rate: float) -> Band:
    """Return the band that the ECDF of uniform values leaves with the given probability.

    ArviZ computes it by simulation. The error of the false-alarm rate is about a fifth of it.

    Arguments:
        size: the number N of values, two or more.
        false_alarm_rate: the probability that the ECDF is outside of the band at any point.

    References:
        Graphical Test for Discrete Uniformity and its Applications in Goodness-of-fit Evaluation
        and Multiple Sample Comparison (Säilynoja et al., 2022).
        https://doi.org/10.1007/s11222-022-10090-6
    """
    from arviz_stats.ecdf_utils import get_pointwise_confidence_band, simulate_confidence_bands

    angles = np.pi * np.arange(1, _NUM_POINTS + 1) / (_NUM_POINTS + 1)
    counts = np.unique(np.round(size * (1 - np.cos(angles)) / 2).clip(1, size - 1))
    points, prob = counts / size, 1 - false_alarm_rate
    num_simulations = min(_MAX_SIMULATIONS, math.ceil(_NUM_OUTSIDE / false_alarm_rate))
    random = np.random.default_rng(0)
    pointwise = simulate_confidence_bands(size, 1, points, prob, num_simulations, random)
    return Band(points, *get_pointwise_confidence_band(pointwise, size, points))


class Shape(NamedTuple):
    """Centre and spread of the normal scores Φ⁻¹(u) of values u.

    Both are from quantiles, as the scores of ranks among K samples end at ±Φ⁻¹(1 / K). For ranks
    of the truth among normal samples with the mean μ + δσ and the standard deviation cσ, where
    N(μ, σ²) is the exact posterior, they are −δ/c and 1/c.

    Attributes:
        shift: the median, 0 for uniform values.
        spread: the distance between the 10 % and the 90 % quantile, in units of that of a standard
            normal distribution, 1 for uniform values. Twice that between the median and the inner
            of them, if the median is more than 1 from 0.
    """

    shift: float
    spread: float


def measure_shape(values: np.ndarray) -> Shape:
    """Return the :class:`Shape` of values in [0, 1], ``(N,)``."""
    scores = torch.special.ndtri(torch.from_numpy(values).double().clamp(1e-9, 1 - 1e-9))
    low, middle, high = map(float, np.quantile(scores.numpy(), (0.1, 0.5, 0.9)))
    spread = high - low
    if abs(middle) > 1:  # the outer half ends early
        spread = 2 * (high - middle if middle < 0 else middle - low)
    return Shape(middle, spread / _NORMAL_RANGE)


def describe_shape(values: np.ndarray) -> str:
    """Describe how the distribution that gave these ranks of the truth differs from the true one.

    Returns:
        ``too narrow ×0.5``, with the ratio of the standard deviations; ``too low 0.3`` or ``too
        high 0.3``, with the distance in standard deviations of the true distribution; both;
        ``tails too light``; or ``other shape``.
    """
    shift, spread = measure_shape(values)
    # if most ranks are close to an end, their scores tell nothing about the width
    is_far = abs(shift) > _MAX_SHIFT and spread < 1
    root, spread = math.sqrt(len(values)), 1.0 if is_far else max(spread, 1e-3)
    errors = {
        "width": abs(math.log(spread)) * root / _SPREAD_ERROR,
        "shift": abs(shift) / spread * root / _SHIFT_ERROR,
        "tails": (np.mean(np.abs(2 * values - 1) > 0.95) - 0.05) * root / math.sqrt(0.05 * 0.95),
    }
    texts = {
        "width": f"too {'narrow' if spread > 1 else 'wide'} ×{1 / spread:.2g}",
        # of the truth's standard deviations: −(−δ/c) / (1/c)
        "shift": f"too {'low' if shift > 0 else 'high'} {abs(shift) / spread:.2g}",
        "tails": "tails too light",
    }
    named = [name for name in ("width", "shift") if errors[name] > _MIN_ERRORS]
    if is_far:
        named = ["shift"]
    if not named and errors["tails"] > _MIN_ERRORS:
        named = ["tails"]
    if not named:
        # the band was left, so that the largest deviation is probably its cause
        largest = max(errors, key=lambda name: errors[name])
        named = [largest] if errors[largest] > _MIN_ERRORS - 1 else []
    named.sort(key=lambda name: -errors[name])
    return ", ".join(texts[name] for name in named) or "other shape"
