"""One run of a Pyro program, K particles wide."""

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
    """One weighted run: K particles for each of N data.

    Attributes:
        log_p: log-density of every sample site of the model, each ``(K, N)``, in nats.
        log_q: the same for every sample site of the guide.
        latents: the values drawn by the guide, each ``(K, N, *event)``; what further plates
            of a site hold stands between N and the event.
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
    """How a program's particles are laid out.

    Attributes:
        nesting: the depth of the program's own plates.
        tiled: ``False`` for a particle dimension on the left of the plates, which costs
            nothing where nothing depends on it (an encoder runs once for all particles);
            ``True`` to run each datum K times as if it were K data, for programs that do not
            allow another dimension (a ``Conv2d``, a ``softmax(dim=1)``).
        width: the numbers that the widest site holds for one (particle, datum): a categorical
            over 256 levels has as many logits for each pixel.
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
    """Runs guide and model once, ``num_samples`` particles wide; differentiable.

    Scales (of a subsampling plate, of an annealed KL) are devices of training and not part
    of the density: they are left out. Masks stay: a masked observation is not observed.

    Arguments:
        model: a Pyro model with every sample site inside ``pyro.plate("data", N)``.
        guide: its guide.
        *args: handed to both, as are ``**kwargs``; the first is the data, ``(N, …)``.
        num_samples: the number K of particles.
        layout: how to lay them out, from :func:`inspect`.
        draws: sites of one earlier run without particles: every particle repeats its draws.
    """
    size = len(args[0])
    shape = (num_samples, size)
    if draws is not None:
        draws = {name: _repeated(site, num_samples, layout) for name, site in draws.items()}
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
    """The log-density of every sample site of a model, or of a guide, at given latents.

    The sum over a model's sites is log p(x, z), that over a guide's is log q(z|x);
    differentiable by the latents and by the parameters. Scales are left out and masks kept,
    as by :func:`run_particles`.

    Arguments:
        program: the model or the guide, called as ``program(*args, **kwargs)``.
        latents: a value for each of its latent sites, ``(K, N, *event)`` as in
            :attr:`Particles.latents`; others are not looked at.
        *args: the first is the data, ``(N, …)``.
        layout: how to lay the particles out, from :func:`inspect`.

    Returns:
        By site, ``(K, N)``, in nats.

    Raises:
        ValueError: if a latent site is given no value, or if a site has no density at a value
            that it has not drawn itself (a flow without an inverse).
    """
    size = len(args[0])
    shape = (len(next(iter(latents.values()))), size)
    args, kwargs, plate, dim = expand_inputs(size, shape[0], layout, args, kwargs)
    with plate, poutine.trace() as tracer, _Given(latents, layout):
        program(*args, **kwargs)
    sites = sample_sites(cast("dict[str, Site]", prune_subsample_sites(tracer.trace).nodes))
    with _scoring():
        return {name: log_prob_of(site, dim, shape) for name, site in sites.items()}


def guide_scorer(
    guide: Callable[..., Any], *args: Any, layout: Layout = Layout(), **kwargs: Any
) -> Callable[[Mapping[str, Tensor]], Tensor]:
    """log q(z|x) as a function of latents z ``(K, N, *event)``, giving ``(K, N)`` in nats.

    The density of a guide's only site depends on nothing that was drawn, so that such a guide
    runs once for all z to come; its parameters have no gradient then.

    Arguments:
        guide: called as ``guide(*args, **kwargs)``.
        *args: the first is the data, ``(N, …)``.
        layout: how to lay the particles out, from :func:`inspect`.

    Raises:
        ValueError: when called, as for :func:`log_probs_at`.
    """
    size = len(args[0])
    only: dict[int, tuple[Site, int | None] | None] = {}

    @torch.no_grad()
    def run_once(count: int) -> tuple[Site, int | None] | None:
        given_args, named, plate, dim = expand_inputs(size, count, layout, args, kwargs)
        with plate, poutine.trace() as tracer:
            guide(*given_args, **named)
        sites = sample_sites(cast("dict[str, Site]", prune_subsample_sites(tracer.trace).nodes))
        return (next(iter(sites.values())), dim) if len(sites) == 1 else None

    def log_q(latents: Mapping[str, Tensor]) -> Tensor:
        count = len(next(iter(latents.values())))
        if count not in only:
            only[count] = run_once(count)
        known = only[count]
        if known is None:
            terms = log_probs_at(guide, latents, *args, layout=layout, **kwargs)
            return torch.stack(tuple(terms.values())).sum(0)
        site, dim = known
        value = site_values(site, latents[site["name"]], layout)
        with _scoring():
            return log_prob_of({**site, "value": value}, dim, (count, size))

    return log_q


@contextmanager
def _scoring() -> Iterator[None]:
    """Says in one sentence what a density lacks that knows its own draws only."""
    try:
        yield
    except (KeyError, NotImplementedError) as error:
        raise ValueError(
            "expected densities that can be scored at any draw; a flow without an inverse scores "
            "its own memory's only: use another posterior"
        ) from error


class _Given(Messenger):
    """Gives every latent site its value, which counts as observed."""

    def __init__(self, latents: Mapping[str, Tensor], layout: Layout) -> None:
        super().__init__()
        self.latents, self.layout = latents, layout

    def _pyro_sample(self, msg: Any) -> None:
        if msg["is_observed"] or msg["infer"].get("_deterministic") or site_is_subsample(msg):
            return
        if msg["name"] not in self.latents:
            raise ValueError(
                f"expected values for all latent sites; got none for {msg['name']!r}, but for "
                f"{', '.join(map(repr, self.latents))}"
            )
        value = site_values(msg, self.latents[msg["name"]], self.layout)
        msg["value"], msg["is_observed"] = value, True


def is_latent(site: Site) -> bool:
    """Whether a sample site is drawn."""
    return not site["is_observed"]


def data_axis(site: Site, ndim: int) -> int:
    """The axis of a site's value, which has so many, that its data lie along."""
    (dim,) = (f.dim for f in site["cond_indep_stack"] if f.name == PLATE)
    return ndim - site["fn"].event_dim + dim


def particle_values(site: Site, layout: Layout, shape: tuple[int, int]) -> Tensor:
    """The value of a site that was run K particles wide, ``(K, N, …)``."""
    value: Tensor = site["value"]
    axis = data_axis(site, value.ndim)
    if layout.tiled:
        return value.movedim(axis, 0).unflatten(0, shape)
    return value.movedim(axis, 1)


def site_values(site: Site, value: Tensor, layout: Layout) -> Tensor:
    """What :func:`particle_values` gives, ``(K, N, …)``, as the site of such a run has it."""
    if layout.tiled:
        value = value.flatten(0, 1)
        return value.movedim(0, data_axis(site, value.ndim))
    return value.movedim(1, data_axis(site, value.ndim))


def expand_inputs(
    size: int, num_samples: int, layout: Layout, args: tuple, kwargs: Mapping[str, Any]
) -> tuple[tuple, dict[str, Any], Any, int | None]:
    """The arguments, the plate and the dimension of so many particles."""
    if layout.tiled:
        args, tiled = map_batched(
            lambda tensor: torch.cat([tensor] * num_samples), size, args, kwargs
        )
        return args, tiled, nullcontext(), None
    dim = -1 - layout.nesting
    return args, dict(kwargs), pyro.plate(_PARTICLES, num_samples, dim=dim), dim


def log_prob_of(site: Site, particle_dim: int | None, shape: tuple[int, int]) -> Tensor:
    """log p of one site, ``(K, N)``: summed over every plate but the particles' and the data's.

    Without a particle dimension, the data's holds K × N entries, particle by particle.
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


def map_site(site: Site, change: Callable[[Tensor, int], Tensor]) -> Site:
    """A site of a run without particles, its draw changed along the data's dimension."""
    if site["type"] != "sample":
        return site
    (data_dim,) = (f.dim for f in site["cond_indep_stack"] if f.name == PLATE)
    batch_dims = len(site["fn"].batch_shape)
    drawn = {key: site[key] for key in ("value", "noise") if key in site}
    return {**site} | {k: change(v, data_dim - (v.ndim - batch_dims)) for k, v in drawn.items()}


def _repeated(site: Site, num_samples: int, layout: Layout) -> Site:
    """A site of a run without particles, its draw repeated for each of them."""
    if layout.tiled:
        return map_site(site, lambda value, dim: torch.cat([value] * num_samples, dim))
    if site["type"] != "sample":
        return site
    # plates that the site is not in stand between the particles' dimension and its own
    missing = (1,) * (layout.nesting - len(site["fn"].batch_shape))
    drawn = {key: site[key] for key in ("value", "noise") if key in site}
    return {**site} | {
        k: v.reshape(*missing, *v.shape).expand(num_samples, *missing, *v.shape)
        for k, v in drawn.items()
    }


def has_batch(size: int, values: tuple[Any, ...]) -> bool:
    return any(isinstance(v, Tensor) and v.ndim > 0 and len(v) == size for v in values)


def map_batched(
    change: Callable[[Tensor], Tensor], size: int, args: tuple, kwargs: Mapping[str, Any]
) -> tuple[tuple, dict[str, Any]]:
    """Arguments with every per-datum tensor changed."""

    def each(value: Any) -> Any:
        return change(value) if has_batch(size, (value,)) else value

    return tuple(map(each, args)), {key: each(value) for key, value in kwargs.items()}
