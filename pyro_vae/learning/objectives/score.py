"""The gradient by how probable draws are, where none goes through them."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from ...particles import Particles

__all__ = ["score_term"]


def score_term(particles: Particles, bound: Callable[[Tensor], Tensor]) -> Tensor | float:
    """Zero, whose gradient is Σ_n Σ_k (L_n − L_n^{−k}) ∇ log q(z_kn), of draws that hold still.

    Those are of sites that are not reparameterised. With it the gradient of a bound L is that
    of the mean over all draws: L^{−k}, the bound with the mean of the other log weights in
    place of the k-th, does not depend on z_k and takes away noise alone. A single draw has no
    others, and no baseline.

    Arguments:
        particles: a run, differentiable.
        bound: what the gradient is of, ``(K, N)`` log weights to ``(N,)``.

    References:
        Variational Inference for Monte Carlo Objectives (Mnih & Rezende, 2016), equations 5
        and 8 to 10. https://arxiv.org/abs/1602.06725
    """
    held = [
        particles.log_q[name]
        for name, draw in particles.latents.items()
        if particles.log_q[name].requires_grad and not draw.requires_grad
    ]
    if not held:
        return 0.0
    log_w = particles.log_weights.detach()
    signal = bound(log_w) - _without_each(log_w, bound)
    term = (signal * torch.stack(held).sum(0)).sum()
    return term - term.detach()


def _without_each(log_weights: Tensor, bound: Callable[[Tensor], Tensor]) -> Tensor:
    """The bound without each draw, ``(K, N)``."""
    count = len(log_weights)
    if count == 1:
        return torch.zeros_like(log_weights)
    # of particle j where k is left out, at [j, k]
    table = log_weights[:, None].expand(count, count, -1)
    left_out = torch.eye(count, dtype=torch.bool, device=log_weights.device)[..., None]
    others = table.masked_fill(left_out, 0.0).sum(0) / (count - 1)
    without = bound(torch.where(left_out, others, table).flatten(1)).unflatten(0, (count, -1))
    # impossible draws alone say nothing; 0 is right, too
    return without.where(without.isfinite(), 0.0)
