"""Importance-sampling estimates of log p(x), from log weights that arrive in chunks.

Every estimate is per datum, and keeps only running sums in float64 and the largest weights:
memory does not grow with the number of draws, but for the √K of the Pareto tail.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

__all__ = ["Block", "GroupedBound", "MeanWeight", "ParetoTail", "khat_threshold"]

#: A variance from fewer degrees of freedom than these is not stated.
_FEWEST_DEGREES = 30


class _Moments:
    """Running moments of values v and of e^v, per datum, without overflow or cancellation."""

    def __init__(self, size: int) -> None:
        self.count = 0
        self._centre: Tensor | None = None
        self._sum, self._squares, self._exp, self._exp_squares, self._exp_times = torch.zeros(
            5, size, dtype=torch.float64
        )
        self._top = torch.full((size,), -math.inf, dtype=torch.float64)

    def add(self, values: Tensor) -> None:
        """Takes values ``(count, n)``."""
        if self._centre is None:
            self._centre = _centre(values)
        self.count += len(values)
        deviation = values - self._centre
        self._sum += deviation.sum(0)
        self._squares += deviation.square().sum(0)
        # sums of e^(v − top), made smaller whenever a larger top comes
        top = torch.maximum(self._top, values.amax(0))
        finite = torch.where(top.isfinite(), top, 0.0)
        shrink = (self._top - finite).exp()
        weights = (values - finite).exp()
        self._exp = self._exp * shrink + weights.sum(0)
        self._exp_squares = self._exp_squares * shrink**2 + weights.square().sum(0)
        # a weight of zero contributes nothing, whatever its logarithm
        products = torch.where(weights > 0, weights * deviation, 0.0)
        self._exp_times = self._exp_times * shrink + products.sum(0)
        self._top = top

    @property
    def mean(self) -> Tensor:
        """The mean of v, ``(n,)``."""
        assert self._centre is not None
        return self._centre + self._sum / self.count

    @property
    def variance_of_mean(self) -> Tensor:
        """The variance of :attr:`mean` over repetitions, ``(n,)``; NaN for a single value."""
        if self.count < 2:
            return torch.full_like(self._sum, math.nan)
        spread = self._squares - self._sum.square() / self.count
        return spread.clamp(min=0) / (self.count - 1) / self.count

    @property
    def log_mean_exp(self) -> Tensor:
        """log of the mean of e^v, ``(n,)``."""
        return self._top + (self._exp / self.count).log()

    @property
    def variance_of_log_mean_exp(self) -> Tensor:
        """Its variance by the delta method, ``(n,)``; NaN for a single value."""
        if self.count < 2:
            return torch.full_like(self._sum, math.nan)
        return (self._relative - 1).clamp(min=0) / (self.count - 1)

    @property
    def variance_of_rise(self) -> Tensor:
        """The variance of log mean e^v − mean v, ``(n,)``, by the delta method.

        The two share their values, so that it is that of the mean of e^v / mean e^v − v.
        """
        if self.count < 2:
            return torch.full_like(self._sum, math.nan)
        covariance = self._exp_times / self._exp - self._sum / self.count
        single = self.variance_of_mean * self.count
        spread = (self._relative - 1 - 2 * covariance) / (self.count - 1) + single / self.count
        return spread.clamp(min=0)

    @property
    def _relative(self) -> Tensor:
        """The mean of e^2v over the square of the mean of e^v."""
        return self._exp_squares * self.count / self._exp.square()


class MeanWeight(_Moments):
    """ELBO, log p̂ and effective sample size from all draws of a block of data.

    Arguments:
        size: the number n of data in the block.
    """

    def update(self, log_w: Tensor) -> None:
        """Takes a chunk ``(draws, n)`` of float64 log weights."""
        self.add(log_w)

    @property
    def effective_sample_size(self) -> Tensor:
        """Kish's (Σw)²/Σw², ``(n,)``, between 1 and the number of draws."""
        return self._exp.square() / self._exp_squares


class GroupedBound(_Moments):
    """L_k from K ≥ k draws: the mean, over disjoint groups of k, of log mean w.

    Each group is one unbiased draw of L_k, so all draws are used, where the first k alone
    would leave the noise of a single group. If k does not divide K, the last group is filled
    up with the first draws.

    Arguments:
        k: the size of a group.
        num_samples: the number K of draws that will come.
        size: the number n of data in the block.

    References:
        Importance Weighted Autoencoders (Burda et al., 2015), equation 8.
        https://arxiv.org/abs/1509.00519
    """

    def __init__(self, k: int, num_samples: int, size: int) -> None:
        super().__init__(size)
        self.k = k
        self._left = num_samples
        self._missing = -num_samples % k
        self._first: list[Tensor] = []
        self._open = torch.full((size,), -math.inf, dtype=torch.float64)
        self._filled = 0

    def update(self, log_w: Tensor) -> None:
        """Takes a chunk ``(draws, n)`` of float64 log weights; groups may span chunks."""
        kept = sum(map(len, self._first))
        if kept < self._missing:
            self._first.append(log_w[: self._missing - kept].clone())
        self._left -= len(log_w)
        self._take(log_w)
        if not self._left and self._missing:
            self._take(torch.cat(self._first))

    def _take(self, log_w: Tensor) -> None:
        if self._filled:
            head, log_w = log_w[: self.k - self._filled], log_w[self.k - self._filled :]
            self._extend(head)
        whole = len(log_w) // self.k * self.k
        if whole:
            groups = log_w[:whole].unflatten(0, (-1, self.k))
            self.add(groups.logsumexp(1) - math.log(self.k))
        if len(log_w) > whole:
            self._extend(log_w[whole:])

    def _extend(self, log_w: Tensor) -> None:
        self._open = torch.logaddexp(self._open, log_w.logsumexp(0))
        self._filled += len(log_w)
        if self._filled == self.k:
            self.add(self._open[None] - math.log(self.k))
            self._open = torch.full_like(self._open, -math.inf)
            self._filled = 0


#: Nats below the largest weight at which another is zero beside it, in float64.
_RANGE = 700.0
#: Log weights of float32 that differ by less, relatively, may be equal.
_ROUNDING = 4 * torch.finfo(torch.float32).eps
#: Fewer weights than these have no shape to fit.
_FEWEST_IN_TAIL = 5


class ParetoTail:
    """k̂, the shape of the generalised Pareto distribution fitted to the largest weights.

    PSIS looks at the M = ⌊3√K⌋ largest of K draws (⌊K/5⌋ when K is small) and at the one
    below them, so no more than these are kept. ArviZ fits them; it is handed the 5 M largest
    draws, with a relative efficiency under which its own rule picks M of 5 M.

    Arguments:
        num_samples: the number K of draws that will come.
        size: the number n of data in the block.

    References:
        Pareto Smoothed Importance Sampling (Vehtari et al., 2015).
        https://arxiv.org/abs/1507.02646
    """

    def __init__(self, num_samples: int, size: int) -> None:
        small = num_samples <= 225
        self.tail = num_samples // 5 if small else math.floor(3 * math.sqrt(num_samples))
        self._kept = min(5 * self.tail, num_samples)
        self._largest = torch.empty(0, size, dtype=torch.float64)

    def update(self, log_w: Tensor) -> None:
        """Takes a chunk ``(draws, n)`` of float64 log weights."""
        merged = torch.cat([self._largest, log_w])
        self._largest = merged.topk(min(self._kept, len(merged)), dim=0, sorted=False).values

    @property
    def khat(self) -> Tensor:
        """k̂, ``(n,)``.

        NaN if there are fewer than 25 draws, too few to fit; +inf where fewer than M + 1
        weights are not zero, or not so beside the largest (in float64: 700 nats below it);
        −inf where all of the tail are equal, but for the rounding of float32: weights that
        their largest value bounds (q is the posterior, or all latents are discrete).
        """
        if self.tail < _FEWEST_IN_TAIL:
            return torch.full((self._largest.shape[1],), math.nan, dtype=torch.float64)
        # what is zero beside the largest weight has no tail to fit: ArviZ, left with one weight
        # that is not, would find a light one
        largest = self._largest.T.numpy()
        lowest = largest.max(axis=1, keepdims=True) - _RANGE
        nonzero = largest > np.nan_to_num(lowest, neginf=0.0)
        khat = np.full(len(largest), math.inf)
        for datum in np.flatnonzero(nonzero.sum(axis=1) > self.tail):
            weights = np.maximum(largest[datum], lowest[datum])
            khat[datum] = _tail_shape(np.sort(weights)[::-1], self.tail)
        return torch.from_numpy(khat)


class Block:
    """The running estimates of one block of data, of ``num_data`` in all."""

    def __init__(self, size: int, num_samples: int, ks: Sequence[int], num_data: int) -> None:
        self.mean = MeanWeight(size)
        self.tail = ParetoTail(num_samples, size)
        below = sorted({int(k) for k in ks if k < num_samples})
        self.bounds = [GroupedBound(k, num_samples, size) for k in below]
        self.tenth = GroupedBound(max(1, num_samples // 10), num_samples, size)
        self.num_data = num_data

    def update(self, log_w: Tensor, start: int) -> None:
        wrong = ~(log_w < math.inf).all(0)
        if wrong.any():
            datum = start + int(wrong.nonzero()[0])
            raise ValueError(
                f"the log weights of datum {datum} are NaN or +inf: the program's weights or its "
                f"data hold NaN, or a distribution left its range; look at its sites with "
                f"poutine.trace"
            )
        for estimate in (self.mean, self.tail, self.tenth, *self.bounds):
            estimate.update(log_w)

    def result(self) -> dict[str, Tensor]:
        mean, draws = self.mean, self.mean.count
        khat, delta = self.tail.khat, mean.variance_of_log_mean_exp
        # one weight outshines the rest where k̂ is bad. The delta method sees no spread in it;
        # tenths of the draws, whose largest weights differ, do. Theirs is stated as it is,
        # for the spread of a maximum hardly shrinks with the number of draws
        blind = ~(khat < khat_threshold(draws))
        spread = self.tenth.variance_of_mean * self.tenth.count
        spread = torch.fmax(spread, torch.zeros_like(delta))
        evidence_variance = torch.where(blind, torch.maximum(delta, spread), delta)
        gap_variance = mean.variance_of_rise
        gap_variance = torch.where(blind, torch.maximum(gap_variance, spread), gap_variance)
        columns = {
            "elbo": mean.mean,
            "elbo_variance": mean.variance_of_mean,
            "log_evidence": mean.log_mean_exp,
            "log_evidence_variance": evidence_variance,
            "gap_variance": gap_variance,
            "khat": khat,
            "ess": mean.effective_sample_size,
            f"iwae_{draws}": mean.log_mean_exp,
            f"iwae_{draws}_variance": evidence_variance,
        }
        for bound in self.bounds:
            # a spread of few groups is known badly, unless many data share in knowing it
            few = (bound.count - 1) * self.num_data < _FEWEST_DEGREES
            pooled = evidence_variance * draws / bound.k / bound.count
            columns[f"iwae_{bound.k}"] = bound.mean
            columns[f"iwae_{bound.k}_variance"] = pooled if few else bound.variance_of_mean
        return columns


def _tail_shape(log_w: np.ndarray, tail: int) -> float:
    """k̂ of log weights that descend, from the ``tail`` largest above the one below them.

    Where the draws are of few values, many may equal the one below: only what exceeds it is
    a tail then, and ArviZ, which divides by a quartile of the excess, is not shown the rest.
    """
    from arviz_stats.base.array import array_stats

    equal = _ROUNDING * max(1.0, abs(log_w[0]))
    above = log_w[:tail] - log_w[tail] > equal
    if not above[tail - int(tail / 4 + 0.5)]:
        tail = int(above.sum())
        if 0 < tail < _FEWEST_IN_TAIL:
            return math.inf
    if not tail or log_w[0] - log_w[tail - 1] <= equal:
        return -math.inf
    # ArviZ expects log-likelihoods, whose negatives are the log weights
    _, khat = array_stats.psislw(-log_w[: 5 * tail], r_eff=44 / tail)  # type: ignore[arg-type]
    return float(khat)


def _centre(values: Tensor) -> Tensor:
    """A typical value of each datum: sums of squares about it do not cancel."""
    mean = values.mean(0)
    # a weight of zero makes the mean −inf, about which nothing can be summed
    return torch.where(mean.isfinite(), mean, 0.0)


def khat_threshold(num_samples: int) -> float:
    """The k̂ above which an estimate from K draws is not to be trusted: min(1 − 1/log₁₀K, 0.7).

    References:
        Pareto Smoothed Importance Sampling (Vehtari et al., 2015), section 3.2.4.
        https://arxiv.org/abs/1507.02646
    """
    return min(1 - 1 / math.log10(num_samples), 0.7) if num_samples > 1 else -math.inf
