"""Streaming importance-sampling estimates of log p(x) from chunks of log weights.

Every estimate is per example and keeps only running sums in float64 and the largest weights.
Memory grows with the number K of samples only by the √K weights of the Pareto tail.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from ..table_parts import BoundsRow, TablePart, register
from .discrete import MAX_RARE_VARIANCE
from .errors import MARK, estimate_errors, overlap_factor, tail_statistics
from .jackknife import MIN_EXACT_WEIGHTS, jackknife_estimate
from .psis import ParetoTail, khat_threshold

__all__ = [
    "GroupedBound",
    "ParetoTail",
    "StreamingEstimates",
    "WeightMoments",
    "check_log_weights",
    "khat_threshold",
]

register(
    TablePart(
        order=10,
        rows=(
            BoundsRow("psis", "log p̂ PSIS", "estimate"),
            BoundsRow("jackknife", "log p̂ JVI", "estimate"),
        ),
    )
)


class WeightMoments:
    """Running ELBO, log p̂ and effective sample size of a block of examples.

    These are moments of values v and of e^v, without overflow or cancellation. The variances are
    NaN (0 / 0) for a single value.

    Arguments:
        size: the number n of examples in the block.
    """

    def __init__(self, size: int) -> None:
        self.count = 0
        self._centre: Tensor | None = None
        self._sum, self._squares, self._exp, self._exp_squares, self._exp_times = torch.zeros(
            5, size, dtype=torch.float64
        )
        self._max = torch.full((size,), -math.inf, dtype=torch.float64)

    def update(self, values: Tensor) -> None:
        """Add a chunk ``(draws, n)`` of float64 log weights."""
        if self._centre is None:
            # sums of squares about the mean do not cancel; a weight of zero makes it −inf
            self._centre = values.mean(0).nan_to_num(nan=0.0, posinf=0.0, neginf=0.0)
        self.count += len(values)
        deviation = values - self._centre
        self._sum += deviation.sum(0)
        self._squares += deviation.square().sum(0)
        # sums of e^(v − max), rescaled when the maximum increases
        largest = torch.maximum(self._max, values.amax(0))
        finite = torch.where(largest.isfinite(), largest, 0.0)
        shrink = (self._max - finite).exp()
        weights = (values - finite).exp()
        self._exp = self._exp * shrink + weights.sum(0)
        self._exp_squares = self._exp_squares * shrink**2 + weights.square().sum(0)
        # a weight of zero contributes 0, although its logarithm is −inf
        products = torch.where(weights > 0, weights * deviation, 0.0)
        self._exp_times = self._exp_times * shrink + products.sum(0)
        self._max = largest

    @property
    def mean(self) -> Tensor:
        """The mean of v, ``(n,)``."""
        assert self._centre is not None
        return self._centre + self._sum / self.count

    @property
    def variance_of_mean(self) -> Tensor:
        """The variance of :attr:`mean`, ``(n,)``."""
        spread = self._squares - self._sum.square() / self.count
        return spread.clamp(min=0) / (self.count - 1) / self.count

    @property
    def log_mean_exp(self) -> Tensor:
        """The logarithm of the mean of e^v, ``(n,)``."""
        return self._max + (self._exp / self.count).log()

    @property
    def variance_of_log_mean_exp(self) -> Tensor:
        """The delta-method variance of :attr:`log_mean_exp`, ``(n,)``."""
        return (self._relative_square - 1).clamp(min=0) / (self.count - 1)

    @property
    def variance_of_gap(self) -> Tensor:
        """The delta-method variance of log mean e^v − mean v, ``(n,)``.

        Both terms use the same values, so it is the variance of the mean of e^v / mean e^v − v.
        """
        covariance = self._exp_times / self._exp - self._sum / self.count
        single = self.variance_of_mean * self.count
        relative = self._relative_square - 1 - 2 * covariance
        return (relative / (self.count - 1) + single / self.count).clamp(min=0)

    @property
    def _relative_square(self) -> Tensor:
        """The mean of e^2v over the square of the mean of e^v."""
        return self._exp_squares * self.count / self._exp.square()

    @property
    def effective_sample_size(self) -> Tensor:
        """Kish's effective sample size (Σw)²/Σw², ``(n,)``, between 1 and the sample size."""
        return self._exp.square() / self._exp_squares


class GroupedBound(WeightMoments):
    """Estimate L_k from K ≥ k samples: the mean of log mean w over disjoint groups of k.

    Each group is an unbiased estimate of L_k, and all samples are used. If k does not divide K,
    the last group is completed with the first samples.

    Arguments:
        k: the size of a group.
        num_samples: the total number K of samples.
        size: the number n of examples in the block.

    References:
        Importance Weighted Autoencoders (Burda et al., 2015), equation 8.
        https://arxiv.org/abs/1509.00519
    """

    def __init__(self, k: int, num_samples: int, size: int) -> None:
        super().__init__(size)
        self.k, self.num_samples = k, num_samples
        self._remaining = num_samples
        self._missing = -num_samples % k
        self._first = torch.empty(0, size, dtype=torch.float64)
        self._partial = torch.full((size,), -math.inf, dtype=torch.float64)
        self._filled = 0

    def update(self, log_w: Tensor) -> None:
        """Add a chunk of log weights; groups may span chunks."""
        first = log_w[: self._missing - len(self._first)]
        self._first = torch.cat([self._first, first])
        self._remaining -= len(log_w)
        self._add_to_groups(log_w)
        if not self._remaining and self._missing:
            self._add_to_groups(self._first)

    @property
    def variance_of_mean(self) -> Tensor:
        """The variance of :attr:`mean`, ``(n,)``, with that of the overlap of two groups."""
        factor = float(overlap_factor(torch.tensor(float(self.num_samples)), self.k))
        # the spread between groups that share samples is too small
        shrink = 1 - (factor - 1) / max(self.count - 1, 1)
        return super().variance_of_mean * factor / shrink

    def _add_to_groups(self, log_w: Tensor) -> None:
        if self._filled:
            missing = self.k - self._filled
            self._extend_partial(log_w[:missing])
            log_w = log_w[missing:]
        complete = len(log_w) // self.k * self.k
        if complete:
            groups = log_w[:complete].unflatten(0, (-1, self.k))
            super().update(groups.logsumexp(1) - math.log(self.k))
        if len(log_w) > complete:
            self._extend_partial(log_w[complete:])

    def _extend_partial(self, log_w: Tensor) -> None:
        self._partial = torch.logaddexp(self._partial, log_w.logsumexp(0))
        self._filled += len(log_w)
        if self._filled == self.k:
            super().update(self._partial[None] - math.log(self.k))
            self._partial = torch.full_like(self._partial, -math.inf)
            self._filled = 0


class StreamingEstimates:
    """Running estimates of log p(x) for a block of examples.

    Arguments:
        size: the number n of examples in the block.
        num_samples: the total number K of samples.
        ks: the L_k to report; L_K is always included.
        corrected: add the smoothed and the jackknife-corrected estimate.
    """

    def __init__(
        self, size: int, num_samples: int, ks: Sequence[int], corrected: bool = False
    ) -> None:
        self.corrected = corrected
        self.moments = WeightMoments(size)
        self.tail = ParetoTail(num_samples, size, keep=MIN_EXACT_WEIGHTS if corrected else 0)
        below = sorted({int(k) for k in ks if k < num_samples})
        self.bounds = [GroupedBound(k, num_samples, size) for k in below]
        self.tenths = GroupedBound(max(1, num_samples // 10), num_samples, size)

    def update(self, log_w: Tensor, start: int, rows: Tensor | None = None) -> None:
        """Add a chunk ``(draws, n)`` of float64 log weights.

        For error messages, ``start`` is the index of the first example, and ``rows`` are the
        indices in the data set of the examples that ``start`` counts, if not all.
        """
        check_log_weights(log_w, start, rows)
        for estimate in (self.moments, self.tail, self.tenths, *self.bounds):
            estimate.update(log_w)

    def result(
        self,
        rare: tuple[Tensor, Tensor] | None = None,
        is_discrete: bool = False,
        pooled: bool = False,
    ) -> dict[str, Tensor]:
        """Return the estimates, their variances and diagnostics by column, ``(n,)`` each.

        Arguments:
            rare: result of :meth:`~.discrete.DiscreteLatents.rare_variance`, if the values of
                discrete latents can be enumerated. Where the rare values matter, k̂ is inf.
            is_discrete: whether some latents are discrete. If their values cannot be enumerated,
                k̂ is NaN where all large weights are equal: it is unknown whether other values
                have larger ones.
            pooled: return the columns that :func:`~.errors.estimate_errors` needs, for errors that
                use the tails of other examples. By default each error uses one example.
        """
        moments, draws = self.moments, self.moments.count
        khat = self.tail.khat
        # where k̂ is bad, one weight dominates and the delta method understates the variance.
        # The variance between tenths of the samples does not, as their largest weights differ.
        # It is not divided by 10: the spread of a maximum hardly shrinks with the sample size
        spread = self.tenths.variance_of_mean * self.tenths.count
        rare_variance = torch.zeros_like(khat)
        if rare is not None:
            matters = rare[0] > MAX_RARE_VARIANCE
            khat = torch.where(matters, math.inf, khat)
            spread = torch.fmax(spread, rare[1])
            rare_variance = torch.where(matters, 0.0, rare[0])
        elif is_discrete:
            khat = torch.where(khat == -math.inf, math.nan, khat)
        columns = {
            "elbo": moments.mean,
            "elbo_variance": moments.variance_of_mean,
            "log_evidence": moments.log_mean_exp,
            "khat": khat,
            "ess": moments.effective_sample_size,
            **({} if rare is None else {"rare_variance": rare[0]}),
            **tail_statistics(
                "log_evidence",
                self.tail,
                moments.log_mean_exp,
                moments.variance_of_log_mean_exp,
                self.tenths.mean,
                spread,
            ),
            f"log_evidence{MARK}rare": rare_variance,
            f"log_evidence{MARK}gap": moments.variance_of_gap,
        }
        for bound in self.bounds:
            columns[f"iwae_{bound.k}"] = bound.mean
            columns[f"iwae_{bound.k}_variance"] = bound.variance_of_mean
        columns[f"iwae_{draws}"] = moments.log_mean_exp
        columns[f"iwae_{draws}_variance"] = moments.variance_of_log_mean_exp
        if self.corrected:
            columns["psis"], _ = self.tail.estimate()
            columns["jackknife"], _ = jackknife_estimate(self.tail.largest, draws)
        return columns if pooled else estimate_errors(columns, pool=False)


def check_log_weights(log_w: Tensor, start: int, rows: Tensor | None = None) -> None:
    """Raise for weights that are NaN or +inf, with the index of the example; −inf is allowed."""
    wrong = ~(log_w < math.inf).all(0)
    if wrong.any():
        index = start + int(wrong.nonzero()[0])
        index = index if rows is None else int(rows[index])
        raise ValueError(
            f"expected finite log weights; got NaN or +inf for example {index}: check the "
            f"parameters and the data for NaN, and the sites of the program with poutine.trace"
        )
