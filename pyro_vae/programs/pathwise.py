"""Weighted runs with pathwise gradients (sticking the landing)."""

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
    """:func:`~.particles.run_particles` with a gradient that omits the score of the guide.

    The log-densities have the same values. Their gradient lacks the score function
    ∂ log q(z; φ) / ∂φ at fixed z, whose expectation is zero: log q depends on the guide's
    parameters only through the samples.

    Arguments:
        model, guide, *args, **kwargs: as for :func:`~.particles.run_particles`.
        num_samples: the number K of particles.
        layout: layout of the particles, from :func:`~.importance_weights.find_layout`.
        weight: called in the backward pass; returns factors ``(K, N)`` for the gradient that
            flows through the samples of each particle to the guide.

    Raises:
        ValueError: if a site of the guide is not reparameterised or can only score its own
            samples (a flow without an inverse), or if the guide, which runs three times, has
            other noise than its samples, such as dropout.

    References:
        Sticking the Landing (Roeder et al., 2017), equation 8. https://arxiv.org/abs/1703.09194
        Doubly Reparameterized Gradient Estimators (Tucker et al., 2018), equation 8.
        https://arxiv.org/abs/1810.04152
    """
    size = len(args[0])
    shape = (num_samples, size)
    args, kwargs, plate, dim = expand_inputs(size, num_samples, layout, args, kwargs)
    with plate:
        trace = poutine.trace(guide).get_trace(*args, **kwargs)
    sites = sample_sites(cast("dict[str, Site]", prune_subsample_sites(trace).nodes))
    latent = {name: site for name, site in sites.items() if not site["is_observed"]}
    for name, site in latent.items():
        if not site["fn"].has_rsample:
            raise ValueError(
                f"expected a reparameterised guide; got site {name!r} "
                f"({type(site['fn']).__name__}), which is not: use gradient 'standard'"
            )
    # copies, so that the weights do not scale gradients between sites of the guide
    weighted = {n: {**s, "value": _weight_draw(s, weight, dim, shape)} for n, s in latent.items()}
    detached = {n: {**s, "value": s["value"].detach()} for n, s in latent.items()}
    try:
        with plate:
            q, p = map(sample_sites, trace_program(model, guide, args, kwargs, weighted))
            score, _ = map(
                sample_sites, trace_program(empty_program, guide, args, kwargs, detached)
            )
        log_q = {n: log_prob_of(s, dim, shape) for n, s in q.items()}
        scores = {n: log_prob_of(s, dim, shape) for n, s in score.items()}
    except (KeyError, NotImplementedError) as error:
        raise ValueError(
            "expected a guide whose density can be evaluated anywhere; got a flow without an "
            "inverse, which only scores its own samples: use gradient 'standard'"
        ) from error
    # during tracing the values are unknown; the eager run has checked them
    if not is_tracing() and not all(_densities_match(log_q[n], scores[n]) for n in log_q):
        raise ValueError(
            "expected a guide with the same density for a sample in each run; got different "
            "densities (dropout?): remove dropout from the encoder, or use gradient 'standard'"
        )
    return Particles(
        log_p={name: log_prob_of(site, dim, shape) for name, site in p.items()},
        log_q={n: log_q[n] - scores[n] + scores[n].detach() for n in log_q},
        latents={n: s["value"] for n, s in latent.items()},
    )


def _densities_match(a: Tensor, b: Tensor) -> bool:
    return torch.allclose(a, b, rtol=1e-3, atol=1e-3, equal_nan=True)


def _weight_draw(
    site: Site, weight: Callable[[], Tensor] | None, particle_dim: int | None, shape: tuple
) -> Tensor:
    """Copy a draw so that its gradient is multiplied by the weight of its particle."""
    value: Tensor = site["value"]
    copy = value.view_as(value)
    if weight is None or not copy.requires_grad:
        return copy
    event_dims = value.ndim - len(site["fn"].batch_shape)
    (data_dim,) = (f.dim for f in site["cond_indep_stack"] if f.name == PLATE)
    sizes = [1] * value.ndim
    if particle_dim is None:
        sizes[data_dim - event_dims] = math.prod(shape)
    else:
        sizes[particle_dim - event_dims], sizes[data_dim - event_dims] = shape
    copy.register_hook(lambda gradient: gradient * weight().reshape(sizes))
    return copy
