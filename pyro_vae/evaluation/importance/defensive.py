"""Importance sampling from a mixture of q and the prior, which no guide can spoil."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from ...programs.base import empty_program
from ...programs.importance_weights import Chunk, run_particles
from ...programs.particles import guide_scorer
from .psis import ParetoTail
from .streaming import MeanWeight, inflate_variance, refuse_nan

__all__ = ["DefensiveMixture", "draws_of_prior"]

#: Into how many groups the draws are divided, to see how much an estimate from each varies.
_GROUPS = 10


def draws_of_prior(share: float, num_samples: int) -> int:
    """How many draws of the prior are this share of all, beside so many of q; at least one."""
    return max(1, round(share / (1 - share) * num_samples))


class DefensiveMixture:
    """log p̂ of a block of data by draws of q and of the prior, weighted as one mixture.

    With a share α of all draws from the prior, every draw, wherever it came from, has the weight

        w = p(x, z) / ((1 − α) q(z|x) + α p(z)) ≤ p(x|z) / α:

    the mean of all is p(x) in expectation, and w is bounded where p(x|z) is, however narrow q.
    Where q is good the ratio is at most 1/(1 − α) of what it was, so that little is lost.

    Arguments:
        size: the number n of data in the block.
        num_samples: the number of draws of q that will come.
        num_prior: the number of draws of the prior that will come.

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
        self.tail = ParetoTail(self.total, size)

    def update(self, chunk: Chunk, rows: Tensor | None = None) -> None:
        """Takes draws of q.

        Raises:
            ValueError: if the guide draws what the model does not.
        """
        particles = chunk.particles
        auxiliary = sorted(particles.latents.keys() - particles.log_p.keys())
        if auxiliary:
            raise ValueError(
                f"expected for a defensive mixture a guide without auxiliary sites, which have no "
                f"prior to draw from; got {', '.join(map(repr, auxiliary))}: leave defensive out"
            )
        log_q = _sum(particles.log_q)
        prior = {name: particles.log_p[name] for name in particles.latents}
        self.add(0, _sum(particles.log_p), _sum(prior), log_q, chunk.data.start, rows)

    @torch.no_grad()
    def update_from_prior(
        self,
        chunk: Chunk,
        model: Callable[..., Any],
        guide: Callable[..., Any],
        rows: Tensor | None = None,
    ) -> None:
        """Draws from the prior all that is wanted, as many at once as the chunk had of q.

        Arguments:
            chunk: one of this block's.
            model, guide: the program.
            rows: which of the data are meant, if not all.

        Raises:
            ValueError: if the guide has no density at a draw that is not its own (a flow
                without an inverse).
        """
        size = chunk.draws.stop - chunk.draws.start
        log_q = guide_scorer(guide, *chunk.args, layout=chunk.layout, **chunk.kwargs)
        for first in range(0, self.counts[1], size):
            count = min(size, self.counts[1] - first)
            drawn = run_particles(
                empty_program,
                model,
                *chunk.args,
                num_samples=count,
                layout=chunk.layout,
                **chunk.kwargs,
            )
            # run by itself the model is what a guide would be: its terms are called log_q
            terms = drawn.log_q
            prior = {name: terms[name] for name in drawn.latents}
            q = log_q(drawn.latents)
            self.add(1, _sum(terms), _sum(prior), q, chunk.data.start, rows)

    def add(
        self,
        stratum: int,
        log_joint: Tensor,
        log_prior: Tensor,
        log_q: Tensor,
        start: int = 0,
        rows: Tensor | None = None,
    ) -> None:
        """Takes log p(x, z), log p(z) and log q(z|x) of draws z, ``(draws, n)`` each.

        Arguments:
            stratum: 0 if q drew them, 1 if the prior did.
            log_joint, log_prior, log_q: the densities.
            start, rows: see :meth:`Block.update`.
        """
        log_joint, log_prior, log_q = (v.double().cpu() for v in (log_joint, log_prior, log_q))
        guide, prior = self.log_shares
        log_w = log_joint - torch.logaddexp(guide + log_q, prior + log_prior)
        refuse_nan(log_w, start, rows)
        self.strata[stratum].update(log_w)
        self.tail.update(log_w)

    def result(self) -> dict[str, Tensor]:
        """``defensive``, its variance and its k̂, ``(n,)`` each.

        The numbers of draws from either are fixed, so that the variance is that of a stratified
        mean. It is stated as for log p̂ where k̂ is bad.
        """
        values, variances, groups = zip(*(s.result() for s in self.strata), strict=True)
        parts = [share + value for share, value in zip(self.log_shares, values, strict=True)]
        value = torch.logaddexp(*parts)
        delta = torch.zeros_like(value)
        for part, variance in zip(parts, variances, strict=True):
            shares = (part - value).exp()
            # of draws that all have a weight of zero nothing is added
            delta = delta + torch.where(shares > 0, shares.square() * variance, 0.0)
        spread = torch.logaddexp(*(s + g for s, g in zip(self.log_shares, groups, strict=True)))
        spread = spread.var(0) if len(spread) > 1 else torch.full_like(value, math.nan)
        khat = self.tail.khat
        return {
            "defensive": value,
            "defensive_variance": inflate_variance(delta, spread, khat, self.total),
            "defensive_khat": khat,
        }


class _Stratum:
    """The draws that came from one of the two.

    Arguments:
        size: the number n of data.
        count: the number of draws that will come.
        groups: into how many they are divided.
    """

    def __init__(self, size: int, count: int, groups: int) -> None:
        self.mean = MeanWeight(size)
        self._ends = [count * (group + 1) // groups for group in range(groups)]
        self._sums = torch.full((groups, size), -math.inf, dtype=torch.float64)

    def update(self, log_w: Tensor) -> None:
        """Takes a chunk ``(draws, n)`` of float64 log weights."""
        first = self.mean.count
        self.mean.update(log_w)
        start = 0
        for group, end in enumerate(self._ends):
            part = log_w[max(start - first, 0) : max(end - first, 0)]
            if len(part):
                self._sums[group] = torch.logaddexp(self._sums[group], part.logsumexp(0))
            start = end

    def result(self) -> tuple[Tensor, Tensor, Tensor]:
        """log mean w and its variance, ``(n,)``, and log mean w of each group, ``(groups, n)``."""
        sizes = torch.tensor(self._ends, dtype=torch.float64).diff(prepend=torch.zeros(1))
        groups = self._sums - sizes.log()[:, None]
        return self.mean.log_mean_exp, self.mean.variance_of_log_mean_exp, groups


def _sum(terms: Mapping[str, Tensor]) -> Tensor:
    return torch.stack(tuple(terms.values())).sum(0)
