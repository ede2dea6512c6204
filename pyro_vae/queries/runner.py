"""Sampling, scoring and decoding the latents of a program, with many particles at once."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from pyro import poutine
from pyro.distributions import Unit
from pyro.poutine.messenger import Messenger
from torch import Tensor

from ..programs.arguments import ProgramInputs
from ..programs.base import Site, is_latent, trace_sites
from ..programs.enumeration.posterior import with_enumerated_posterior
from ..programs.importance_weights import find_layout
from ..programs.particles import Layout, ParticleBatch, guide_log_prob_at, total_log_prob
from ..programs.simulation import check_generates_data
from ..programs.sites import DataSites, SiteNames, find_data_sites
from .decoding import Decoded, DecodedSite, sum_event
from .pixels import Noise

__all__ = ["PartialObservation", "Runner", "merge_completions"]


@dataclass(frozen=True)
class Runner:
    """A program with its data and the layout of its particles.

    Latents have shape ``(K, N, *rest)``, whatever the program's plates are.

    Attributes:
        inputs: the program and its arguments; x is ``(N, *event)``.
        data: the sites of the model that observe the data.
        layout: the layout of the particles.
        noise_sites: the sites that represent noise in the weights rather than latents.
    """

    inputs: ProgramInputs
    data: DataSites
    layout: Layout
    noise_sites: frozenset[str] = frozenset()

    @classmethod
    def create(
        cls, inputs: ProgramInputs, site: SiteNames | None = None, data: DataSites | None = None
    ) -> Runner:
        """Create a runner by inspecting a run of the program.

        Arguments:
            inputs: the program in normal form.
            site: as for :func:`~pyro_vae.programs.sites.find_data_sites`.
            data: the data sites, if known; by default found.

        Raises:
            ValueError: if the program's weights per example are not defined, if the model has no
                data sites, or if their distributions depend on the data.
        """
        inputs = with_enumerated_posterior(inputs)
        model, guide, x, args, kwargs = inputs
        found, drawn = find_data_sites(model, (x, *args), kwargs, site)
        data = found if data is None else data
        layout = find_layout(model, guide, x, *args, **kwargs)
        sites = trace_sites(model, x, *args, **kwargs)
        check_generates_data(model, (x, *args), kwargs, data, sites, drawn)
        return cls(inputs, data, layout, _noise_sites(sites))

    @classmethod
    def for_guide(cls, inputs: ProgramInputs, *, has_model: bool = True) -> Runner:
        """Create a runner that runs the guide alone; the model may observe anything.

        Arguments:
            inputs: the program, in normal form if it has a model.
            has_model: whether it has a model.

        Raises:
            ValueError: if the program's weights per example are not defined.
        """
        inputs = with_enumerated_posterior(inputs)
        model, guide, x, args, kwargs = inputs
        if not has_model:
            return cls(inputs, DataSites({}, {}), Layout())
        # the runs of create, so that both have the same samples for a seed
        trace_sites(poutine.uncondition(model), x, *args, **kwargs)
        layout = find_layout(model, guide, x, *args, **kwargs)
        sites = trace_sites(model, x, *args, **kwargs)
        return cls(inputs, DataSites({}, {}), layout, _noise_sites(sites))

    def select(self, rows: slice) -> Runner:
        """Return the same program with a subset of the examples."""
        return replace(self, inputs=self.inputs.select(rows))

    def with_data(self, x: Tensor, args: tuple[Any, ...] | None = None) -> Runner:
        """Return the same program with other examples, and their further arguments if given."""
        args = self.inputs.args if args is None else args
        return replace(self, inputs=self.inputs._replace(x=x, args=args))

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
        inputs = self.inputs
        batch = ParticleBatch.single((inputs.x, *inputs.args), inputs.kwargs)
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
        _, guide, x, args, kwargs = self.inputs
        return guide_log_prob_at(guide, latents, x, *args, layout=self.layout, **kwargs)

    def decode(self, latents: Mapping[str, Tensor]) -> Decoded:
        """Run the model at given latents."""
        batch = self._batch(len(next(iter(latents.values()))))
        sites = batch.trace(self.inputs.model, latents)
        # a loop over time has fewer sites for shorter sequences
        data, others = (
            {name: part for name, part in parts.items() if name in sites}
            for parts in (self.data.sites, self.data.others)
        )
        terms = batch.log_probs({name: site for name, site in sites.items() if name not in data})
        log_p = [
            [term for name, term in terms.items() if (name in latents) == is_given]
            for is_given in (True, False)
        ]
        log_latents, log_others = (
            torch.stack(part).sum(0) if part else self.inputs.x.new_zeros(batch.shape)
            for part in log_p
        )
        observed = {
            name: DecodedSite(sites[name], batch, part)
            for name, part in {**data, **others}.items()
            if not isinstance(sites[name]["fn"], Unit)  # pyro.factor has no samples
        }
        return Decoded(log_latents, log_others, observed, DataSites(data, others), self._like())

    def _like(self) -> Tensor:
        """Return the argument that the data sites observe; x if there is none."""
        argument = self.data.argument
        if isinstance(argument, str):
            return self.inputs.kwargs[argument]
        return (self.inputs.x, *self.inputs.args)[argument or 0]

    def _batch(self, num_samples: int) -> ParticleBatch:
        inputs = self.inputs
        args = (inputs.x, *inputs.args)
        return ParticleBatch(num_samples, self.layout, args, inputs.kwargs)


def _noise_sites(sites: Mapping[str, Site]) -> frozenset[str]:
    return frozenset(name for name, site in sites.items() if site["infer"].get("is_noise"))


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
        parts = []
        for site in decoded.data_sites:
            log_p = site.mask_pixels(self.noise.log_prob(*self._noisy_pixels(site)))
            parts.append(sum_event(torch.where(site.take(self.observed), log_p, 0.0)))
        return torch.stack(parts).sum(0) if len(parts) > 1 else parts[0]

    def _noisy_pixels(self, site: DecodedSite) -> tuple[Any, Tensor]:
        """Return the distribution of the clean pixels of a site, and the noisy ones."""
        return site.pixels, site.in_site_shape(site.take(self.x))

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
            clean = {
                site.part.name: site.arrange(get_value(self.noise.clean(*self._noisy_pixels(site))))
                for site in decoded.data_sites
            }
            observed = decoded.assemble(clean)
        return torch.where(self.observed, observed, missing.to(self.x.dtype))
