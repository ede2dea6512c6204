"""Importance-sampling estimates of log p(x), from log weights that arrive in chunks.

Every estimate is per datum, and keeps only running sums in float64 and the largest weights:
memory does not grow with the number of draws, but for the √K of the Pareto tail.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from .jackknife import KEPT, jackknife_estimate
from .psis import ParetoTail, khat_threshold

__all__ = [
    "Block",
    "GroupedBound",
    "MeanWeight",
    "ParetoTail",
    "inflate_variance",
    "khat_threshold",
    "refuse_nan",
]

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


class Block:
    """The running estimates of one block of data.

    Arguments:
        size: the number n of data in the block.
        num_samples: the number K of draws that will come.
        ks: the L_k to report; L_K is always among them.
        num_data: the number of data in all.
        corrected: give the smoothed and the jackknife-corrected estimate, too.
    """

    def __init__(
        self,
        size: int,
        num_samples: int,
        ks: Sequence[int],
        num_data: int,
        corrected: bool = False,
    ) -> None:
        self.corrected = corrected
        self.mean = MeanWeight(size)
        self.tail = ParetoTail(num_samples, size, keep=KEPT if corrected else 0)
        below = sorted({int(k) for k in ks if k < num_samples})
        self.bounds = [GroupedBound(k, num_samples, size) for k in below]
        self.tenth = GroupedBound(max(1, num_samples // 10), num_samples, size)
        self.num_data = num_data

    def update(self, log_w: Tensor, start: int, rows: Tensor | None = None) -> None:
        """Takes a chunk ``(draws, n)`` of float64 log weights.

        Arguments:
            log_w: the weights.
            start: the number of the first datum, for errors to name.
            rows: which of the data those numbers count, if not all.
        """
        refuse_nan(log_w, start, rows)
        for estimate in (self.mean, self.tail, self.tenth, *self.bounds):
            estimate.update(log_w)

    def result(self) -> dict[str, Tensor]:
        mean, draws = self.mean, self.mean.count
        khat, delta = self.tail.khat, mean.variance_of_log_mean_exp
        # one weight outshines the rest where k̂ is bad. The delta method sees no spread in it;
        # tenths of the draws, whose largest weights differ, do. Theirs is stated as it is,
        # for the spread of a maximum hardly shrinks with the number of draws
        spread = self.tenth.variance_of_mean * self.tenth.count
        evidence_variance = inflate_variance(delta, spread, khat, draws)
        gap_variance = inflate_variance(mean.variance_of_rise, spread, khat, draws)
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
        if self.corrected:
            for name, (value, variance) in (
                ("psis", self.tail.estimate()),
                ("jackknife", jackknife_estimate(self.tail.largest, draws)),
            ):
                columns[name] = value
                columns[f"{name}_variance"] = inflate_variance(variance, spread, khat, draws)
        return columns


def refuse_nan(log_w: Tensor, start: int, rows: Tensor | None = None) -> None:
    """Refuses weights that are no numbers, naming the datum; zero is one."""
    wrong = ~(log_w < math.inf).all(0)
    if wrong.any():
        datum = start + int(wrong.nonzero()[0])
        datum = datum if rows is None else int(rows[datum])
        raise ValueError(
            f"the log weights of datum {datum} are NaN or +inf: the program's weights or its "
            f"data hold NaN, or a distribution left its range; look at its sites with "
            f"poutine.trace"
        )


def inflate_variance(variance: Tensor, spread: Tensor, khat: Tensor, draws: int) -> Tensor:
    """A variance by the delta method, or the spread of tenths of the draws where k̂ is bad."""
    blind = ~(khat < khat_threshold(draws))
    spread = torch.fmax(spread, torch.zeros_like(variance))
    return torch.where(blind, torch.maximum(variance, spread), variance)


def _centre(values: Tensor) -> Tensor:
    """A typical value of each datum: sums of squares about it do not cancel."""
    mean = values.mean(0)
    # a weight of zero makes the mean −inf, about which nothing can be summed
    return torch.where(mean.isfinite(), mean, 0.0)
