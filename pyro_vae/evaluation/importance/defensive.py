"""Importance sampling from a mixture of q and the prior, robust to a poor guide."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ...programs.checks import check_has_latents
from ...programs.importance_weights import Chunk
from ...programs.particles import ParticleBatch, guide_scorer, total_log_prob
from ..bounds import Bounds
from ..estimates import median_and_worst
from ..estimators import SamplingOption, SamplingSettings
from ..table_parts import BoundsRow, TablePart, register
from .errors import MARK, tail_statistics
from .psis import ParetoTail, khat_thresholds
from .streaming import WeightMoments, check_log_weights

__all__ = ["Defensive", "DefensiveMixture", "count_prior_samples"]

#: Number of groups of samples, whose spread estimates the variance where k̂ is bad.
_GROUPS = 10


@dataclass(frozen=True)
class Defensive(SamplingOption):
    """Lower bound with samples from a mixture of q and the prior: the row ``defensive``.

    It suits few latents and a q that is too narrow. The samples from the prior are in addition to
    those from q. Their stream is separate, so the other rows do not change.

    Attributes:
        share: the prior's share of the samples, between 0 and 1.

    Raises:
        ValueError: if the share is out of range.

    References:
        Weighted Average Importance Sampling and Defensive Mixture Distributions (Hesterberg,
        1995). https://doi.org/10.2307/1269620
    """

    share: float = 0.1

    def __post_init__(self) -> None:
        if not 0 < self.share < 1:
            raise ValueError(
                f"expected share, the prior's share of the samples, between 0 and 1; got "
                f"{self.share}"
            )

    def configure(self, settings: SamplingSettings) -> SamplingSettings:
        if settings.precision != "float32":
            raise ValueError(
                f"expected precision float32 with Defensive; got {settings.precision}, but the "
                f"samples from the prior are weighted in float32: drop one of the two"
            )
        return replace(settings, defensive=self.share)


def count_prior_samples(share: float, num_samples: int) -> int:
    """Return the number of prior samples, at least one, for a share of all and K from q."""
    return max(1, round(share / (1 - share) * num_samples))


class DefensiveMixture:
    """Estimate log p(x) of a block of examples with samples from q and from the prior.

    With a share α of all samples from the prior, every sample, from either, has the weight

        w = p(x, z) / ((1 − α) q(z|x) + α p(z)) ≤ p(x|z) / α:

    the mean of all weights is p(x) in expectation, and w is bounded if p(x|z) is, however narrow
    q is. Where q is good, the weights are at most 1/(1 − α) of those of q alone, so little
    efficiency is lost.

    Arguments:
        size: the number n of examples in the block.
        num_samples: the total number of samples from q.
        num_prior: the total number of samples from the prior.

    References:
        Weighted Average Importance Sampling and Defensive Mixture Distributions (Hesterberg,
        1995), section 2. https://doi.org/10.2307/1269620
        Optimally Combining Sampling Techniques for Monte Carlo Rendering (Veach and Guibas,
        1995), the balance heuristic. https://doi.org/10.1145/218380.218498
    """

    def __init__(self, size: int, num_samples: int, num_prior: int) -> None:
        self.counts = (num_samples, num_prior)
        self.total = num_samples + num_prior
        self.log_shares = [math.log(count / self.total) for count in self.counts]
        groups = min(_GROUPS, *self.counts)
        self.strata = [_Stratum(size, count, groups) for count in self.counts]
        self.tail, self.all = ParetoTail(self.total, size), WeightMoments(size)

    def update(self, chunk: Chunk, rows: Tensor | None = None) -> None:
        """Add samples from q.

        Raises:
            ValueError: if the guide has sites that the model does not have.
        """
        particles = chunk.particles
        check_has_latents(particles.latents, "a defensive mixture")
        auxiliary = sorted(particles.latents.keys() - particles.log_p.keys())
        if auxiliary:
            raise ValueError(
                f"expected a guide without auxiliary sites, since a defensive mixture samples all "
                f"sites from their prior; got {', '.join(map(repr, auxiliary))}: drop Defensive"
            )
        prior = {name: particles.log_p[name] for name in particles.latents}
        log_p, log_prior = total_log_prob(particles.log_p), total_log_prob(prior)
        log_q = total_log_prob(particles.log_q)
        self.add(0, log_p, log_prior, log_q, chunk.data.start, rows)

    @torch.no_grad()
    def update_from_prior(self, chunk: Chunk, rows: Tensor | None = None) -> None:
        """Draw and add all samples from the prior, in chunks of the same size as those of q.

        Raises:
            ValueError: if the guide has no density at samples that are not its own (a flow
                without an inverse).
        """
        size = chunk.draws.stop - chunk.draws.start
        model, guide, x, args, kwargs = chunk.inputs
        log_q = guide_scorer(guide, x, *args, layout=chunk.layout, **kwargs)
        for first in range(0, self.counts[1], size):
            count = min(size, self.counts[1] - first)
            batch = ParticleBatch(count, chunk.layout, (x, *args), kwargs)
            sites = batch.trace(model)
            terms, latents = batch.log_probs(sites), batch.latents(sites)
            log_p = total_log_prob(terms)
            log_prior = total_log_prob({name: terms[name] for name in latents})
            self.add(1, log_p, log_prior, log_q(latents), chunk.data.start, rows)

    def add(
        self,
        stratum: int,
        log_joint: Tensor,
        log_prior: Tensor,
        log_q: Tensor,
        start: int = 0,
        rows: Tensor | None = None,
    ) -> None:
        """Add log p(x, z), log p(z) and log q(z|x) of samples z, ``(draws, n)`` each.

        Stratum 0 is q, 1 the prior; ``start`` and ``rows`` are as in
        :meth:`StreamingEstimates.update`.
        """
        log_joint, log_prior, log_q = (v.double().cpu() for v in (log_joint, log_prior, log_q))
        guide, prior = self.log_shares
        log_w = log_joint - torch.logaddexp(guide + log_q, prior + log_prior)
        check_log_weights(log_w, start, rows)
        self.strata[stratum].update(log_w)
        self.tail.update(log_w)
        self.all.update(log_w)

    def result(self) -> dict[str, Tensor]:
        """Return the columns of ``defensive`` for :func:`~.errors.estimate_errors`, ``(n,)`` each.

        The numbers of samples from q and from the prior are fixed, so the variance is that of a
        stratified mean.
        """
        values, variances, groups = zip(*(s.result() for s in self.strata), strict=True)
        parts = [share + value for share, value in zip(self.log_shares, values, strict=True)]
        value = torch.logaddexp(*parts)
        delta = torch.zeros_like(value)
        for part, variance in zip(parts, variances, strict=True):
            shares = (part - value).exp()
            # a stratum whose weights are all zero adds nothing
            delta = delta + torch.where(shares > 0, shares.square() * variance, 0.0)
        spread = torch.logaddexp(*(s + g for s, g in zip(self.log_shares, groups, strict=True)))
        part = spread.mean(0)
        spread = spread.var(0) if len(spread) > 1 else torch.full_like(value, math.nan)
        total = self.all.variance_of_log_mean_exp
        statistics = tail_statistics("defensive", self.tail, value, total, part, spread)
        return {
            "defensive": value,
            "defensive_khat": self.tail.khat,
            **statistics,
            f"defensive{MARK}stratified": delta,
        }


class _Stratum:
    """Running estimates from all samples of one of the two proposals, and from groups of them."""

    def __init__(self, size: int, count: int, groups: int) -> None:
        self.mean = WeightMoments(size)
        self._ends = [count * (group + 1) // groups for group in range(groups)]
        self._sums = torch.full((groups, size), -math.inf, dtype=torch.float64)

    def update(self, log_w: Tensor) -> None:
        first = self.mean.count
        self.mean.update(log_w)
        start = 0
        for group, end in enumerate(self._ends):
            part = log_w[max(start - first, 0) : max(end - first, 0)]
            if len(part):
                self._sums[group] = torch.logaddexp(self._sums[group], part.logsumexp(0))
            start = end

    def result(self) -> tuple[Tensor, Tensor, Tensor]:
        """Return log mean w and its variance, ``(n,)``, and that of each group, ``(groups, n)``."""
        sizes = torch.tensor(self._ends, dtype=torch.float64).diff(prepend=torch.zeros(1))
        groups = self._sums - sizes.log()[:, None]
        return self.mean.log_mean_exp, self.mean.variance_of_log_mean_exp, groups


def _describe(bounds: Bounds) -> str | None:
    if "defensive_khat" not in bounds.per_datum:
        return None
    share, khat = bounds.settings["defensive"], bounds.per_datum["defensive_khat"]
    counts = bounds.guide_sample_counts
    counts = counts + np.array([count_prior_samples(share, int(n)) for n in counts])
    above = int((~(khat < khat_thresholds(counts))).sum())
    return (
        f"defensive mixture with {share:.1%} of samples from the prior: k̂ median "
        f"{np.median(khat):.2f}, worst {khat.max():.2f}, above its threshold for {above} of "
        f"{len(bounds)} examples"
    )


def _summarize(bounds: Bounds) -> dict[str, Any]:
    khat = bounds.per_datum.get("defensive_khat")
    return {} if khat is None else {"defensive_khat": median_and_worst(khat)}


register(
    TablePart(
        order=30,
        rows=(BoundsRow("defensive", "log p̂ defensive", "lower bound"),),
        describe=_describe,
        summarize=_summarize,
    )
)
