"""Proposals for the latents of data that were seen in part, and their weights."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any, Protocol

import torch
from torch import Tensor

from .noise import Noise
from .runner import Decoded, Runner

__all__ = [
    "Proposal",
    "Proposed",
    "Seen",
    "Shares",
    "Weighted",
    "first_fills",
    "log_joint",
    "propose",
    "refilled",
    "together",
    "weigh",
]


@dataclass(frozen=True)
class Seen:
    """What was seen of N data.

    Attributes:
        x: the data, ``(N, *event)``; any values that have a density where they are missing.
        observed: which pixels were seen, ``(N, *event)``.
        noise: what the seen ones went through.
    """

    x: Tensor
    observed: Tensor
    noise: Noise | None = None

    @property
    def incomplete(self) -> bool:
        """Whether anything is not known of the data."""
        return self.noise is not None or not bool(self.observed.all())

    def rows(self, rows: slice) -> Seen:
        """Of some of the data."""
        return replace(self, x=self.x[rows], observed=self.observed[rows])

    def repeated(self, count: int) -> Seen:
        """The same of so many copies of the data."""
        x, observed = (torch.cat([part] * count) for part in (self.x, self.observed))
        return replace(self, x=x, observed=observed)

    def log_prob(self, decoded: Decoded) -> Tensor:
        """log p(what was seen | latents), ``(K, N)``."""
        pixels, x = decoded.pixels, decoded.lay(self.x)
        score = pixels.log_prob(x) if self.noise is None else self.noise.log_prob(pixels, x)
        score = torch.where(self.observed, decoded.per_pixel(score), 0.0)
        return score.flatten(2).sum(2) if score.ndim > 2 else score

    def filled(self, decoded: Decoded) -> Tensor:
        """x ~ p(x | latents, what was seen), ``(K, N, *event)``."""
        return self._where_seen(decoded, decoded.draw(), lambda clean: clean.sample())

    def clean_mean(self, decoded: Decoded) -> Tensor:
        """E[x | latents, what was seen], ``(K, N, *event)``."""
        return self._where_seen(decoded, decoded.mean, lambda clean: clean.mean)

    def _where_seen(self, decoded: Decoded, missing: Tensor, of: Callable[[Any], Tensor]) -> Tensor:
        if self.noise is None:
            seen = self.x
        else:
            clean = self.noise.clean(decoded.pixels, decoded.lay(self.x))
            seen = of(clean).reshape(decoded.shape)
        return torch.where(self.observed, seen, missing.to(self.x.dtype))


class Proposal(Protocol):
    """A distribution over the latents of each example, to draw from and to score."""

    def draw(self, each: int) -> dict[str, Tensor]:
        """Draws by site, ``(K, N, *rest)``."""
        ...

    def log_prob(self, latents: Mapping[str, Tensor]) -> Tensor:
        """The log-density of latents, ``(K, N)``."""
        ...


@dataclass(frozen=True)
class Proposed:
    """K draws of the latents for each of N data.

    Attributes:
        latents: by site, ``(K, N, *rest)``.
        decoded: the model on them.
        log_q: the density of the proposal, ``(K, N)``.
    """

    latents: dict[str, Tensor]
    decoded: Decoded
    log_q: Tensor


@dataclass(frozen=True)
class Weighted:
    """Proposed draws with log p(z, x_obs) − log q(z), ``(K, N)``."""

    latents: dict[str, Tensor]
    decoded: Decoded
    log_weights: Tensor

    def resampled(self, count: int) -> dict[str, Tensor]:
        """So many of the latents for each datum, drawn by weight with replacement."""
        shares = self.log_weights.double().softmax(0)
        chosen = torch.multinomial(shares.T, count, replacement=True).T
        every = torch.arange(chosen.shape[1], device=chosen.device)
        return {name: value[chosen, every] for name, value in self.latents.items()}


@dataclass(frozen=True)
class Shares:
    """How many draws come from where.

    Attributes:
        guide: of the guide at each version of the data.
        fitted: of each component of what was fitted.
        prior: of the prior.
    """

    guide: int
    fitted: int
    prior: int


def propose(
    runner: Runner, fills: Tensor, shares: Shares, fitted: Proposal | None = None
) -> Proposed:
    """Draws from the mixture of the guide at several versions of the data, the prior, and others.

    Arguments:
        runner: the program on the N data.
        fills: M versions of them, ``(M, N, *event)``.
        shares: how many draws of each.
        fitted: the others.

    Returns:
        The draws of all in random order, so that one part of them is like another.
    """
    guided, many = runner.repeated(fills), len(fills)
    parts: list[tuple[dict[str, Tensor], Callable[[dict[str, Tensor], Decoded], Tensor]]] = []
    scores_any_value = _scores_any_value(guided)
    if scores_any_value or fitted is None:
        drawn, own = guided.draw(shares.guide)
        latents = {name: together(value, many) for name, value in drawn.items()}
        if not scores_any_value:
            return Proposed(latents, runner.decode(latents), together(own, many))
        parts.append((latents, lambda z, _: _mixture(guided, z, many)))
    if fitted is not None:
        parts.append((fitted.draw(shares.fitted), lambda z, _: fitted.log_prob(z)))
    if shares.prior:
        parts.append((runner.prior(shares.prior), lambda _, decoded: decoded.log_latents))
    drawn = {name: torch.cat([part[name] for part, _ in parts]) for name in parts[0][0]}
    total = len(next(iter(drawn.values())))
    order = torch.randperm(total, device=runner.x.device)
    drawn = {name: value[order] for name, value in drawn.items()}
    decoded = runner.decode(drawn)
    log_q = [
        density(drawn, decoded) + math.log(len(next(iter(part.values()))) / total)
        for part, density in parts
    ]
    return Proposed(drawn, decoded, torch.stack(log_q).logsumexp(0))


def together(drawn: Tensor, many: int) -> Tensor:
    """Draws at M versions of N data, ``(K, M × N, …)``, as ``(K × M, N, …)``."""
    return drawn.unflatten(1, (many, -1)).flatten(0, 1)


def weigh(seen: Seen, proposed: Proposed) -> Weighted:
    """The weights of what was proposed, given what was seen."""
    log_p = log_joint(seen, proposed.decoded)
    return Weighted(proposed.latents, proposed.decoded, log_p - proposed.log_q)


def log_joint(seen: Seen, decoded: Decoded) -> Tensor:
    """log p(z, what was seen), ``(K, N)``."""
    return decoded.log_latents + decoded.log_others + seen.log_prob(decoded)


def first_fills(runner: Runner, seen: Seen, count: int, scouts: int) -> Tensor:
    """Whole data made of the model alone: the best, by what was seen, of a few draws each.

    Returns:
        ``(count, N, *event)``, independent of each other.
    """
    copies, copied = runner.repeated(seen.x.expand(count, *seen.x.shape)), seen.repeated(count)
    latents = copies.prior(scouts)
    decoded = copies.decode(latents)
    weighted = Weighted(latents, decoded, copied.log_prob(decoded))
    return _filled_from(copies, copied, weighted, count)


def refilled(runner: Runner, seen: Seen, fills: Tensor, scouts: int) -> Tensor:
    """The unseen part of each of M whole data drawn anew, given a draw of the guide there.

    Each is chosen among a few by its weight. The M go on by themselves, so that they do not
    all come to be children of a single lucky one; who is how probable is for the weights of
    the final mixture to say.
    """
    copies, copied = runner.repeated(fills), seen.repeated(len(fills))
    latents, log_q = copies.draw(scouts)
    weighted = weigh(copied, Proposed(latents, copies.decode(latents), log_q))
    return _filled_from(copies, copied, weighted, len(fills))


def _filled_from(copies: Runner, copied: Seen, weighted: Weighted, count: int) -> Tensor:
    chosen = copies.decode(weighted.resampled(1))
    return copied.filled(chosen)[0].unflatten(0, (count, -1))


def _mixture(guided: Runner, latents: dict[str, Tensor], many: int) -> Tensor:
    """log of the mean of q over the M versions, ``(K, N)``."""
    log_q = guided.score({n: torch.cat([value] * many, 1) for n, value in latents.items()})
    return log_q.unflatten(1, (many, -1)).logsumexp(1) - math.log(many)


def _scores_any_value(guided: Runner) -> bool:
    """Whether the guide has a density where another has drawn."""
    drawn, _ = guided.draw(1)
    try:
        guided.score({name: value.clone() for name, value in drawn.items()})
    except (KeyError, NotImplementedError):
        return False
    return True
