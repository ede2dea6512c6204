"""Pareto smoothed importance sampling: k̂ and smoothed weights from the largest weights."""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

__all__ = [
    "MIN_SAMPLES",
    "PRIOR_SHAPE",
    "PRIOR_WEIGHTS",
    "LargestWeights",
    "ParetoTail",
    "khat_threshold",
    "khat_thresholds",
]

#: The minimum number of samples for a k̂.
MIN_SAMPLES = 25
#: ArviZ averages k̂ with this shape, which counts for as many weights.
PRIOR_SHAPE, PRIOR_WEIGHTS = 0.5, 10

#: Nats below the largest log weight at which a weight counts as zero, in float64.
_RANGE = 700.0
#: Relative difference up to which log weights of float32 count as equal.
_ROUNDING = 4 * torch.finfo(torch.float32).eps
#: The minimum number of weights in a tail to fit.
_MIN_TAIL = 5
#: Number of powers of the other weights whose sums are kept.
_NUM_POWERS = 4


class LargestWeights:
    """Running largest log weights of each example, and optionally power sums of the others.

    Sums are never computed by subtraction, so a dominating weight does not cancel the others.

    Arguments:
        count: the number of weights to keep.
        size: the number n of examples in the block.
        others: keep Σ w, Σ w², … of the others.

    Attributes:
        values: log weights ``(≤ count, n)`` float64, unordered.
        log_sums_of_others: log Σ w^p of the weights that are not kept, for p = 1, 2, …, each
            ``(n,)``; −∞ if there are none.
    """

    def __init__(self, count: int, size: int, others: bool = False) -> None:
        self.count, self.others = count, others
        self.values = torch.empty(0, size, dtype=torch.float64)
        self.log_sums_of_others = torch.full((_NUM_POWERS, size), -math.inf, dtype=torch.float64)

    def update(self, log_w: Tensor) -> None:
        """Add a chunk ``(draws, n)`` of float64 log weights."""
        merged = torch.cat([self.values, log_w])
        kept = min(self.count, len(merged))
        self.values = merged.topk(kept, dim=0, sorted=False).values
        if self.others and len(merged) > kept:
            rest = merged.topk(len(merged) - kept, dim=0, largest=False, sorted=False).values
            sums = torch.stack([(rest * power).logsumexp(0) for power in range(1, _NUM_POWERS + 1)])
            self.log_sums_of_others = torch.logaddexp(self.log_sums_of_others, sums)

    @property
    def descending(self) -> Tensor:
        """:attr:`values` in descending order, ``(≤ count, n)``."""
        return self.values.sort(dim=0, descending=True).values


class ParetoTail:
    """Generalised Pareto distribution fitted to the largest weights; its shape is k̂.

    PSIS uses the M = ⌊3√K⌋ largest of K weights (⌊K/5⌋ for K ≤ 225) and the one below them. ArviZ
    performs the fit: it gets the 5 M largest weights, and a relative efficiency for which its
    rule selects M of 5 M.

    Arguments:
        num_samples: the total number K of samples.
        size: the number n of examples in the block.
        keep: the minimum number of largest weights to keep. If positive, sums over the others
            are kept too, as required by :meth:`estimate`.

    References:
        Pareto Smoothed Importance Sampling (Vehtari et al., 2015).
        https://arxiv.org/abs/1507.02646
    """

    def __init__(self, num_samples: int, size: int, keep: int = 0) -> None:
        small = num_samples <= 225
        self.tail = num_samples // 5 if small else math.floor(3 * math.sqrt(num_samples))
        self.num_samples = num_samples
        self.largest = LargestWeights(min(max(5 * self.tail, keep), num_samples), size, keep > 0)
        self._fitted: _Fit | None = None

    def update(self, log_w: Tensor) -> None:
        """Add a chunk ``(draws, n)`` of float64 log weights."""
        self.largest.update(log_w)
        self._fitted = None

    @property
    def khat(self) -> Tensor:
        """k̂, ``(n,)``.

        NaN for fewer than 25 samples, too few to fit. +inf if fewer than M + 1 weights are
        nonzero relative to the largest (in float64: less than 700 nats below it). −inf if all
        weights of the tail are equal up to float32 rounding: q is the posterior, or the latents
        are discrete. In the latter case values that were never drawn may have larger weights (see
        :mod:`~.discrete`).
        """
        return self._fit().khat

    def estimate(self) -> tuple[Tensor, Tensor]:
        """Return log p̂ of the smoothed weights and its delta-method variance, ``(n,)`` each.

        The M largest weights are replaced by quantiles of the fitted distribution, truncated at
        the largest weight. Weights are unchanged if there is no tail to smooth (k̂ = ±inf). NaN
        if there are too few samples to fit. For heavy tails, smoothing adds a little bias and
        removes much variance.
        """
        khat, smoothed = self._fit().khat, self._fit().smoothed
        if self.tail < _MIN_TAIL:
            return khat, khat
        rest, squares, *_ = self.largest.log_sums_of_others
        log_sum = torch.logaddexp(smoothed.logsumexp(0), rest)
        log_squares = torch.logaddexp((2 * smoothed).logsumexp(0), squares)
        draws = self.num_samples
        relative = (log_squares - 2 * log_sum).exp() * draws
        variance = (relative - 1).clamp(min=0) / (draws - 1)
        return log_sum - math.log(draws), variance

    def fitted_tail(self) -> tuple[Tensor, Tensor, Tensor]:
        """Return the largest log weights, the size of the fitted tail, and its log σ̂.

        Returns:
            Log weights ``(≤ 5 M, n)`` in descending order, and two tensors ``(n,)``. Weights that
            are equal to the one below the tail do not belong to it. The size is 0 if nothing was
            fitted.
        """
        fit = self._fit()
        return self.largest.descending, fit.size, fit.log_scale

    def _fit(self) -> _Fit:
        """Return the fit of every example; cached."""
        if self._fitted is not None:
            return self._fitted
        descending = self.largest.descending
        columns = descending.shape[1]
        khat = np.full(columns, math.nan if self.tail < _MIN_TAIL else math.inf)
        size, log_scale = np.zeros(columns, dtype=np.int64), np.zeros(columns)
        largest = descending.T.numpy().copy()
        if self.tail >= _MIN_TAIL:
            # weights that are zero relative to the largest are no tail: with a single nonzero
            # weight ArviZ would report a light tail
            lowest = largest.max(axis=1, keepdims=True) - _RANGE
            nonzero = largest > np.nan_to_num(lowest, neginf=0.0)
            for i in np.flatnonzero(nonzero.sum(axis=1) > self.tail):
                weights = np.maximum(largest[i], lowest[i])
                khat[i], log_scale[i], smoothed = _fit_tail(weights, self.tail)
                largest[i, : len(smoothed)] = smoothed
                size[i] = len(smoothed)
        self._fitted = _Fit(
            torch.from_numpy(khat),
            torch.from_numpy(largest.T.copy()),
            torch.from_numpy(size),
            torch.from_numpy(log_scale),
        )
        return self._fitted


class _Fit(NamedTuple):
    """Fits of the generalised Pareto distribution to the tails of all examples.

    Attributes:
        khat: k̂, ``(n,)``.
        smoothed: the largest log weights in descending order, with a smoothed tail.
        size: the number of weights in the tail, ``(n,)``; 0 if it is not smoothed.
        log_scale: log σ̂, ``(n,)``.
    """

    khat: Tensor
    smoothed: Tensor
    size: Tensor
    log_scale: Tensor


def _fit_tail(log_w: np.ndarray, tail: int) -> tuple[float, float, np.ndarray]:
    """Fit the ``tail`` largest of descending log weights, relative to the weight below them.

    If the weights take few values, many may equal the weight below. Then only larger weights are
    passed to ArviZ, which divides by a quartile of the excess.

    Returns:
        k̂, log σ̂ and the smoothed log weights of the tail; empty if they are unchanged.
    """
    from arviz_stats.base.array import array_stats

    unchanged = log_w[:0]
    equal = _ROUNDING * max(1.0, abs(log_w[0]))
    above = log_w[:tail] - log_w[tail] > equal
    if not above[tail - int(tail / 4 + 0.5)]:
        tail = int(above.sum())
        if 0 < tail < _MIN_TAIL:
            return math.inf, 0.0, unchanged
    if not tail or log_w[0] - log_w[tail - 1] <= equal:
        return -math.inf, 0.0, unchanged
    # ArviZ expects log-likelihoods, whose negatives are the log weights
    shares, khat = array_stats.psislw(-log_w[: 5 * tail], r_eff=44 / tail)  # type: ignore[arg-type]
    # it returns normalised weights; a weight that it does not smooth gives the normalisation
    smoothed = shares[:tail] + (log_w[tail] - shares[tail])
    if not np.isfinite(smoothed).all():
        return float(khat), 0.0, unchanged
    return float(khat), _find_log_scale(smoothed, log_w[tail], float(khat)), smoothed


def _find_log_scale(smoothed: np.ndarray, log_threshold: float, khat: float) -> float:
    """Return log σ̂: the smoothed weights are quantiles u + σ ((1 − p)^−k − 1) / k."""
    rank = len(smoothed) // 2
    log_odds = -math.log1p(-(rank + 0.5) / len(smoothed))
    quantile = smoothed[len(smoothed) - 1 - rank]
    log_excess = quantile + math.log(-math.expm1(log_threshold - quantile))
    standard = math.expm1(khat * log_odds) / khat if khat else log_odds
    return log_excess - math.log(standard)


def khat_threshold(num_samples: int) -> float:
    """Return the k̂ above which an estimate is unreliable: min(1 − 1/log₁₀K, 0.7) for K samples.

    References:
        Pareto Smoothed Importance Sampling (Vehtari et al., 2015), section 3.2.4.
        https://arxiv.org/abs/1507.02646
    """
    return min(1 - 1 / math.log10(num_samples), 0.7) if num_samples > 1 else -math.inf


def khat_thresholds(num_samples: np.ndarray) -> np.ndarray:
    """Return :func:`khat_threshold` elementwise for an array of sample counts."""
    return np.array([khat_threshold(int(count)) for count in num_samples])
