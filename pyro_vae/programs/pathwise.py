"""Weighted runs with pathwise gradients (sticking the landing)."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from ..compiler.trace import is_tracing
from .base import Site, data_dim, empty_program, is_latent
from .particles import Layout, ParticleBatch, Particles, scale_in_data, scoring_errors, weigh

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
        weight: called in the backward pass; returns weights ``(K, N)`` for the gradient that
            flows through the samples of each particle to the guide. A weight w replaces the score
            of a guide without ``poutine.scale``; at scale s, 1 − s (1 − w) does.

    Raises:
        ValueError: if a site of the guide is not reparameterised or can only score its own
            samples (a flow without an inverse), if the guide, which runs three times, has other
            noise than its samples, such as dropout, or if there is a ``weight`` and the guide's
            sites have different scales.

    References:
        Sticking the Landing (Roeder et al., 2017), equation 8. https://arxiv.org/abs/1703.09194
        Doubly Reparameterized Gradient Estimators (Tucker et al., 2018), equation 8.
        https://arxiv.org/abs/1810.04152
    """
    batch = ParticleBatch(num_samples, layout, args, kwargs)
    first = batch.trace(guide)
    latent = {name: site for name, site in first.items() if is_latent(site)}
    for name, site in latent.items():
        if not site["fn"].has_rsample:
            raise ValueError(
                f"expected a reparameterised guide; got site {name!r} "
                f"({type(site['fn']).__name__}), which is not: use gradient 'standard'"
            )
    # copies, so that the weights do not scale gradients between sites of the guide
    if weight is not None:
        _check_scales(latent)
    weighted = {n: {**s, "value": _weight_draw(s, weight, batch)} for n, s in latent.items()}
    detached = {n: {**s, "value": s["value"].detach()} for n, s in latent.items()}
    with scoring_errors("use gradient 'standard'"):
        q, p = batch.trace_program(model, guide, weighted)
        score, _ = batch.trace_program(empty_program, guide, detached)
        # observed sites of the guide are not part of its density: their gradient has no weights
        observed = {name: site for name, site in first.items() if name not in latent}
        run = weigh(batch, {**{n: q[n] for n in latent}, **observed}, p, batch.latents(latent))
        scores = weigh(batch, score, {}, run.latents)
    # during tracing the values are unknown; the eager run has checked them
    if not is_tracing() and not all(
        torch.allclose(run.log_q[n], scores.log_q[n], rtol=1e-3, atol=1e-3, equal_nan=True)
        for n in latent
    ):
        raise ValueError(
            "expected a guide with the same density for a sample in each run; got different "
            "densities (dropout?): remove dropout from the encoder, or use gradient 'standard'"
        )
    return replace(
        run,
        log_q=_drop_gradient(run.log_q, scores.log_q),
        scaled_log_q=_drop_gradient(run.scaled_log_q, scores.scaled_log_q),
    )


def _drop_gradient(terms: Mapping[str, Tensor], scores: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Subtract the gradient of the scores from that of the terms, without changing values."""
    return {name: term - scores[name] + scores[name].detach() for name, term in terms.items()}


def _check_scales(latent: Mapping[str, Site]) -> None:
    """Raise if sites have different scales: their scores would need different weights."""
    first, *others = (torch.as_tensor(scale_in_data(site)) for site in latent.values())
    if not is_tracing() and not all(torch.equal(first, other) for other in others):
        raise ValueError(
            f"expected one poutine.scale for all latent sites of the guide with gradient 'dreg'; "
            f"got different ones for {', '.join(map(repr, latent))}: use gradient 'standard'"
        )


def _weight_draw(site: Site, weight: Callable[[], Tensor] | None, batch: ParticleBatch) -> Tensor:
    """Copy a draw so that its gradient is multiplied by a weight w, or 1 − s (1 − w) at scale s."""
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
    scale = scale_in_data(site)
    if isinstance(scale, Tensor):
        scale = scale.reshape([*scale.shape, *[1] * event_dims])

    def multiply(gradient: Tensor) -> Tensor:
        factor = weight().reshape(sizes)
        if isinstance(scale, Tensor) or scale != 1:
            factor = 1 - scale * (1 - factor)
        return gradient * factor

    copy.register_hook(multiply)
    return copy
