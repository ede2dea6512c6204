"""One run of guide and model, latent site by latent site, dimension by dimension."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ...programs.base import PLATE, Site, sample_sites, trace_program
from ...programs.importance_weights import Layout, find_layout, max_pairs
from ...programs.kl import analytic_kl, site_kl, split_independent, unwrap_independent
from ...programs.particles import expand_inputs, log_prob_of, map_batched, particle_values

__all__ = ["Term", "Terms", "latent_names", "looked_at", "terms"]

#: Numbers that the widest tensor of a run may have.
_MOST_NUMBERS = 1 << 24
#: The share of a run's pairs that a first look takes, which knows no widths yet.
_LOOK = 64


@dataclass(frozen=True)
class Term:
    """What one latent site adds to log q − log p.

    Attributes:
        values: ``(K, N, D)`` if it is a sum over D dimensions, else ``(K, N, 1)``, in nats:
            KL(q ‖ p) given the sites before it where that has a closed form, else
            log q − log p of the draw.
        parted: whether the last dimension is that of the latents, as opposed to their sum.
        closed: whether it is a closed form.
    """

    values: Tensor
    parted: bool
    closed: bool


@dataclass(frozen=True)
class Terms:
    """K particles for each of N data.

    Attributes:
        sites: the :class:`Term` of each latent site, but for noise that is no latent.
        rest: log p of all that is no latent, less log q of the same, ``(K, N)``: log p(x|z).
        log_q: log q of all that the guide drew, noise included, ``(K, N)``.
        latents: all that the guide drew, each ``(K, N, *event)``.
    """

    sites: Mapping[str, Term]
    rest: Tensor
    log_q: Tensor
    latents: Mapping[str, Tensor]

    @property
    def divergence(self) -> Tensor:
        """The terms of all latent sites together, ``(K, N)``."""
        return torch.stack([t.values.sum(2) for t in self.sites.values()]).sum(0)


@torch.no_grad()
def terms(
    model: Callable[..., Any],
    guide: Callable[..., Any],
    *args: Any,
    num_samples: int,
    layout: Layout,
    **kwargs: Any,
) -> Terms:
    """Runs guide and model, ``num_samples`` particles wide.

    A closed form stands for the mean over a site's own draw, which is right only if nothing
    that p is conditioned on is drawn after it: if all sites that the model draws before it
    come before it in the guide, too. Elsewhere the draws are taken at their word.
    """
    size = len(args[0])
    shape = (num_samples, size)
    args, named, plate, dim = expand_inputs(size, num_samples, layout, args, kwargs)
    with plate:
        guided, modelled = map(sample_sites, trace_program(model, guide, args, named))
    names = latent_names(guided, modelled)
    log_p = {name: log_prob_of(site, dim, shape) for name, site in modelled.items()}
    log_q = {name: log_prob_of(site, dim, shape) for name, site in guided.items()}
    zero = next(iter(log_p.values())).new_zeros(shape)
    rest = sum((v for n, v in log_p.items() if n not in names), zero)
    rest = rest - sum((v for n, v in log_q.items() if n not in names), zero)
    ordered = _ordered(list(guided), list(modelled))
    sites = {
        name: _term(guided[name], modelled[name], name in ordered, dim, shape)
        or Term((log_q[name] - log_p[name]).unsqueeze(2), parted=False, closed=False)
        for name in names
    }
    return Terms(
        sites,
        rest,
        sum((log_q[n] for n, site in guided.items() if not site["is_observed"]), zero),
        {n: particle_values(s, layout, shape) for n, s in guided.items() if not s["is_observed"]},
    )


def latent_names(guided: Mapping[str, Site], modelled: Mapping[str, Site]) -> list[str]:
    """The latent sites of both, in the guide's order, but for noise that is no latent."""
    return [
        name
        for name, site in guided.items()
        if name in modelled and not (site["is_observed"] or site["infer"].get("is_noise"))
    ]


def _ordered(guided: list[str], modelled: list[str]) -> set[str]:
    """The sites before which the guide draws all that the model draws before them."""
    common = [name for name in modelled if name in guided]
    return {
        name for i, name in enumerate(common) if {*common[:i]} <= {*guided[: guided.index(name)]}
    }


def _term(q: Site, p: Site, ordered: bool, dim: int | None, shape: tuple[int, int]) -> Term | None:
    """The term of a site that is a sum over dimensions or has a closed form."""
    parted = not (
        unwrap_independent(q["fn"]).event_shape or unwrap_independent(p["fn"]).event_shape
    )
    if parted:
        depth = len(q["fn"].event_shape)
        q, p = ({**site, **split_independent(site)} for site in (q, p))
        dim = None if dim is None else dim - depth
    closed = analytic_kl(*_alike(q, p)) if ordered else None
    if closed is None and not parted:
        return None
    values = site_kl(q, p, analytic=False) if closed is None else closed
    (data_dim,) = (f.dim for f in q["cond_indep_stack"] if f.name == PLATE)
    if dim is None:
        values = values.movedim(data_dim, 0).unflatten(0, shape)
    else:
        values = values.movedim((dim, data_dim), (0, 1))
    values = values.reshape(*shape, -1)
    return Term(values if parted else values.sum(2, keepdim=True), parted, closed is not None)


def _alike(*sites: Site) -> Iterator[Site]:
    """Sites whose distributions have one batch shape: not every formula of torch broadcasts."""
    shape = torch.broadcast_shapes(*(site["fn"].batch_shape for site in sites))
    for site in sites:
        same = site["fn"].batch_shape == shape
        yield site if same else {**site, "fn": site["fn"].expand(shape)}


def looked_at(
    model: Callable[..., Any],
    guide: Callable[..., Any],
    x: Tensor,
    args: tuple,
    kwargs: Mapping[str, Any],
) -> tuple[Layout, int, int]:
    """How to lay particles out, how many (draw, datum) pairs to hold, and the least data at once.

    All data are one block for a guide with parameters for each datum, which wants to see all.
    """
    size = len(x)
    pairs = max_pairs(x)
    block = min(size, max(1, pairs // _LOOK))
    try:
        inputs, named = map_batched(lambda t: t[:block], size, (x, *args), kwargs)
        layout = find_layout(model, guide, *inputs, **named)
        least = 1
    except (RuntimeError, ValueError, IndexError):
        if block >= size:
            raise
        layout, least = find_layout(model, guide, x, *args, **kwargs), size
    return layout, max(1, min(pairs, _MOST_NUMBERS // layout.width)), least
