"""Weighted runs with pathwise gradients (sticking the landing)."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ..compiler.trace import is_tracing
from .base import Site, data_dim, empty_program, is_latent
from .particles import Layout, ParticleBatch, Particles, scoring_errors

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
        model, guide, *args, num_samples, layout, **kwargs: as for
            :func:`~.particles.run_particles`.
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
    batch = ParticleBatch(num_samples, layout, args, kwargs)
    latent = {name: site for name, site in batch.trace(guide).items() if is_latent(site)}
    for name, site in latent.items():
        if not site["fn"].has_rsample:
            raise ValueError(
                f"expected a reparameterised guide; got site {name!r} "
                f"({type(site['fn']).__name__}), which is not: use gradient 'standard'"
            )
    # copies, so that the weights do not scale gradients between sites of the guide
    weighted = {n: {**s, "value": _weight_draw(s, weight, batch)} for n, s in latent.items()}
    detached = {n: {**s, "value": s["value"].detach()} for n, s in latent.items()}
    with scoring_errors("use gradient 'standard'"):
        q, p = batch.trace_program(model, guide, weighted)
        score, _ = batch.trace_program(empty_program, guide, detached)
        log_q, scores = batch.log_probs(q), batch.log_probs(score)
    # during tracing the values are unknown; the eager run has checked them
    if not is_tracing() and not all(
        torch.allclose(log_q[n], scores[n], rtol=1e-3, atol=1e-3, equal_nan=True) for n in log_q
    ):
        raise ValueError(
            "expected a guide with the same density for a sample in each run; got different "
            "densities (dropout?): remove dropout from the encoder, or use gradient 'standard'"
        )
    return Particles(
        log_p=batch.log_probs(p),
        log_q={n: log_q[n] - scores[n] + scores[n].detach() for n in log_q},
        latents=batch.latents(latent),
    )


def _weight_draw(site: Site, weight: Callable[[], Tensor] | None, batch: ParticleBatch) -> Tensor:
    """Copy a draw so that its gradient is multiplied by the weight of its particle."""
    value: Tensor = site["value"]
    copy = value.view_as(value)
    if weight is None or not copy.requires_grad:
        return copy
    event_dims = value.ndim - len(site["fn"].batch_shape)
    sizes = [1] * value.ndim
    if batch.dim is None:
        sizes[data_dim(site) - event_dims] = math.prod(batch.shape)
    else:
        sizes[batch.dim - event_dims], sizes[data_dim(site) - event_dims] = batch.shape
    copy.register_hook(lambda gradient: gradient * weight().reshape(sizes))
    return copy
