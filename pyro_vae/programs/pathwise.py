"""Weighted runs whose gradient reaches the guide through its draws alone."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, cast

import torch
from pyro import poutine
from pyro.poutine.util import prune_subsample_sites
from torch import Tensor

from ..compile.trace import is_tracing
from .base import PLATE, Site, empty_program, sample_sites, trace_program
from .importance_weights import Layout, Particles, expand_inputs, log_prob_of

__all__ = ["run_pathwise"]


def run_pathwise(
    model: Callable[..., Any],
    guide: Callable[..., Any],
    *args: Any,
    num_samples: int,
    layout: Layout,
    weight: Callable[[], Tensor] | None = None,
    **kwargs: Any,
) -> Particles:
    """:func:`run`, whose log q moves with the guide's parameters through the draws alone.

    The log-densities have the same values; what their gradient lacks is the score
    ∂ log q(z; φ) / ∂φ at fixed z, whose expectation is zero.

    Arguments:
        model, guide, *args, **kwargs: as for :func:`run`.
        num_samples: the number K of particles.
        layout: how to lay them out, from :func:`inspect`.
        weight: called in the backward pass, gives ``(K, N)`` factors for the gradient by each
            particle's draws, on its way to the guide.

    Raises:
        ValueError: if a site of the guide is not reparameterised, or has no density at a draw
            that is not its own memory's (a flow without an inverse), or if the guide, which
            runs three times, has noise of its own besides its draws.

    References:
        Sticking the Landing (Roeder et al., 2017), equation 8. https://arxiv.org/abs/1703.09194
        Doubly Reparameterized Gradient Estimators (Tucker et al., 2018), equation 8.
        https://arxiv.org/abs/1810.04152
    """
    size = len(args[0])
    shape = (num_samples, size)
    args, kwargs, plate, dim = expand_inputs(size, num_samples, layout, args, kwargs)
    with plate:
        drawn = poutine.trace(guide).get_trace(*args, **kwargs)
    sites = sample_sites(cast("dict[str, Site]", prune_subsample_sites(drawn).nodes))
    latent = {name: site for name, site in sites.items() if not site["is_observed"]}
    for name, site in latent.items():
        if not site["fn"].has_rsample:
            raise ValueError(
                f"expected a guide that is reparameterised; site {name!r} "
                f"({type(site['fn']).__name__}) is not: use gradient 'standard'"
            )
    # copies, so that a draw's weight does not meet the paths between the guide's own sites
    moved = {n: {**s, "value": _weighed(s, weight, dim, shape)} for n, s in latent.items()}
    held = {n: {**s, "value": s["value"].detach()} for n, s in latent.items()}
    try:
        with plate:
            q, p = map(sample_sites, trace_program(model, guide, args, kwargs, moved))
            score, _ = map(sample_sites, trace_program(empty_program, guide, args, kwargs, held))
        log_q = {n: log_prob_of(s, dim, shape) for n, s in q.items()}
        scores = {n: log_prob_of(s, dim, shape) for n, s in score.items()}
    except (KeyError, NotImplementedError) as error:
        raise ValueError(
            "expected a guide with a density at any draw; a flow without an inverse scores its "
            "own memory's only: use gradient 'standard'"
        ) from error
    # a graph is held to an eager run, which looks
    if not is_tracing() and not all(_same(log_q[n], scores[n]) for n in log_q):
        raise ValueError(
            "expected a guide that gives a draw the same density each time it runs; got others, "
            "as of dropout: leave it out of the encoder, or use gradient 'standard'"
        )
    return Particles(
        log_p={name: log_prob_of(site, dim, shape) for name, site in p.items()},
        log_q={n: log_q[n] - scores[n] + scores[n].detach() for n in log_q},
        latents={n: s["value"] for n, s in latent.items()},
    )


def _same(a: Tensor, b: Tensor) -> bool:
    return torch.allclose(a, b, rtol=1e-3, atol=1e-3, equal_nan=True)


def _weighed(
    site: Site, weight: Callable[[], Tensor] | None, particle_dim: int | None, shape: tuple
) -> Tensor:
    """A copy of a draw, the gradient by which is multiplied by its particle's weight."""
    value: Tensor = site["value"]
    copied = value.view_as(value)
    if weight is None or not copied.requires_grad:
        return copied
    event_dims = value.ndim - len(site["fn"].batch_shape)
    (data_dim,) = (f.dim for f in site["cond_indep_stack"] if f.name == PLATE)
    sizes = [1] * value.ndim
    if particle_dim is None:
        sizes[data_dim - event_dims] = math.prod(shape)
    else:
        sizes[particle_dim - event_dims], sizes[data_dim - event_dims] = shape
    copied.register_hook(lambda gradient: gradient * weight().reshape(sizes))
    return copied
