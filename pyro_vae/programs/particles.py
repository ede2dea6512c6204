"""Vectorized runs of a Pyro program with K particles."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from typing import Any, cast

import pyro
import torch
from pyro import poutine
from pyro.distributions.util import scale_and_mask
from pyro.poutine.messenger import Messenger
from pyro.poutine.util import prune_subsample_sites, site_is_subsample
from torch import Tensor

from .base import PLATE, Site, sample_sites, trace_program

__all__ = [
    "Layout",
    "Particles",
    "data_axis",
    "expand_inputs",
    "guide_scorer",
    "has_batch",
    "is_latent",
    "log_prob_of",
    "log_probs_at",
    "map_batched",
    "map_site",
    "particle_values",
    "run_particles",
    "site_values",
]

_PARTICLES = "_particles"


@dataclass(frozen=True)
class Particles:
    """Weighted run with K particles for each of N examples.

    Attributes:
        log_p: log-density of each sample site of the model, ``(K, N)``, in nats.
        log_q: log-density of each sample site of the guide, ``(K, N)``, in nats.
        latents: the values drawn by the guide, ``(K, N, *event)``; the dimensions of further
            plates are between N and the event.
    """

    log_p: Mapping[str, Tensor]
    log_q: Mapping[str, Tensor]
    latents: Mapping[str, Tensor] = field(default_factory=dict)

    @property
    def log_weights(self) -> Tensor:
        """log p(x, z) − log q(z|x), ``(K, N)``."""
        total = torch.stack(tuple(self.log_p.values())).sum(0)
        for log_q in self.log_q.values():
            total = total - log_q
        return total


@dataclass(frozen=True)
class Layout:
    """Layout of the particles of a program.

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

    Scales (of a subsampling plate or an annealed KL) belong to training, not to the density, and
    are ignored. Masks are applied: a masked observation is not observed.

    Arguments:
        model: a Pyro model with every sample site inside ``pyro.plate("data", N)``.
        guide: its guide.
        *args: arguments of both, as are ``**kwargs``; the first is the data, ``(N, …)``.
        num_samples: the number K of particles.
        layout: layout of the particles, from :func:`~.importance_weights.find_layout`.
        draws: sites of an earlier run without particles, whose draws all particles reuse.
    """
    size = len(args[0])
    shape = (num_samples, size)
    if draws is not None:
        draws = {name: _repeat_draws(site, num_samples, layout) for name, site in draws.items()}
    args, kwargs, plate, dim = expand_inputs(size, num_samples, layout, args, kwargs)
    with plate:
        guide_sites, model_sites = map(
            sample_sites, trace_program(model, guide, args, kwargs, draws)
        )
    return Particles(
        log_p={name: log_prob_of(site, dim, shape) for name, site in model_sites.items()},
        log_q={name: log_prob_of(site, dim, shape) for name, site in guide_sites.items()},
        latents={
            n: particle_values(s, layout, shape) for n, s in guide_sites.items() if is_latent(s)
        },
    )


def log_probs_at(
    program: Callable[..., Any],
    latents: Mapping[str, Tensor],
    *args: Any,
    layout: Layout = Layout(),
    **kwargs: Any,
) -> dict[str, Tensor]:
    """Evaluate the log-density of each sample site of a model or guide at given latents.

    The sum over the sites is log p(x, z) for a model and log q(z|x) for a guide. It is
    differentiable with respect to latents and parameters. Scales are ignored and masks applied,
    as in :func:`run_particles`.

    Arguments:
        program: the model or the guide, called as ``program(*args, **kwargs)``.
        latents: a value for each of its latent sites, ``(K, N, *event)`` as in
            :attr:`Particles.latents`; other entries are ignored.
        *args: the first is the data, ``(N, …)``.
        layout: layout of the particles, from :func:`~.importance_weights.find_layout`.

    Returns:
        The log-densities by site, ``(K, N)``, in nats.

    Raises:
        ValueError: if a latent site has no value, or if the density of a site can only be
            evaluated at its own samples (a flow without an inverse).
    """
    size = len(args[0])
    shape = (len(next(iter(latents.values()))), size)
    args, kwargs, plate, dim = expand_inputs(size, shape[0], layout, args, kwargs)
    with plate, poutine.trace() as tracer, _ObserveLatents(latents, layout):
        program(*args, **kwargs)
    sites = sample_sites(cast("dict[str, Site]", prune_subsample_sites(tracer.trace).nodes))
    with _convert_scoring_errors():
        return {name: log_prob_of(site, dim, shape) for name, site in sites.items()}


def guide_scorer(
    guide: Callable[..., Any], *args: Any, layout: Layout = Layout(), **kwargs: Any
) -> Callable[[Mapping[str, Tensor]], Tensor]:
    """Return a function that computes log q(z|x), ``(K, N)`` in nats, from latents z.

    A guide with a single site runs only once for all z, because its distribution does not depend
    on other draws; its parameters then have no gradient.

    Arguments:
        guide: the guide, called as ``guide(*args, **kwargs)``.
        *args: the first is the data, ``(N, …)``.
        layout: layout of the particles, from :func:`~.importance_weights.find_layout`.

    Raises:
        ValueError: when the function is called, as for :func:`log_probs_at`.
    """
    size = len(args[0])
    cache: dict[int, tuple[Site, int | None] | None] = {}

    @torch.no_grad()
    def run_once(count: int) -> tuple[Site, int | None] | None:
        inputs, named, plate, dim = expand_inputs(size, count, layout, args, kwargs)
        with plate, poutine.trace() as tracer:
            guide(*inputs, **named)
        sites = sample_sites(cast("dict[str, Site]", prune_subsample_sites(tracer.trace).nodes))
        return (next(iter(sites.values())), dim) if len(sites) == 1 else None

    def log_q(latents: Mapping[str, Tensor]) -> Tensor:
        count = len(next(iter(latents.values())))
        if count not in cache:
            cache[count] = run_once(count)
        single_site = cache[count]
        if single_site is None:
            terms = log_probs_at(guide, latents, *args, layout=layout, **kwargs)
            return torch.stack(tuple(terms.values())).sum(0)
        site, dim = single_site
        value = site_values(site, latents[site["name"]], layout)
        with _convert_scoring_errors():
            return log_prob_of({**site, "value": value}, dim, (count, size))

    return log_q


@contextmanager
def _convert_scoring_errors() -> Iterator[None]:
    """Explain the errors of densities that can only be evaluated at their own samples."""
    try:
        yield
    except (KeyError, NotImplementedError) as error:
        raise ValueError(
            "expected densities that can be evaluated anywhere; got a flow without an inverse, "
            "which only scores its own samples: use another posterior"
        ) from error


class _ObserveLatents(Messenger):
    """Observe given values at all latent sites."""

    def __init__(self, latents: Mapping[str, Tensor], layout: Layout) -> None:
        super().__init__()
        self.latents, self.layout = latents, layout

    def _pyro_sample(self, msg: Any) -> None:
        if msg["is_observed"] or msg["infer"].get("_deterministic") or site_is_subsample(msg):
            return
        if msg["name"] not in self.latents:
            raise ValueError(
                f"expected a value for each latent site; got values for "
                f"{', '.join(map(repr, self.latents))}, but not for {msg['name']!r}"
            )
        value = site_values(msg, self.latents[msg["name"]], self.layout)
        msg["value"], msg["is_observed"] = value, True


def is_latent(site: Site) -> bool:
    """Whether a sample site is latent, i.e. not observed."""
    return not site["is_observed"]


def data_axis(site: Site, ndim: int) -> int:
    """Return the axis of the data plate in a site's value with ``ndim`` dimensions."""
    (dim,) = (f.dim for f in site["cond_indep_stack"] if f.name == PLATE)
    return ndim - site["fn"].event_dim + dim


def particle_values(site: Site, layout: Layout, shape: tuple[int, int]) -> Tensor:
    """Return the value of a site of a run with K particles as ``(K, N, …)``."""
    value: Tensor = site["value"]
    axis = data_axis(site, value.ndim)
    if layout.tiled:
        return value.movedim(axis, 0).unflatten(0, shape)
    return value.movedim(axis, 1)


def site_values(site: Site, value: Tensor, layout: Layout) -> Tensor:
    """Convert ``(K, N, …)`` to the shape of the site; inverse of :func:`particle_values`."""
    if layout.tiled:
        value = value.flatten(0, 1)
        return value.movedim(0, data_axis(site, value.ndim))
    return value.movedim(1, data_axis(site, value.ndim))


def expand_inputs(
    size: int, num_samples: int, layout: Layout, args: tuple, kwargs: Mapping[str, Any]
) -> tuple[tuple, dict[str, Any], Any, int | None]:
    """Expand the arguments of a program for K particles.

    Returns:
        The arguments, the keyword arguments, the particle plate, and its dimension (``None`` if
        tiled).
    """
    if layout.tiled:
        args, tiled = map_batched(
            lambda tensor: torch.cat([tensor] * num_samples), size, args, kwargs
        )
        return args, tiled, nullcontext(), None
    dim = -1 - layout.nesting
    return args, dict(kwargs), pyro.plate(_PARTICLES, num_samples, dim=dim), dim


def log_prob_of(site: Site, particle_dim: int | None, shape: tuple[int, int]) -> Tensor:
    """Return log p of one site, ``(K, N)``, summed over all plates except particles and data.

    Without a particle dimension (``None``) the data dimension has size K · N, particles first.
    """
    log_prob = site["fn"].log_prob(site["value"], *site["args"], **site["kwargs"])
    log_prob = scale_and_mask(log_prob, mask=site["mask"])
    (data_dim,) = (f.dim for f in site["cond_indep_stack"] if f.name == PLATE)
    others = [d for d in range(-log_prob.ndim, 0) if d not in (particle_dim, data_dim)]
    if others:
        log_prob = log_prob.sum(others)
    if particle_dim is None:
        return log_prob.expand(math.prod(shape)).reshape(shape)
    return log_prob.expand(shape)


def map_site(site: Site, function: Callable[[Tensor, int], Tensor]) -> Site:
    """Apply ``function(value, data_dim)`` to the draw of a site of a run without particles."""
    if site["type"] != "sample":
        return site
    (data_dim,) = (f.dim for f in site["cond_indep_stack"] if f.name == PLATE)
    batch_dims = len(site["fn"].batch_shape)
    values = {key: site[key] for key in ("value", "noise") if key in site}
    return {**site} | {k: function(v, data_dim - (v.ndim - batch_dims)) for k, v in values.items()}


def _repeat_draws(site: Site, num_samples: int, layout: Layout) -> Site:
    """Repeat the draw of a site of a run without particles for each particle."""
    if layout.tiled:
        return map_site(site, lambda value, dim: torch.cat([value] * num_samples, dim))
    if site["type"] != "sample":
        return site
    # plates that do not contain the site are between the particle dimension and its own
    missing = (1,) * (layout.nesting - len(site["fn"].batch_shape))
    values = {key: site[key] for key in ("value", "noise") if key in site}
    return {**site} | {
        k: v.reshape(*missing, *v.shape).expand(num_samples, *missing, *v.shape)
        for k, v in values.items()
    }


def has_batch(size: int, values: tuple[Any, ...]) -> bool:
    """Whether any value is a tensor of leading size ``size``."""
    return any(isinstance(v, Tensor) and v.ndim > 0 and len(v) == size for v in values)


def map_batched(
    function: Callable[[Tensor], Tensor], size: int, args: tuple, kwargs: Mapping[str, Any]
) -> tuple[tuple, dict[str, Any]]:
    """Apply a function to all per-datum tensors among the arguments."""

    def apply(value: Any) -> Any:
        return function(value) if has_batch(size, (value,)) else value

    return tuple(map(apply, args)), {key: apply(value) for key, value in kwargs.items()}
