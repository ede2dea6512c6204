"""Proposal distributions for the latents of partially observed examples, and their weights."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from ..programs.particles import UnscorableError
from .decoding import Decoded
from .fitted_proposals import FittedProposal
from .runner import PartialObservation, Runner, merge_completions

__all__ = [
    "ProposalCounts",
    "WeightedSamples",
    "init_completions",
    "propose",
    "update_completions",
]


@dataclass(frozen=True)
class WeightedSamples:
    """K samples of the latents for each of N examples.

    Attributes:
        latents: by site, ``(K, N, *rest)``.
        decoded: the model at these latents.
        log_weights: log p(z, x_obs) − log q(z), ``(K, N)``.
    """

    latents: dict[str, Tensor]
    decoded: Decoded
    log_weights: Tensor

    def resample(self, count: int) -> dict[str, Tensor]:
        """Resample ``count`` latents for each example by weight, with replacement."""
        weights = self.log_weights.double().softmax(0)
        chosen = torch.multinomial(weights.T, count, replacement=True).T
        examples = torch.arange(chosen.shape[1], device=chosen.device)
        return {name: value[chosen, examples] for name, value in self.latents.items()}


class ProposalCounts(NamedTuple):
    """Number of samples of the guide at each completion, of each fitted component, of the prior."""

    guide: int
    fitted: int
    prior: int


def propose(
    observation: PartialObservation,
    completions: Tensor,
    counts: ProposalCounts,
    fitted: FittedProposal | None = None,
) -> WeightedSamples:
    """Sample from a mixture of the guide at each completion, a fitted proposal and the prior.

    There are M completions of N examples, ``(M, N, *event)``. The samples of all parts are in
    random order, so that any subset represents the mixture.
    """
    runner, num_completions = observation.runner, len(completions)
    copies = runner.with_copies(completions)
    parts: list[tuple[dict[str, Tensor], Callable[[dict[str, Tensor], Decoded], Tensor]]] = []
    can_score = _can_score_any_value(copies)
    if can_score or fitted is None:
        samples, own_log_q = copies.sample_guide(counts.guide)
        latents = {n: merge_completions(value, num_completions) for n, value in samples.items()}
        if not can_score:
            return _weigh(observation, latents, merge_completions(own_log_q, num_completions))
        parts.append((latents, lambda z, _: _guide_mixture_log_prob(copies, z, num_completions)))
    if fitted is not None:
        parts.append((fitted.sample(counts.fitted), lambda z, _: fitted.log_prob(z)))
    if counts.prior:
        parts.append((runner.sample_prior(counts.prior), lambda _, decoded: decoded.log_latents))
    latents = {name: torch.cat([part[name] for part, _ in parts]) for name in parts[0][0]}
    total = len(next(iter(latents.values())))
    order = torch.randperm(total, device=observation.x.device)
    latents = {name: value[order] for name, value in latents.items()}
    decoded = runner.decode(latents)
    log_q = [
        log_density(latents, decoded) + math.log(len(next(iter(part.values()))) / total)
        for part, log_density in parts
    ]
    log_weights = observation.log_joint(decoded) - torch.stack(log_q).logsumexp(0)
    return WeightedSamples(latents, decoded, log_weights)


def init_completions(observation: PartialObservation, count: int, num_candidates: int) -> Tensor:
    """Complete each example from the model alone.

    Each completion is chosen from ``num_candidates`` prior samples by their likelihood of the
    observed pixels.

    Returns:
        Independent completions, ``(count, N, *event)``.
    """
    copies = observation.with_completions(observation.x.expand(count, *observation.x.shape))
    latents = copies.runner.sample_prior(num_candidates)
    decoded = copies.runner.decode(latents)
    weighted = WeightedSamples(latents, decoded, copies.log_prob(decoded))
    return _sample_completions(copies, weighted, count)


def update_completions(
    observation: PartialObservation, completions: Tensor, num_candidates: int
) -> Tensor:
    """Resample the missing pixels of each of M completions from the guide at that completion.

    Each completion is chosen by weight from ``num_candidates`` samples. The M completions are
    updated independently, so they do not all descend from a single one with a large weight. The
    weights of the final mixture account for their probabilities.
    """
    copies = observation.with_completions(completions)
    weighted = _weigh(copies, *copies.runner.sample_guide(num_candidates))
    return _sample_completions(copies, weighted, len(completions))


def _weigh(
    observation: PartialObservation, latents: dict[str, Tensor], log_q: Tensor
) -> WeightedSamples:
    decoded = observation.runner.decode(latents)
    return WeightedSamples(latents, decoded, observation.log_joint(decoded) - log_q)


def _sample_completions(
    copies: PartialObservation, weighted: WeightedSamples, count: int
) -> Tensor:
    decoded = copies.runner.decode(weighted.resample(1))
    return copies.sample(decoded)[0].unflatten(0, (count, -1))


def _guide_mixture_log_prob(
    copies: Runner, latents: dict[str, Tensor], num_completions: int
) -> Tensor:
    """Return log 1/M Σ_m q(z | completion m), ``(K, N)``."""
    repeated = {n: torch.cat([value] * num_completions, 1) for n, value in latents.items()}
    log_q = copies.guide_log_prob(repeated)
    return log_q.unflatten(1, (num_completions, -1)).logsumexp(1) - math.log(num_completions)


def _can_score_any_value(copies: Runner) -> bool:
    """Return whether the guide can score latents that it did not sample."""
    latents, _ = copies.sample_guide(1)
    try:
        copies.guide_log_prob({name: value.clone() for name, value in latents.items()})
    except UnscorableError:
        return False
    return True
