"""Importance-sampling estimates of log p(x), from log weights that arrive in chunks.

Every estimate is per datum, and keeps only running sums in float64 and the largest weights:
memory does not grow with the number of draws, but for the √K of the Pareto tail.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor

__all__ = ["GroupedBound", "MeanWeight", "ParetoTail", "khat_threshold"]


class MeanWeight:
    """ELBO, log p̂ and effective sample size from all draws of a block of data.

    Arguments:
        size: the number n of data in the block.
    """

    def __init__(self, size: int) -> None:
        self.draws = 0
        self._sum = torch.zeros(size, dtype=torch.float64)
        self._sum_of_squares = torch.zeros(size, dtype=torch.float64)
        self._centre: Tensor | None = None
        self._log_sum = torch.full((size,), -math.inf, dtype=torch.float64)
        self._log_sum_of_squares = torch.full((size,), -math.inf, dtype=torch.float64)

    def update(self, log_w: Tensor) -> None:
        """Takes a chunk ``(draws, n)`` of float64 log weights."""
        if self._centre is None:
            self._centre = _centre(log_w)
        self.draws += len(log_w)
        deviation = log_w - self._centre
        self._sum += deviation.sum(0)
        self._sum_of_squares += deviation.square().sum(0)
        self._log_sum = torch.logaddexp(self._log_sum, log_w.logsumexp(0))
        self._log_sum_of_squares = torch.logaddexp(
            self._log_sum_of_squares, (2 * log_w).logsumexp(0)
        )

    @property
    def elbo(self) -> Tensor:
        """The mean log weight, ``(n,)``."""
        assert self._centre is not None
        return self._centre + self._sum / self.draws

    @property
    def elbo_variance(self) -> Tensor:
        """The Monte Carlo variance of :attr:`elbo`, ``(n,)``; NaN for a single draw."""
        if self.draws < 2:
            return torch.full_like(self._sum, math.nan)
        spread = self._sum_of_squares - self._sum.square() / self.draws
        return spread.clamp(min=0) / (self.draws - 1) / self.draws

    @property
    def log_evidence(self) -> Tensor:
        """log p̂, the log of the mean weight, ``(n,)``: L_K with every draw in one group."""
        return self._log_sum - math.log(self.draws)

    @property
    def log_evidence_variance(self) -> Tensor:
        """The Monte Carlo variance of log p̂ by the delta method: Σw²/(Σw)² − 1/K, ``(n,)``.

        NaN for a single draw, which says nothing about its own spread.
        """
        if self.draws < 2:
            return torch.full_like(self._sum, math.nan)
        relative = (self._log_sum_of_squares - 2 * self._log_sum).exp()
        return (relative - 1 / self.draws).clamp(min=0) * self.draws / (self.draws - 1)

    @property
    def effective_sample_size(self) -> Tensor:
        """Kish's (Σw)²/Σw², ``(n,)``, between 1 and the number of draws."""
        return (2 * self._log_sum - self._log_sum_of_squares).exp()


class GroupedBound:
    """L_k from K ≥ k draws: the mean, over ⌊K/k⌋ disjoint groups of k, of log mean w.

    Each group is one unbiased draw of L_k, so all draws are used (but for K mod k of them),
    where the first k alone would leave the noise of a single group.

    Arguments:
        k: the size of a group.
        size: the number n of data in the block.

    References:
        Importance Weighted Autoencoders (Burda et al., 2015), equation 8.
        https://arxiv.org/abs/1509.00519
    """

    def __init__(self, k: int, size: int) -> None:
        self.k = k
        self.groups = 0
        self._sum = torch.zeros(size, dtype=torch.float64)
        self._sum_of_squares = torch.zeros(size, dtype=torch.float64)
        self._centre: Tensor | None = None
        self._open = torch.full((size,), -math.inf, dtype=torch.float64)
        self._filled = 0

    def update(self, log_w: Tensor) -> None:
        """Takes a chunk ``(draws, n)`` of float64 log weights; groups may span chunks."""
        if self._filled:
            head, log_w = log_w[: self.k - self._filled], log_w[self.k - self._filled :]
            self._extend(head)
        whole = len(log_w) // self.k * self.k
        if whole:
            self._close(log_w[:whole].unflatten(0, (-1, self.k)).logsumexp(1))
        if len(log_w) > whole:
            self._extend(log_w[whole:])

    def _extend(self, log_w: Tensor) -> None:
        self._open = torch.logaddexp(self._open, log_w.logsumexp(0))
        self._filled += len(log_w)
        if self._filled == self.k:
            self._close(self._open[None])
            self._open = torch.full_like(self._open, -math.inf)
            self._filled = 0

    def _close(self, log_sums: Tensor) -> None:
        values = log_sums - math.log(self.k)
        if self._centre is None:
            self._centre = _centre(values)
        self.groups += len(values)
        self._sum += (values - self._centre).sum(0)
        self._sum_of_squares += (values - self._centre).square().sum(0)

    @property
    def value(self) -> Tensor:
        """L_k, ``(n,)``."""
        assert self._centre is not None
        return self._centre + self._sum / self.groups

    @property
    def variance(self) -> Tensor:
        """The Monte Carlo variance of :attr:`value`, ``(n,)``; NaN for a single group."""
        if self.groups < 2:
            return torch.full_like(self._sum, math.nan)
        spread = self._sum_of_squares - self._sum.square() / self.groups
        return spread.clamp(min=0) / (self.groups - 1) / self.groups


class ParetoTail:
    """k̂, the shape of the generalised Pareto distribution fitted to the largest weights.

    PSIS looks at the M = ⌊3√K⌋ largest of K draws (⌊K/5⌋ when K is small) and at the one
    below them, so no more than these are kept. ArviZ fits them; it is handed the 5 M largest
    draws with the relative efficiency under which its own rule picks M of 5 M.

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
        """k̂, ``(n,)``: +inf where too few or too equal draws leave no tail to fit.

        Equal weights (q is the posterior) have no tail at all and give −inf.
        """
        from arviz_stats.base.array import array_stats

        # a weight of zero has no logarithm to fit; among the M largest, it leaves no tail
        largest = self._largest.T.numpy()
        nonzero = np.isfinite(largest)
        khat = np.full(len(largest), math.inf)
        if self.tail < 5:
            return torch.from_numpy(khat)
        for datum in np.flatnonzero(nonzero.sum(axis=1) > self.tail):
            weights = largest[datum]
            weights = np.where(nonzero[datum], weights, weights[nonzero[datum]].min())
            if np.ptp(weights) < 1e-10:
                khat[datum] = -math.inf
            else:
                # ArviZ expects log-likelihoods, whose negatives are the log weights
                _, khat[datum] = array_stats.psislw(-weights, r_eff=45 / self.tail)  # type: ignore[arg-type]
        return torch.from_numpy(khat)


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
