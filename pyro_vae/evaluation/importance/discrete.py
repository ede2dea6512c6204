"""Values of discrete latents that matter for p(x) but are hardly ever drawn.

The weights of the drawn values say nothing about the others: if q almost never draws a value that
explains x, all weights may be equal and k̂ low. Few values can be enumerated.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from pyro.poutine.messenger import Messenger
from torch import Tensor

from ...programs.base import Site, is_latent
from ...programs.importance_weights import Chunk
from ...programs.kl import unwrap_independent
from ...programs.particles import ParticleBatch, run_particles, total_log_prob

__all__ = ["MAX_RARE_VARIANCE", "DiscreteLatents", "find_discrete_latents"]

#: Relative variance of p̂ from rare values above which log p̂ is unreliable: 0.05 nats squared.
MAX_RARE_VARIANCE = 0.05**2
#: A value is rare if fewer draws of it are expected.
_RARE_DRAWS = 5
#: The maximum number of values, of all discrete latents together, to enumerate.
_MAX_VALUES = 256
#: The numbers of draws of the continuous latents for each value.
_MIN_DRAWS, _MAX_DRAWS = 5, 20


@dataclass(frozen=True)
class DiscreteLatents:
    """The discrete latents of a guide.

    Attributes:
        values: the C values of all sites together, ``(C, *event)`` by site; ``None`` if they are
            too many to enumerate, or not finitely many.
        is_complete: whether there are no continuous latents.
    """

    values: Mapping[str, Tensor] | None
    is_complete: bool

    @torch.no_grad()
    def rare_variance(self, chunk: Chunk, num_samples: int) -> tuple[Tensor, Tensor]:
        """Return the relative variance of p̂(x) because values are drawn at random.

        Let s be the share of p(x) with a value c, p(x, c) / p(x), and K q(c|x) the expected number
        of its draws. The weights of the values have the relative variance Σ_c (s − q)² / (K q) if
        the latents are discrete, and a larger one if some are continuous. It does not depend on
        the draws, unlike an estimate from the weights.

        Arguments:
            chunk: the examples.
            num_samples: the number K of draws.

        Returns:
            The terms of the values with fewer than 5 expected draws, and of all values, ``(n,)``
            in float64.
        """
        assert self.values is not None
        count = len(next(iter(self.values.values())))
        draws = 1 if self.is_complete else num_samples // (10 * count)
        if not self.is_complete:
            draws = min(max(draws, _MIN_DRAWS), _MAX_DRAWS)
        index = torch.arange(count).repeat_interleave(draws)
        parts = [
            self._score(chunk, part) for part in index.split(chunk.draws.stop - chunk.draws.start)
        ]
        log_p, log_q = (
            torch.cat(part).unflatten(0, (count, draws)).logsumexp(1) - math.log(draws)
            for part in zip(*parts, strict=True)
        )
        share, q = log_p.softmax(0), log_q.exp()
        excess = (share - q).square() / (num_samples * q)
        excess = torch.where(share == q, 0.0, excess)
        is_rare = num_samples * q < _RARE_DRAWS
        return torch.where(is_rare, excess, 0.0).sum(0), excess.sum(0)

    def _score(self, chunk: Chunk, index: Tensor) -> tuple[Tensor, Tensor]:
        """Return log p(x, c, z) − log q(z | x, c) and log q(c|x) of values c, ``(k, n)`` each."""
        assert self.values is not None
        model, guide, x, args, kwargs = chunk.inputs
        batch = ParticleBatch(1, chunk.layout, (x, *args), kwargs)
        fixed: dict[str, Tensor] = {}
        for name, values in self.values.items():
            chosen = values[index.to(values.device)].unsqueeze(1)
            fixed[name] = chosen.expand(-1, len(x), *chosen.shape[2:])
        guide = _FixLatents(fixed, batch)(guide)
        particles = run_particles(
            model, guide, x, *args, num_samples=len(index), layout=chunk.layout, **kwargs
        )
        log_q = total_log_prob({name: particles.log_q[name] for name in fixed})
        return tuple(  # type: ignore[return-value]
            part.double().cpu() for part in (particles.log_weights + log_q, log_q)
        )


@torch.no_grad()
def find_discrete_latents(chunk: Chunk) -> DiscreteLatents | None:
    """Run the guide once; return its discrete latents, or ``None`` if all are continuous."""
    inputs, layout = chunk.inputs, chunk.layout
    batch = ParticleBatch(1, layout, (inputs.x, *inputs.args), inputs.kwargs)
    sites = {name: site for name, site in batch.trace(inputs.guide).items() if is_latent(site)}
    discrete = {name: site for name, site in sites.items() if _is_discrete(site)}
    if not discrete:
        return None
    is_complete = len(discrete) == len(sites)
    supports: list[Tensor] = []
    for name, site in discrete.items():
        support = _enumerate_values(site)
        has_inner_plates = batch.value(site).shape[2:] != site["fn"].event_shape
        if support is None or has_inner_plates or name not in chunk.particles.log_p:
            return DiscreteLatents(None, is_complete)
        supports.append(support)
    if math.prod(map(len, supports)) > _MAX_VALUES:
        return DiscreteLatents(None, is_complete)
    index = _product(*(torch.arange(len(support)) for support in supports))
    values = (support[i.to(support.device)] for support, i in zip(supports, index.T, strict=True))
    return DiscreteLatents(dict(zip(discrete, values, strict=True)), is_complete)


def _is_discrete(site: Site) -> bool:
    try:
        return bool(site["fn"].support.is_discrete)
    except (AttributeError, NotImplementedError):  # without a support, as a flow's may be
        return False


def _enumerate_values(site: Site) -> Tensor | None:
    """Return all values of a site, ``(V, *event)``, or ``None`` if there are too many."""
    fn = site["fn"]
    base: Any = unwrap_independent(fn)
    try:
        values: Tensor = base.enumerate_support(expand=False)
    except NotImplementedError:
        return None
    values = values.reshape(-1, *base.event_shape)
    places = math.prod(fn.event_shape[: fn.event_dim - base.event_dim])
    if len(values) ** places > _MAX_VALUES:
        return None
    index = _product(*[torch.arange(len(values))] * places).to(values.device)
    return values[index].reshape(-1, *fn.event_shape)


def _product(*parts: Tensor) -> Tensor:
    """Return the Cartesian product of vectors, ``(size of the product, number of vectors)``."""
    return torch.cartesian_prod(*parts).reshape(-1, len(parts))


class _FixLatents(Messenger):
    """Replace the draws of some sites by given values ``(K, N, *event)``."""

    def __init__(self, values: Mapping[str, Tensor], batch: ParticleBatch) -> None:
        super().__init__()
        self.values, self.batch = values, batch

    def _pyro_sample(self, msg: Any) -> None:
        if msg["name"] in self.values:
            msg["value"] = self.batch.site_value(msg, self.values[msg["name"]])
