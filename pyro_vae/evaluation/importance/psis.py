"""The largest weights: how heavy their tail is, and what it is when smoothed."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

__all__ = ["Largest", "ParetoTail", "khat_limits", "khat_threshold"]

#: Nats below the largest weight at which another is zero beside it, in float64.
_RANGE = 700.0
#: Log weights of float32 that differ by less, relatively, may be equal.
_ROUNDING = 4 * torch.finfo(torch.float32).eps
#: Fewer weights than these have no shape to fit.
_FEWEST_IN_TAIL = 5
#: Powers of the other weights whose sums are kept.
POWERS = 4


class Largest:
    """The largest log weights of each datum, and if asked for the sums of powers of the others.

    Nothing is ever subtracted, so that a weight that outshines all others hides none of them.

    Arguments:
        count: how many to keep.
        size: the number n of data in the block.
        others: keep Σ w, Σ w², … of the others.

    Attributes:
        values: log weights ``(≤ count, n)`` float64, in no order.
    """

    def __init__(self, count: int, size: int, others: bool = False) -> None:
        self.count, self.others = count, others
        self.values = torch.empty(0, size, dtype=torch.float64)
        self._log_sums = torch.full((POWERS, size), -math.inf, dtype=torch.float64)

    def update(self, log_w: Tensor) -> None:
        """Takes a chunk ``(draws, n)`` of float64 log weights."""
        merged = torch.cat([self.values, log_w])
        kept = min(self.count, len(merged))
        self.values = merged.topk(kept, dim=0, sorted=False).values
        if self.others and len(merged) > kept:
            rest = merged.topk(len(merged) - kept, dim=0, largest=False, sorted=False).values
            sums = torch.stack([(rest * power).logsumexp(0) for power in range(1, POWERS + 1)])
            self._log_sums = torch.logaddexp(self._log_sums, sums)

    @property
    def descending(self) -> Tensor:
        """:attr:`values` from the largest down, ``(≤ count, n)``."""
        return self.values.sort(dim=0, descending=True).values

    def log_sum_of_others(self, power: int = 1) -> Tensor:
        """log Σ w^power of the weights that are not kept, ``(n,)``; −∞ if there are none."""
        return self._log_sums[power - 1]


@dataclass(frozen=True)
class _Smoothed:
    """What PSIS makes of the tail of a block's data.

    Attributes:
        khat: ``(n,)``.
        log_weights: the largest weights from the top down, the tail smoothed, ``(count, n)``.
    """

    khat: Tensor
    log_weights: Tensor


class ParetoTail:
    """The generalised Pareto distribution fitted to the largest weights: its shape is k̂.

    PSIS looks at the M = ⌊3√K⌋ largest of K draws (⌊K/5⌋ when K is small) and at the one
    below them, so no more than these are kept. ArviZ fits them; it is handed the 5 M largest
    draws, with a relative efficiency under which its own rule picks M of 5 M.

    Arguments:
        num_samples: the number K of draws that will come.
        size: the number n of data in the block.
        keep: how many of the largest weights to keep at least; sums over the others are then
            kept, too, so that there is a smoothed estimate.

    References:
        Pareto Smoothed Importance Sampling (Vehtari et al., 2015).
        https://arxiv.org/abs/1507.02646
    """

    def __init__(self, num_samples: int, size: int, keep: int = 0) -> None:
        small = num_samples <= 225
        self.tail = num_samples // 5 if small else math.floor(3 * math.sqrt(num_samples))
        self.num_samples = num_samples
        self.largest = Largest(min(max(5 * self.tail, keep), num_samples), size, keep > 0)
        self._smoothed: _Smoothed | None = None

    def update(self, log_w: Tensor) -> None:
        """Takes a chunk ``(draws, n)`` of float64 log weights."""
        self.largest.update(log_w)
        self._smoothed = None

    @property
    def khat(self) -> Tensor:
        """k̂, ``(n,)``.

        NaN if there are fewer than 25 draws, too few to fit; +inf where fewer than M + 1
        weights are not zero, or not so beside the largest (in float64: 700 nats below it);
        −inf where all of the tail are equal, but for the rounding of float32: weights that
        their largest value bounds (q is the posterior, or all latents are discrete).
        """
        return self._fitted().khat

    def estimate(self) -> tuple[Tensor, Tensor]:
        """log p̂ of the smoothed weights and its variance by the delta method, ``(n,)`` each.

        The M largest weights are replaced by quantiles of the distribution fitted to them, and
        none exceeds the largest that was drawn. Weights stay as they are where there is no
        tail to smooth, k̂ being ±inf; NaN where there are too few draws to fit any. The
        smoothing trades a little bias for much variance where the tail is heavy.
        """
        fitted = self._fitted()
        rest, squares = (self.largest.log_sum_of_others(power) for power in (1, 2))
        log_sum = torch.logaddexp(fitted.log_weights.logsumexp(0), rest)
        log_squares = torch.logaddexp((2 * fitted.log_weights).logsumexp(0), squares)
        draws = self.num_samples
        relative = (log_squares - 2 * log_sum).exp() * draws
        variance = (relative - 1).clamp(min=0) / max(draws - 1, 1)
        few = torch.full_like(log_sum, math.nan)
        known = self.tail >= _FEWEST_IN_TAIL
        return (log_sum - math.log(draws), variance) if known else (few, few)

    def _fitted(self) -> _Smoothed:
        if self._smoothed is None:
            self._smoothed = self._fit()
        return self._smoothed

    def _fit(self) -> _Smoothed:
        descending = self.largest.descending
        largest = descending.T.numpy().copy()
        if self.tail < _FEWEST_IN_TAIL:
            return _Smoothed(torch.full((len(largest),), math.nan, dtype=torch.float64), descending)
        # what is zero beside the largest weight has no tail to fit: ArviZ, left with one weight
        # that is not, would find a light one
        lowest = largest.max(axis=1, keepdims=True) - _RANGE
        nonzero = largest > np.nan_to_num(lowest, neginf=0.0)
        khat = np.full(len(largest), math.inf)
        for datum in np.flatnonzero(nonzero.sum(axis=1) > self.tail):
            weights = np.maximum(largest[datum], lowest[datum])
            khat[datum], smoothed = _fitted_tail(weights, self.tail)
            largest[datum, : len(smoothed)] = smoothed
        return _Smoothed(torch.from_numpy(khat), torch.from_numpy(largest.T.copy()))


def _fitted_tail(log_w: np.ndarray, tail: int) -> tuple[float, np.ndarray]:
    """k̂ of log weights that descend, from the ``tail`` largest above the one below them.

    Where the draws are of few values, many may equal the one below: only what exceeds it is
    a tail then, and ArviZ, which divides by a quartile of the excess, is not shown the rest.

    Returns:
        k̂ and the log weights of the tail, smoothed; none where they stay as they are.
    """
    from arviz_stats.base.array import array_stats

    as_they_are = log_w[:0]
    equal = _ROUNDING * max(1.0, abs(log_w[0]))
    above = log_w[:tail] - log_w[tail] > equal
    if not above[tail - int(tail / 4 + 0.5)]:
        tail = int(above.sum())
        if 0 < tail < _FEWEST_IN_TAIL:
            return math.inf, as_they_are
    if not tail or log_w[0] - log_w[tail - 1] <= equal:
        return -math.inf, as_they_are
    # ArviZ expects log-likelihoods, whose negatives are the log weights
    own, khat = array_stats.psislw(-log_w[: 5 * tail], r_eff=44 / tail)  # type: ignore[arg-type]
    # it returns shares; of a weight that it left alone both are known, and so is their total
    smoothed = own[:tail] + (log_w[tail] - own[tail])
    return float(khat), smoothed if np.isfinite(smoothed).all() else as_they_are


def khat_threshold(num_samples: int) -> float:
    """The k̂ above which an estimate from K draws is not to be trusted: min(1 − 1/log₁₀K, 0.7).

    References:
        Pareto Smoothed Importance Sampling (Vehtari et al., 2015), section 3.2.4.
        https://arxiv.org/abs/1507.02646
    """
    return min(1 - 1 / math.log10(num_samples), 0.7) if num_samples > 1 else -math.inf


def khat_limits(num_samples: np.ndarray) -> np.ndarray:
    """:func:`khat_threshold` of each of many numbers of draws."""
    counts, which = np.unique(num_samples, return_inverse=True)
    return np.array([khat_threshold(int(count)) for count in counts])[which]
