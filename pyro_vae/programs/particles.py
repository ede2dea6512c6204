"""Vectorized runs of a Pyro program with K particles."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from functools import cache
from typing import Any

import pyro
import torch
from pyro.poutine.indep_messenger import CondIndepStackFrame
from pyro.poutine.messenger import Messenger
from pyro.poutine.util import site_is_subsample
from torch import Tensor

from ..compiler.trace import is_tracing
from .arguments import map_batched
from .base import (
    PARTICLES,
    PLATE,
    Site,
    data_dim,
    is_latent,
    marginal,
    sample_sites,
    site_log_prob,
    trace_program,
    trace_sites,
)
from .enumeration.marks import SUMMED_OUT, is_marked
from .enumeration.run import GIVEN

__all__ = [
    "Layout",
    "ParticleBatch",
    "Particles",
    "UnscorableError",
    "data_axis",
    "data_frame",
    "guide_log_prob_at",
    "guide_scorer",
    "log_probs_at",
    "map_site",
    "particles_at",
    "run_particles",
    "scale_in_data",
    "scoring_errors",
    "total_log_prob",
    "weigh",
]


@dataclass(frozen=True)
class Layout:
    """Layout of the particles of a program, from :func:`~.importance_weights.find_layout`.

    Attributes:
        nesting: plate nesting depth of the program.
        tiled: ``False`` for a particle dimension to the left of the plates, which is free where
            nothing depends on it (an encoder runs once for all particles). ``True`` to repeat
            each example K times, for programs that do not support another dimension (a
            ``Conv2d``, a ``softmax(dim=1)``).
        width: elements of the widest site for one (particle, datum) pair: a categorical over 256
            levels has 256 logits per pixel.
    """

    nesting: int = 1
    tiled: bool = False
    width: int = 1


class ParticleBatch:
    """Arguments of a program for K particles of each of N examples.

    Runs programs on them, and converts the sites of a run to ``(K, N)`` and back.

    Arguments:
        num_samples: the number K of particles.
        layout: layout of the particles.
        args, kwargs: arguments of the program; the first is the data, ``(N, …)``.

    Attributes:
        args, kwargs: the arguments, repeated for each particle if the layout is tiled.
        shape: ``(K, N)``.
        dim: the batch dimension of the particles at each site; ``None`` if tiled, where the data
            dimension has size K · N, particles first.
    """

    def __init__(
        self, num_samples: int, layout: Layout, args: tuple, kwargs: Mapping[str, Any]
    ) -> None:
        self.layout, self.shape = layout, (num_samples, len(args[0]))
        self.args, self.kwargs = args, dict(kwargs)
        self.dim = -1 - layout.nesting
        if layout.tiled:
            self.dim = None
            self.args, self.kwargs = map_batched(self._tile, len(args[0]), args, kwargs)

    @classmethod
    def single(cls, args: tuple, kwargs: Mapping[str, Any]) -> ParticleBatch:
        """Return a batch with one particle, which adds no dimension to the sites."""
        return cls(1, Layout(tiled=True), args, kwargs)

    def trace(
        self, program: Callable[..., Any], latents: Mapping[str, Tensor] | None = None
    ) -> dict[str, Site]:
        """Run a model or guide once and return its sample sites by name.

        The values of its latent sites are ``latents``, ``(K, N, …)``, or sampled by default.

        Raises:
            ValueError: if ``latents`` has no value for a latent site.
        """
        with self._plate(), nullcontext() if latents is None else _ObserveLatents(latents, self):
            return trace_sites(program, *self.args, **self.kwargs)

    def trace_program(
        self,
        model: Callable[..., Any],
        guide: Callable[..., Any],
        draws: Mapping[str, Site] | None = None,
    ) -> tuple[dict[str, Site], dict[str, Site]]:
        """Run guide and model once and return the sample sites of the guide and of the model.

        The guide reuses ``draws`` of an earlier run on this batch, see
        :func:`~.base.trace_program`. Observed sites of the guide (``pyro.factor``) are included;
        they are not part of q(z|x).
        """
        with self._plate():
            guide_sites, model_sites = trace_program(model, guide, self.args, self.kwargs, draws)
        return sample_sites(guide_sites), sample_sites(model_sites)

    def log_prob(self, site: Site) -> Tensor:
        """Return log p of one site, ``(K, N)``, summed over all plates except particles and data.

        Scales (of a subsampling plate or an annealed KL) belong to training, not to the density,
        and are ignored. Masks are applied: a masked observation is not observed.
        """
        return self._sum_plates(site, site_log_prob(site))

    def log_probs(self, sites: Mapping[str, Site]) -> dict[str, Tensor]:
        """Return :meth:`log_prob` of all sites."""
        return {name: self.log_prob(site) for name, site in sites.items()}

    def scaled_log_probs(
        self, sites: Mapping[str, Site], log_probs: Mapping[str, Tensor]
    ) -> dict[str, Tensor]:
        """Multiply the log-densities of the sites that have a ``poutine.scale`` by it."""
        scaled = {}
        for name, site in sites.items():
            scale = self._marginal_scale(site) if marginal(site) else scale_in_data(site)
            if isinstance(scale, Tensor):
                scaled[name] = self._sum_plates(site, site_log_prob(site) * scale)
            else:
                scaled[name] = log_probs[name] if scale == 1 else log_probs[name] * scale
        return scaled

    def _marginal_scale(self, site: Site) -> float | Tensor:
        """Return the scale that a site shares with all sites of its enumerated ones.

        Raises:
            ValueError: in training, if their scales differ: the logarithm of a sum is not a sum of
                terms with scales of their own.
        """
        summed = marginal(site)
        if summed is None or not torch.is_grad_enabled():
            return 1.0  # an evaluation ignores scales
        scale, *others = (scale_in_data(part) for part in summed.sharing)
        dims = enumerate(scale.shape, -scale.ndim) if isinstance(scale, Tensor) else ()
        kept = (self.dim, data_dim(site))
        is_shared = all(size == 1 or dim in kept for dim, size in dims)
        if not (is_shared and all(_scales_equal(scale, other) for other in others)):
            raise ValueError(
                f"expected one scale (poutine.scale, or a subsampled plate) at an enumerated site "
                f"and at all sites that depend on it; got different ones at {site['name']!r} or "
                f"the sites with which it shares enumerated sites: scale them alike, or sample the "
                f"enumerated sites in the guide too"
            )
        return scale

    def _sum_plates(self, site: Site, log_prob: Tensor) -> Tensor:
        """Sum over all plates of a site except particles and data."""
        kept = (self.dim, data_dim(site))
        others = [d for d in range(-log_prob.ndim, 0) if d not in kept]
        if others:
            log_prob = log_prob.sum(others)
        if self.dim is None:
            return log_prob.expand(math.prod(self.shape)).reshape(self.shape)
        return log_prob.expand(self.shape)

    def value(self, site: Site) -> Tensor:
        """Return the value of a site as ``(K, N, …)``."""
        value: Tensor = site["value"]
        axis = data_axis(site, value.ndim)
        if self.layout.tiled:
            return value.movedim(axis, 0).unflatten(0, self.shape)
        return value.movedim(axis, 1)

    def latents(self, sites: Mapping[str, Site]) -> dict[str, Tensor]:
        """Return :meth:`value` of all latent sites."""
        return {name: self.value(site) for name, site in sites.items() if is_latent(site)}

    def site_value(self, site: Site, value: Tensor) -> Tensor:
        """Convert ``(K, N, …)`` to the shape of the site; inverse of :meth:`value`."""
        if self.layout.tiled:
            value = value.flatten(0, 1)
        return value.movedim(0 if self.layout.tiled else 1, data_axis(site, value.ndim))

    def _plate(self) -> AbstractContextManager[Any]:
        if self.dim is None:
            return nullcontext()
        return pyro.plate(PARTICLES, self.shape[0], dim=self.dim)

    def _tile(self, value: Tensor, dim: int = 0) -> Tensor:
        return torch.cat([value] * self.shape[0], dim)

    def repeat_draw(self, site: Site) -> Site:
        """Repeat the draw at a site of a run without particles for each particle."""
        if self.layout.tiled or site["type"] != "sample" or site["is_observed"]:
            return map_site(site, self._tile)
        # plates that do not contain the site are between the particle dimension and its own
        missing = (1,) * (self.layout.nesting - len(site["fn"].batch_shape))
        values = {key: site[key] for key in ("value", "noise") if key in site}
        return {**site} | {
            k: v.reshape(*missing, *v.shape).expand(self.shape[0], *missing, *v.shape)
            for k, v in values.items()
        }


@dataclass(frozen=True)
class Particles:
    """Weighted run with K particles for each of N examples.

    Sites of the model that are summed out (see :mod:`~.enumeration.run`) have no entry. The sites
    that depend on them have the log-density given the preceding ones; the observed sites among
    these have the joint one at the first of them, and 0 at the others.

    Attributes:
        log_p: log-density of each sample site of the model, ``(K, N)``, in nats.
        log_q: log-density of each latent site of the guide, ``(K, N)``, in nats.
        latents: the values drawn by the guide, ``(K, N, *event)``; the dimensions of further
            plates are between N and the event.
        scaled_log_p, scaled_log_q: the same times the ``poutine.scale`` of each site, which
            weighs its gradient in training and nothing else.
        auxiliary: scaled log-density of each observed site of the guide, ``(K, N)``, e.g. a
            ``pyro.factor``. These sites are not part of q(z|x) but of the training loss.
    """

    log_p: Mapping[str, Tensor]
    log_q: Mapping[str, Tensor]
    latents: Mapping[str, Tensor] = field(default_factory=dict)
    scaled_log_p: Mapping[str, Tensor] = field(default_factory=dict)
    scaled_log_q: Mapping[str, Tensor] = field(default_factory=dict)
    auxiliary: Mapping[str, Tensor] = field(default_factory=dict)

    @property
    def log_weights(self) -> Tensor:
        """log p(x, z) − log q(z|x), ``(K, N)``."""
        return _log_weights(self.log_p, self.log_q)

    @property
    def scaled_log_weights(self) -> Tensor:
        """:attr:`log_weights` of the scaled log-densities, for training only, ``(K, N)``."""
        return _log_weights(self.scaled_log_p, self.scaled_log_q)


def _log_weights(log_p: Mapping[str, Tensor], log_q: Mapping[str, Tensor]) -> Tensor:
    total = total_log_prob(log_p)
    for term in log_q.values():
        total = total - term
    return total


def total_log_prob(terms: Mapping[str, Tensor]) -> Tensor:
    """Return the sum of the log-densities of all sites."""
    return torch.stack(tuple(terms.values())).sum(0)


def run_particles(
    model: Callable[..., Any],
    guide: Callable[..., Any],
    *args: Any,
    num_samples: int,
    layout: Layout = Layout(),
    draws: Mapping[str, Site] | None = None,
    **kwargs: Any,
) -> Particles:
    """Run guide and model once with ``num_samples`` particles; differentiable.

    Arguments:
        model: a Pyro model with every sample site inside ``pyro.plate("data", N)``.
        guide: its guide.
        *args: arguments of both, as are ``**kwargs``; the first is the data, ``(N, …)``.
        num_samples: the number K of particles.
        layout: layout of the particles.
        draws: sites of an earlier run without particles, whose draws all particles reuse.
    """
    batch = ParticleBatch(num_samples, layout, args, kwargs)
    if draws is not None:
        draws = {name: batch.repeat_draw(site) for name, site in draws.items()}
    guide_sites, model_sites = batch.trace_program(model, guide, draws)
    return weigh(batch, guide_sites, model_sites, batch.latents(guide_sites))


def particles_at(
    model: Callable[..., Any],
    guide: Callable[..., Any],
    latents: Mapping[str, Tensor],
    *args: Any,
    layout: Layout = Layout(),
    **kwargs: Any,
) -> Particles:
    """:func:`run_particles` at given latents, ``(K, N, *event)``, instead of samples of the guide.

    Raises:
        ValueError: as for :func:`log_probs_at`.
    """
    _, guide_sites = _trace_at(guide, latents, args, kwargs, layout)
    batch, model_sites = _trace_at(model, latents, args, kwargs, layout)
    with scoring_errors():
        return weigh(batch, guide_sites, model_sites, latents)


def weigh(
    batch: ParticleBatch,
    guide_sites: Mapping[str, Site],
    model_sites: Mapping[str, Site],
    latents: Mapping[str, Tensor],
) -> Particles:
    """Return the particles of one run, from its sample sites and the values of its latents."""
    q = {name: site for name, site in guide_sites.items() if name in latents}
    # without those outside of the data plate, which training rejects
    observed = {n: s for n, s in guide_sites.items() if n not in latents and data_frame(s)}
    log_p, log_q = batch.log_probs(model_sites), batch.log_probs(q)
    return Particles(
        log_p=log_p,
        log_q=log_q,
        latents=latents,
        scaled_log_p=batch.scaled_log_probs(model_sites, log_p),
        scaled_log_q=batch.scaled_log_probs(q, log_q),
        auxiliary=batch.scaled_log_probs(observed, batch.log_probs(observed)),
    )


def log_probs_at(
    program: Callable[..., Any],
    latents: Mapping[str, Tensor],
    *args: Any,
    layout: Layout = Layout(),
    **kwargs: Any,
) -> dict[str, Tensor]:
    """Evaluate the log-density of each sample site of a model or guide at given latents.

    The sum over the sites is log p(x, z) for a model; for a guide, see
    :func:`guide_log_prob_at`. It is differentiable with respect to latents and parameters. Scales
    are ignored and masks applied, as in :meth:`ParticleBatch.log_prob`.

    Arguments:
        program: the model or the guide, called as ``program(*args, **kwargs)``.
        latents: a value for each of its latent sites, ``(K, N, *event)`` as in
            :attr:`Particles.latents`; other entries are ignored.
        *args: the first is the data, ``(N, …)``.
        layout: layout of the particles.

    Returns:
        The log-densities by site, ``(K, N)``, in nats.

    Raises:
        ValueError: if a latent site has no value, or if the density of a site can only be
            evaluated at its own samples (a flow without an inverse).
    """
    batch, sites = _trace_at(program, latents, args, kwargs, layout)
    with scoring_errors():
        return batch.log_probs(sites)


def _trace_at(
    program: Callable[..., Any],
    latents: Mapping[str, Tensor],
    args: tuple,
    kwargs: Mapping[str, Any],
    layout: Layout,
) -> tuple[ParticleBatch, dict[str, Site]]:
    """Run a model or guide on given latents."""
    batch = ParticleBatch(len(next(iter(latents.values()))), layout, args, kwargs)
    return batch, batch.trace(program, latents)


def guide_log_prob_at(
    guide: Callable[..., Any],
    latents: Mapping[str, Tensor],
    *args: Any,
    layout: Layout = Layout(),
    **kwargs: Any,
) -> Tensor:
    """Return log q(z|x) at given latents, ``(K, N)`` in nats, without observed sites of the guide.

    Arguments and errors are those of :func:`log_probs_at`.
    """
    batch, sites = _trace_at(guide, latents, args, kwargs, layout)
    with scoring_errors():
        return total_log_prob(batch.log_probs({n: s for n, s in sites.items() if n in latents}))


def guide_scorer(
    guide: Callable[..., Any], *args: Any, layout: Layout = Layout(), **kwargs: Any
) -> Callable[[Mapping[str, Tensor]], Tensor]:
    """Return a function that computes log q(z|x), ``(K, N)`` in nats, from latents z.

    A guide with a single site runs only once for all z, because its distribution does not depend
    on other draws; its parameters then have no gradient. Arguments and errors of the function are
    as for :func:`log_probs_at`.
    """

    @cache
    @torch.no_grad()
    def run_once(count: int) -> tuple[ParticleBatch, dict[str, Site]]:
        batch = ParticleBatch(count, layout, args, kwargs)
        sites = batch.trace(guide)
        return batch, {name: site for name, site in sites.items() if is_latent(site)}

    def log_q(latents: Mapping[str, Tensor]) -> Tensor:
        batch, sites = run_once(len(next(iter(latents.values()))))
        if len(sites) > 1 or any(map(marginal, sites.values())):
            return guide_log_prob_at(guide, latents, *args, layout=layout, **kwargs)
        ((name, site),) = sites.items()
        with scoring_errors():
            return batch.log_prob({**site, "value": batch.site_value(site, latents[name])})

    return log_q


class UnscorableError(ValueError):
    """The density of a program cannot be evaluated at the given latents."""


@contextmanager
def scoring_errors(remedy: str = "use another posterior") -> Iterator[None]:
    """Explain the errors of densities that can only be evaluated at their own samples.

    Raises:
        UnscorableError: instead of these errors; its message ends with the remedy.
    """
    try:
        yield
    except (KeyError, NotImplementedError) as error:
        raise UnscorableError(
            f"expected densities that can be evaluated anywhere; got a flow without an inverse, "
            f"which only scores its own samples: {remedy}"
        ) from error


class _ObserveLatents(Messenger):
    """Observe given values at all latent sites, except at those that are summed out."""

    def __init__(self, latents: Mapping[str, Tensor], batch: ParticleBatch) -> None:
        super().__init__()
        self.latents, self.batch = latents, batch

    def _pyro_sample(self, msg: Any) -> None:
        if msg["is_observed"] or msg["infer"].get("_deterministic") or site_is_subsample(msg):
            return
        if msg["name"] not in self.latents and is_marked(msg):
            msg["infer"][SUMMED_OUT] = True
            return
        if msg["name"] not in self.latents and msg["infer"].get("is_auxiliary"):
            raise UnscorableError(
                f"expected a guide that samples only the model's latents, to score given values; "
                f"got the auxiliary site {msg['name']!r} (of an autoguide): write a guide without "
                f"it, or start chains at the prior (initial='prior')"
            )
        if msg["name"] not in self.latents:
            raise UnscorableError(
                f"expected a value for each latent site; got values for "
                f"{', '.join(map(repr, self.latents))}, but not for {msg['name']!r}"
            )
        value = self.batch.site_value(msg, self.latents[msg["name"]])
        msg["value"], msg["is_observed"] = value, True
        msg["infer"][GIVEN] = True


def scale_in_data(site: Site) -> float | Tensor:
    """Return the scale of a site relative to the data plate.

    This is the product of the ``poutine.scale`` around it and of the subsampling of its other
    plates; subsampling of the data plate multiplies the terms of all sites.
    """
    frame = data_frame(site)
    if frame is None or frame.full_size in (None, frame.size):
        return site["scale"]
    return site["scale"] * frame.size / frame.full_size


def _scales_equal(a: float | Tensor, b: float | Tensor) -> bool:
    if not isinstance(a, Tensor) and not isinstance(b, Tensor):
        return a == b
    # during tracing the values are unknown; the eager run has checked them
    return is_tracing() or torch.equal(
        *torch.broadcast_tensors(torch.as_tensor(a), torch.as_tensor(b))
    )


def data_frame(site: Site) -> CondIndepStackFrame | None:
    """Return the frame of the data plate at a site, ``None`` if the site is outside of it."""
    return next((frame for frame in site["cond_indep_stack"] if frame.name == PLATE), None)


def data_axis(site: Site, ndim: int) -> int:
    """Return the axis of the data plate in a site's value with ``ndim`` dimensions."""
    return ndim - site["fn"].event_dim + data_dim(site)


def map_site(site: Site, function: Callable[[Tensor, int], Tensor]) -> Site:
    """Apply ``function(value, data_dim)`` to the draw of a site of a run without particles."""
    if site["type"] != "sample" or site["is_observed"]:
        return site
    batch_dims = len(site["fn"].batch_shape)
    values = {key: site[key] for key in ("value", "noise") if key in site}
    return {**site} | {
        k: function(v, data_dim(site) - (v.ndim - batch_dims)) for k, v in values.items()
    }
