"""Proposal distributions for the latents of partially observed examples, and their weights."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any, Protocol

import torch
from torch import Tensor

from ..programs.particles import UnscorableError
from .pixels import Noise
from .runner import Decoded, Runner

__all__ = [
    "PartialObservation",
    "Proposal",
    "ProposalCounts",
    "WeightedSamples",
    "init_completions",
    "merge_completions",
    "propose",
    "update_completions",
]


@dataclass(frozen=True)
class PartialObservation:
    """N examples of which only a subset of the pixels, or a noisy version, is observed.

    Attributes:
        runner: the program with complete examples, on which the guide runs.
        x: the observed examples, ``(N, *event)``; missing pixels may have any value with a
            density.
        observed: whether each pixel is observed, ``(N, *event)``.
        noise: the noise on the observed pixels.
    """

    runner: Runner
    x: Tensor
    observed: Tensor
    noise: Noise | None = None

    @property
    def is_incomplete(self) -> bool:
        """Whether any pixel is missing or noisy."""
        return self.noise is not None or not bool(self.observed.all())

    def select(self, rows: slice) -> PartialObservation:
        """Return the observation of a subset of the examples."""
        x, observed = self.x[rows], self.observed[rows]
        return replace(self, runner=self.runner.select(rows), x=x, observed=observed)

    def with_completions(self, completions: Tensor) -> PartialObservation:
        """Return the observation of M × N examples, for M completions ``(M, N, *event)``."""
        x, observed = (torch.cat([t] * len(completions)) for t in (self.x, self.observed))
        return replace(self, runner=self.runner.with_copies(completions), x=x, observed=observed)

    def log_prob(self, decoded: Decoded) -> Tensor:
        """Return log p(x_obs | latents), ``(K, N)``."""
        pixels, x = decoded.pixels, decoded.expand_pixels(self.x)
        log_p = pixels.log_prob(x) if self.noise is None else self.noise.log_prob(pixels, x)
        log_p = torch.where(self.observed, decoded.mask_pixels(log_p), 0.0)
        return log_p.flatten(2).sum(2) if log_p.ndim > 2 else log_p

    def log_joint(self, decoded: Decoded) -> Tensor:
        """Return log p(z, x_obs), ``(K, N)``."""
        return decoded.log_latents + decoded.log_others + self.log_prob(decoded)

    def sample(self, decoded: Decoded) -> Tensor:
        """Sample x ~ p(x | latents, x_obs), ``(K, N, *event)``."""
        return self._combine(decoded, decoded.sample(), lambda clean: clean.sample())

    def mean(self, decoded: Decoded) -> Tensor:
        """Return E[x | latents, x_obs], ``(K, N, *event)``."""
        return self._combine(decoded, decoded.mean, lambda clean: clean.mean)

    def _combine(
        self, decoded: Decoded, missing: Tensor, get_value: Callable[[Any], Tensor]
    ) -> Tensor:
        """Insert the observed pixels, denoised if necessary, into values of the missing ones."""
        if self.noise is None:
            observed = self.x
        else:
            clean = self.noise.clean(decoded.pixels, decoded.expand_pixels(self.x))
            observed = get_value(clean).reshape(decoded.shape)
        return torch.where(self.observed, observed, missing.to(self.x.dtype))


class Proposal(Protocol):
    """A distribution over the latents of each example that can be sampled and scored."""

    def sample(self, count: int) -> dict[str, Tensor]:
        """Sample latents by site, ``(K, N, *rest)``."""
        ...

    def log_prob(self, latents: Mapping[str, Tensor]) -> Tensor:
        """Return the log density of latents, ``(K, N)``."""
        ...


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


@dataclass(frozen=True)
class ProposalCounts:
    """Number of samples from each part of the proposal.

    Attributes:
        guide: from the guide at each completion.
        fitted: from each component of the fitted mixture.
        prior: from the prior.
    """

    guide: int
    fitted: int
    prior: int


def propose(
    observation: PartialObservation,
    completions: Tensor,
    counts: ProposalCounts,
    fitted: Proposal | None = None,
) -> WeightedSamples:
    """Sample from a mixture of the guide at each completion, a fitted proposal and the prior.

    Arguments:
        observation: the N examples.
        completions: M completions of the examples, ``(M, N, *event)``.
        counts: the number of samples from each part.
        fitted: the fitted proposal.

    Returns:
        The samples of all parts in random order, so that any subset represents the mixture.
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


def merge_completions(values: Tensor, num_completions: int) -> Tensor:
    """Reshape samples at M completions of N examples, ``(K, M × N, …)``, to ``(K × M, N, …)``."""
    return values.unflatten(1, (num_completions, -1)).flatten(0, 1)


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
