"""Sampling, scoring and decoding the latents of a program, with many particles at once."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from pyro.distributions.util import scale_and_mask
from pyro.poutine.messenger import Messenger
from torch import Tensor

from ..distributions import PartiallyObserved
from ..programs.arguments import ProgramInputs
from ..programs.base import PLATE, Site, data_dim, is_latent, trace_sites
from ..programs.enumerated_posterior import with_enumerated_posterior
from ..programs.importance_weights import find_layout
from ..programs.kl import unwrap_independent
from ..programs.particles import Layout, ParticleBatch, guide_log_prob_at, total_log_prob
from ..programs.sites import find_data_site
from .pixels import Noise

__all__ = ["Decoded", "PartialObservation", "Runner", "get_mean", "merge_completions"]


@dataclass(frozen=True)
class Decoded:
    """Output of the model at given latents, K particles for each of N examples.

    Attributes:
        log_latents: log p of the latents, ``(K, N)``.
        log_others: log p of other observed sites, such as a class, ``(K, N)``.
        fn: p(x | latents).
        shape: ``(K, N, *event)``.
        mask: the mask of the observed site, if the program sets one.
    """

    log_latents: Tensor
    log_others: Tensor
    fn: Any
    shape: tuple[int, ...]
    mask: Any = None

    @property
    def mean(self) -> Tensor:
        """E[x | latents], ``(K, N, *event)``.

        Raises:
            ValueError: if the distribution has no mean.
        """
        return get_mean(self.fn).reshape(self.shape)

    def sample(self) -> Tensor:
        """Sample x ~ p(x | latents), ``(K, N, *event)``."""
        return self.fn.sample().reshape(self.shape)

    @property
    def pixels(self) -> Any:
        """The distribution of single pixels, whose batch shape includes ``(K, N, *event)``.

        Raises:
            ValueError: if the pixels are not independent given the latents.
        """
        fn = unwrap_independent(self.fn)
        # completed examples have no NaN
        fn = fn.base_dist if isinstance(fn, PartiallyObserved) else fn
        if fn.event_shape:
            raise ValueError(
                f"expected a likelihood whose pixels are independent given the latents, so that "
                f"a subset can be observed; got {type(fn).__name__}: use a distribution with "
                f".to_event(…)"
            )
        return fn

    def mask_pixels(self, log_prob: Tensor) -> Tensor:
        """Return log densities of :attr:`pixels`, ``(K, N, *event)``; 0 where x is masked."""
        mask = self.mask
        if isinstance(mask, Tensor):
            mask = mask.reshape(*mask.shape, *(1,) * (log_prob.ndim - mask.ndim))
        return scale_and_mask(log_prob, mask=mask).reshape(self.shape)

    def observed_log_prob(self, x: Tensor, observed: Tensor) -> Tensor:
        """Return log p(x_obs | latents), ``(K, N)``; 0 where x is masked.

        Arguments:
            x: ``(N, *event)``, or ``(K, N, *event)``.
            observed: boolean mask of the observed pixels, ``(N, *event)``.

        Raises:
            ValueError: if the pixels depend on one another and the distribution has no
                ``observed_log_prob(x, observed)``, or if that has no closed form for this mask.
        """
        fn = unwrap_independent(self.fn)
        marginal = getattr(fn, "observed_log_prob", None)
        if marginal is None:
            log_p = self.mask_pixels(self.pixels.log_prob(self.expand_pixels(x)))
            return _sum_pixels(torch.where(observed, log_p, 0.0))
        shape = (*fn.batch_shape, *fn.event_shape)
        full = (value.expand(self.shape).reshape(shape) for value in (x, observed))
        log_p = scale_and_mask(marginal(*full), mask=self.mask)
        return log_p.reshape(self.shape[:2])

    def expand_pixels(self, value: Tensor) -> Tensor:
        """Broadcast values to ``(K, N, *event)`` and to the batch shape of :attr:`pixels`."""
        return value.expand(self.shape).reshape(self.pixels.batch_shape)


def _sum_pixels(log_p: Tensor) -> Tensor:
    """Sum ``(K, N, *event)`` over the pixels."""
    return log_p.flatten(2).sum(2) if log_p.ndim > 2 else log_p


def get_mean(fn: Any) -> Tensor:
    """Return the mean of a distribution.

    Raises:
        ValueError: if it has none.
    """
    try:
        return fn.mean
    except (NotImplementedError, AttributeError):
        raise ValueError(
            f"expected p(x|z) to have a mean; got {type(fn).__name__}: set mean=False to return "
            f"samples only"
        ) from None


@dataclass(frozen=True)
class Runner:
    """A program with its data and the layout of its particles.

    Latents have shape ``(K, N, *rest)``, whatever the program's plates are.

    Attributes:
        inputs: the program and its arguments; x is ``(N, *event)``.
        site: the name of the site that observes x.
        layout: the layout of the particles.
        noise_sites: the sites that represent noise in the weights rather than latents.
    """

    inputs: ProgramInputs
    site: str
    layout: Layout
    noise_sites: frozenset[str] = frozenset()

    @classmethod
    def create(cls, inputs: ProgramInputs) -> Runner:
        """Create a runner by inspecting a run of the program.

        Raises:
            ValueError: if the program's weights per example are not defined, or if another plate
                encloses the data plate.
        """
        inputs = with_enumerated_posterior(inputs)
        model, guide, x, args, _ = inputs
        site, _ = find_data_site(model, x, *args)
        layout = find_layout(model, guide, x, *args)
        sites = trace_sites(model, x, *args)
        for name, node in sites.items():
            if len(node["fn"].batch_shape) > -data_dim(node):
                raise ValueError(
                    f'expected the plate "{PLATE}" to be the outermost; got a plate to its left '
                    f"at site {name!r}: give that plate a dim to its right"
                )
        noise = frozenset(name for name, node in sites.items() if node["infer"].get("is_noise"))
        return cls(inputs, site, layout, noise)

    def select(self, rows: slice) -> Runner:
        """Return the same program with a subset of the examples."""
        return replace(self, inputs=self.inputs.select(rows))

    def with_data(self, x: Tensor) -> Runner:
        """Return the same program with other examples."""
        return replace(self, inputs=self.inputs._replace(x=x))

    def with_copies(self, copies: Tensor) -> Runner:
        """Return the program with M versions of the data, ``(M, N, *event)``, as M × N examples."""
        repeated = self.inputs.repeat(len(copies))
        return replace(self, inputs=repeated._replace(x=copies.flatten(0, 1)))

    def sample_guide(self, num_samples: int) -> tuple[dict[str, Tensor], Tensor]:
        """Sample latents from the guide; return them with log q, ``(K, N)``."""
        batch = self._batch(num_samples)
        sites = {n: s for n, s in batch.trace(self.inputs.guide).items() if is_latent(s)}
        return _model_latents(batch, sites), total_log_prob(batch.log_probs(sites))

    def run_guide(self, messenger: Messenger) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Run the guide once under a messenger.

        Returns:
            The latents, ``(N, *rest)``, and their distributions, by site.
        """
        batch = ParticleBatch.single((self.inputs.x, *self.inputs.args), {})
        sites = batch.trace(messenger(self.inputs.guide))
        latents = {name: value[0] for name, value in _model_latents(batch, sites).items()}
        return latents, {name: sites[name]["fn"] for name in latents}

    def sample_prior(self, num_samples: int) -> dict[str, Tensor]:
        """Sample latents from the model, ignoring x."""
        batch = self._batch(num_samples)
        return batch.latents(batch.trace(self.inputs.model))

    def guide_log_prob(self, latents: Mapping[str, Tensor]) -> Tensor:
        """Return log q of given latents, ``(K, N)``.

        Raises:
            UnscorableError: if the guide samples more sites than the model's latents, or can only
                score its own samples.
        """
        _, guide, x, args, _ = self.inputs
        return guide_log_prob_at(guide, latents, x, *args, layout=self.layout)

    def decode(self, latents: Mapping[str, Tensor]) -> Decoded:
        """Run the model at given latents."""
        batch = self._batch(len(next(iter(latents.values()))))
        sites = batch.trace(self.inputs.model, latents)
        node = sites.pop(self.site)
        terms, x = batch.log_probs(sites), self.inputs.x
        log_p = [
            [term for name, term in terms.items() if (name in latents) == is_given]
            for is_given in (True, False)
        ]
        log_latents, log_others = (
            torch.stack(part).sum(0) if part else x.new_zeros(batch.shape) for part in log_p
        )
        shape = (*batch.shape, *x.shape[1:])
        return Decoded(log_latents, log_others, node["fn"], shape, node["mask"])

    def _batch(self, num_samples: int) -> ParticleBatch:
        return ParticleBatch(num_samples, self.layout, (self.inputs.x, *self.inputs.args), {})


def _model_latents(batch: ParticleBatch, sites: Mapping[str, Site]) -> dict[str, Tensor]:
    """Return the values of the guide's latent sites that are not auxiliary."""
    return {
        name: batch.value(site)
        for name, site in sites.items()
        if is_latent(site) and not site["infer"].get("is_auxiliary")
    }


def merge_completions(values: Tensor, num_completions: int) -> Tensor:
    """Reshape samples at M completions of N examples, ``(K, M × N, …)``, to ``(K × M, N, …)``."""
    return values.unflatten(1, (num_completions, -1)).flatten(0, 1)


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
        if self.noise is None:
            return decoded.observed_log_prob(self.x, self.observed)
        log_p = self.noise.log_prob(decoded.pixels, decoded.expand_pixels(self.x))
        return _sum_pixels(torch.where(self.observed, decoded.mask_pixels(log_p), 0.0))

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
