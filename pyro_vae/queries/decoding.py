"""The distribution of x at given latents, at one or several sites of the model."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from pyro.distributions.util import scale_and_mask
from torch import Tensor

from ..distributions import PartiallyObserved
from ..programs.base import Site
from ..programs.kl import unwrap_independent
from ..programs.particles import ParticleBatch
from ..programs.sites import DataSites, ObservedSite

__all__ = ["Decoded", "DecodedSite", "get_mean", "single_pixels", "sum_event"]


def single_pixels(fn: Any) -> Any:
    """Return the distribution of single pixels of an observed site.

    Raises:
        ValueError: if the pixels are not independent given the latents.
    """
    fn = unwrap_independent(fn)
    # completed examples have no NaN
    fn = fn.base_dist if isinstance(fn, PartiallyObserved) else fn
    if fn.event_shape:
        raise ValueError(
            f"expected a likelihood whose pixels are independent given the latents, so that "
            f"a subset can be observed; got {type(fn).__name__}: use a distribution with "
            f".to_event(…)"
        )
    return fn


@dataclass(frozen=True)
class DecodedSite:
    """The distribution of an observed site at given latents, K particles for each of N examples.

    Its values have the shape ``(K, N, *rest)``, whatever the dimension of the data plate is.

    Attributes:
        node: the site of the run.
        batch: the particles of the run.
        part: the part of x that the site observes.
    """

    node: Site
    batch: ParticleBatch
    part: ObservedSite

    @property
    def fn(self) -> Any:
        """The distribution, whose batch dimensions are those of the program."""
        return self.node["fn"]

    def sample(self) -> Tensor:
        """Sample from the distribution, ``(K, N, *rest)``."""
        return self.arrange(self.fn.sample())

    @property
    def pixels(self) -> Any:
        """The distribution of single pixels, whose batch shape is that of values of the site.

        Raises:
            ValueError: if the pixels are not independent given the latents.
        """
        return single_pixels(self.fn)

    def observed_log_prob(self, x: Tensor, observed: Tensor) -> Tensor:
        """Return log p of the observed pixels of the site, ``(K, N)``; 0 where x is masked.

        Arguments:
            x: ``(N, *event)``, or ``(K, N, *event)``.
            observed: boolean mask of the observed pixels, ``(N, *event)``.

        Raises:
            ValueError: if only some pixels of an example are observed, these depend on the others,
                and the distribution has no ``observed_log_prob(x, observed)``, or if that has no
                closed form for this mask.
        """
        fn = unwrap_independent(self.fn)
        marginal = getattr(fn, "observed_log_prob", None)
        values, mask = self.in_site_shape(self.take(x)), self.node["mask"]
        values = values.to(self.node["value"].dtype)
        if marginal is not None:
            log_p = marginal(values, self.in_site_shape(self.take(observed)))
            return self._sum_batch(scale_and_mask(log_p, mask=mask))
        seen = self.part.take(observed)
        if fn.event_shape and bool((seen.all(-1) | ~seen.any(-1)).all()):
            # all or nothing of each example is observed
            log_p = self._sum_batch(scale_and_mask(self.fn.log_prob(values), mask=mask))
            return torch.where(seen.all(-1), log_p, 0.0)
        log_p = self.mask_pixels(self.pixels.log_prob(values))
        return sum_event(torch.where(self.take(observed), log_p, 0.0))

    def mask_pixels(self, log_prob: Tensor) -> Tensor:
        """Return log densities of :attr:`pixels`, ``(K, N, *rest)``; 0 where the site is masked."""
        mask = self.node["mask"]
        if isinstance(mask, Tensor):
            mask = mask.reshape(*mask.shape, *(1,) * self.fn.event_dim)
        return self.arrange(scale_and_mask(log_prob, mask=mask))

    def take(self, examples: Tensor) -> Tensor:
        """Return the site's part of examples ``(N, *event)`` or ``(K, N, *event)``.

        Returns:
            ``(K, N, *rest)``.
        """
        shape = self.fn.batch_shape + self.fn.event_shape
        full = self.arrange(torch.empty(shape, device="meta")).shape
        part = self.part.take(examples)
        return part.reshape(*part.shape[:-1], *full[2:]).expand(full)

    def in_site_shape(self, value: Tensor) -> Tensor:
        """Return ``(K, N, *rest)`` in the shape of the site's values; undoes :meth:`arrange`."""
        return self.batch.site_value(self.node, value)

    def arrange(self, value: Tensor) -> Tensor:
        """Return a tensor in the shape of the site's values as ``(K, N, *rest)``."""
        return self.batch.value({**self.node, "value": value})

    def _sum_batch(self, log_prob: Tensor) -> Tensor:
        """Sum log densities in the batch shape of the site over all other plates, ``(K, N)``."""
        return sum_event(self.arrange(log_prob.reshape(*log_prob.shape, *(1,) * self.fn.event_dim)))


@dataclass(frozen=True)
class Decoded:
    """Output of the model at given latents, K particles for each of N examples.

    Attributes:
        log_latents: log p of the latents, ``(K, N)``.
        log_others: log p of the observed sites that are not data, such as a class, ``(K, N)``.
        sites: the distributions of all observed sites, those of the data first.
        data: the sites that observe the data.
        like: the examples with which the model ran, ``(N, *event)``, from which elements that no
            site observes are taken.
    """

    log_latents: Tensor
    log_others: Tensor
    sites: Mapping[str, DecodedSite]
    data: DataSites
    like: Tensor

    @property
    def data_sites(self) -> list[DecodedSite]:
        """The distributions of the data sites."""
        return [self.sites[name] for name in self.data.sites]

    @property
    def mean(self) -> Tensor:
        """E[x | latents], ``(K, N, *event)``; NaN for one of several sites that has no mean.

        Raises:
            ValueError: if the distribution of the only site has no mean.
        """
        return self.assemble({name: self.site_mean(name) for name in self.data.sites})

    def site_mean(self, name: str) -> Tensor:
        """Return the mean of a site, ``(K, N, *rest)``, see :attr:`mean`."""
        site = self.sites[name]
        return site.arrange(get_mean(site.node, required=list(self.data.sites) == [name]))

    def sample(self) -> Tensor:
        """Sample x ~ p(x | latents), ``(K, N, *event)``."""
        return self.assemble({site.part.name: site.sample() for site in self.data_sites})

    def assemble(self, values: Mapping[str, Tensor]) -> Tensor:
        """Return x, ``(K, N, *event)``, from the values of its sites, each ``(K, N, *rest)``."""
        flat = {name: value.reshape(*value.shape[:2], -1) for name, value in values.items()}
        return self.data.assemble(flat, self.like)

    def observed_log_prob(self, x: Tensor, observed: Tensor) -> Tensor:
        """Return log p(x_obs | latents), ``(K, N)``, see :meth:`DecodedSite.observed_log_prob`."""
        parts = [site.observed_log_prob(x, observed) for site in self.data_sites]
        return torch.stack(parts).sum(0) if len(parts) > 1 else parts[0]


def sum_event(log_p: Tensor) -> Tensor:
    """Sum ``(K, N, *rest)`` over an example."""
    return log_p.flatten(2).sum(2) if log_p.ndim > 2 else log_p


def get_mean(site: Site, *, required: bool = True) -> Tensor:
    """Return the mean of a site's distribution, NaN if it has none and it is not required.

    Raises:
        ValueError: if it has none and it is required.
    """
    fn = site["fn"]
    try:
        return fn.mean
    except (NotImplementedError, AttributeError):
        if not required:
            shape = fn.batch_shape + fn.event_shape
            return torch.full(shape, torch.nan, device=site["value"].device)
        raise ValueError(
            f"expected p(x|z) to have a mean; got {type(fn).__name__}: set mean=False to return "
            f"samples only"
        ) from None
