"""Objectives that are functions of importance weights, as the IWAE's bound is."""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Callable
from typing import Any, Literal

import torch
from torch import Tensor

from ...core.evaluation_mode import eval_mode
from ...core.validation import positive_int
from ...programs.importance_weights import Layout, Particles, find_layout, run_particles
from ...programs.pathwise import run_pathwise
from .base import Objective, PerDatum, leaves

__all__ = [
    "CIWAE",
    "IWAE",
    "MIWAE",
    "PIWAE",
    "Renyi",
    "WeightObjective",
    "log_mean_exp",
    "score_term",
]

Gradient = Literal["standard", "stl", "dreg"]


def log_mean_exp(values: Tensor, dim: int = 0) -> Tensor:
    """log 1/K Σ_k exp(values_k) along a dimension of size K: of log weights, L_K."""
    return values.logsumexp(dim) - math.log(values.shape[dim])


class WeightObjective(Objective):
    """The base of objectives that are functions of the log weights ``(K, N)``.

    A new one defines :meth:`bound`, differentiable. They work on any program on which
    :func:`~pyro_vae.log_weights` does, in training mode too: the weights are per datum,
    whatever the number of latent sites. The gradient of a mean over draws goes through those
    that are reparameterised, and of others, as of a class, it is the score function's with a
    leave-one-out baseline (VIMCO), unbiased for any bound.

    Arguments:
        num_particles: the number K of draws for each datum.

    Raises:
        ValueError: if ``num_particles`` is not a positive integer; when used, if no weights
            per datum exist.

    References:
        Variational Inference for Monte Carlo Objectives (Mnih & Rezende, 2016), equations 5
        and 8 to 10. https://arxiv.org/abs/1602.06725
    """

    def __init__(self, num_particles: int) -> None:
        super().__init__(positive_int("num_particles", num_particles), vectorize_particles=True)

    @abstractmethod
    def bound(self, log_weights: Tensor) -> Tensor:
        """The bound of each datum, ``(N,)`` in nats, of log weights ``(K, N)``."""

    def loss(self, model: Any, guide: Any, *args: Any, **kwargs: Any) -> float:
        with torch.no_grad(), PerDatum():
            particles = self._standard(model, guide, args, kwargs)
            return -float(self.bound(particles.log_weights).sum())

    def differentiable_loss(self, model: Any, guide: Any, *args: Any, **kwargs: Any) -> Tensor:
        with PerDatum():
            return self._surrogate(model, guide, args, kwargs)

    def _surrogate(self, model: Any, guide: Any, args: tuple, kwargs: dict) -> Tensor:
        """Minus the bound, summed over the data, with the gradient of its estimator."""
        return -self._climbed(self._standard(model, guide, args, kwargs), self.bound)

    def _climbed(self, particles: Particles, bound: Callable[[Tensor], Tensor]) -> Tensor:
        """A bound, summed over the data, whose gradient is that of its mean over the draws."""
        return bound(particles.log_weights).sum() + score_term(particles, bound)

    def _standard(self, model: Any, guide: Any, args: tuple, kwargs: dict) -> Particles:
        layout, count = self.layout(model, guide, args, kwargs), self.num_particles
        return run_particles(model, guide, *args, num_samples=count, layout=layout, **kwargs)

    def layout(self, model: Any, guide: Any, args: tuple, kwargs: dict) -> Layout:
        """How this program's particles are laid out; looked at once."""

        def look() -> Layout:
            with eval_mode(model, guide):
                return find_layout(model, guide, *args, **kwargs)

        return self._once(look, model, guide, args, kwargs)


class GroupedObjective(WeightObjective):
    """The base of means over m independent L_k, whose gradient may avoid the score of q.

    Arguments:
        m: the number of groups.
        k: the number of draws in each.
        gradient: how the gradient reaches the guide. ``standard`` differentiates the bound as
            it stands. ``stl`` leaves out the score of q at fixed draws, which is right for
            k = 1 and biased above. ``dreg`` replaces the score by a second
            reparameterisation: unbiased, and of a signal that does not fall with k.

    Raises:
        ValueError: if a number is not a positive integer or ``gradient`` is another word; when
            used, if ``stl`` or ``dreg`` is asked for where it does not exist.
    """

    def __init__(self, m: int, k: int, gradient: Gradient) -> None:
        super().__init__(positive_int("m", m) * positive_int("k", k))
        if gradient not in ("standard", "stl", "dreg"):
            raise ValueError(f"expected gradient to be standard, stl or dreg; got {gradient!r}")
        self.m, self.k, self.gradient = m, k, gradient

    def bound(self, log_weights: Tensor) -> Tensor:
        return log_mean_exp(self._groups(log_weights), 1).mean(0)

    def _surrogate(self, model: Any, guide: Any, args: tuple, kwargs: dict) -> Tensor:
        return -self._climbed(self._particles(model, guide, args, kwargs), self.bound)

    def _groups(self, log_weights: Tensor) -> Tensor:
        return log_weights.unflatten(0, (self.m, self.k))

    def _particles(self, model: Any, guide: Any, args: tuple, kwargs: dict) -> Particles:
        """A run whose gradient reaches the guide as ``gradient`` says."""
        if self.gradient == "standard":
            return self._standard(model, guide, args, kwargs)
        layout, count = self.layout(model, guide, args, kwargs), self.num_particles
        shares: list[Tensor] = []
        particles = run_pathwise(
            model,
            guide,
            *args,
            num_samples=count,
            layout=layout,
            weight=(lambda: shares[0]) if self.gradient == "dreg" else None,
            **kwargs,
        )
        # the weights normalised in their groups are DReG's first factor, and its second
        log_w = particles.log_weights.detach()
        shares.append(self._groups(log_w).softmax(1).flatten(0, 1))
        return particles


class IWAE(GroupedObjective):
    """L_k = E[log 1/k Σ_i p(x, z_i)/q(z_i|x)], z_i ~ q, for each datum by itself.

    Arguments:
        k: the number of draws.
        gradient: ``standard`` differentiates the bound as it stands; ``stl`` leaves out the
            score of q at fixed draws, which is right for k = 1 and biased above; ``dreg``
            replaces it by a second reparameterisation: unbiased, and of a signal that does
            not fall with k.

    Raises:
        ValueError: if ``k`` is not a positive integer or ``gradient`` is another word; when
            used, if ``stl`` or ``dreg`` is asked for where it does not exist.

    References:
        Importance Weighted Autoencoders (Burda et al., 2015), equation 8.
        https://arxiv.org/abs/1509.00519
        Doubly Reparameterized Gradient Estimators for Monte Carlo Objectives (Tucker et al.,
        2018), equation 8. https://arxiv.org/abs/1810.04152
    """

    def __init__(self, k: int = 50, gradient: Gradient = "standard") -> None:
        super().__init__(1, k, gradient)


class MIWAE(GroupedObjective):
    """The mean of m independent L_k: the bound of k draws with the noise of m · k.

    Arguments:
        m: the number of groups.
        k: the number of draws in each.
        gradient: ``standard``, ``stl`` or ``dreg``, as for ``IWAE``.

    Raises:
        ValueError: as for ``IWAE``.

    References:
        Tighter Variational Bounds are Not Necessarily Better (Rainforth et al., 2018),
        section 5. https://arxiv.org/abs/1802.04537
    """

    def __init__(self, m: int = 8, k: int = 8, gradient: Gradient = "standard") -> None:
        super().__init__(m, k, gradient)


class PIWAE(GroupedObjective):
    """L_{m·k}, whose gradient is followed by the model alone; the guide follows MIWAE(m, k).

    Both are of the same m · k draws. The bound that is tight is the better one for the model,
    and the worse one for the guide, whose signal it drowns. A parameter is the guide's if
    q(z|x) depends on it: with a ``VampPrior``, which is made of q, the encoder's weights follow
    MIWAE(m, k) in the prior too, and the pseudo-inputs L_{m·k}. What is returned is L_{m·k}.

    Arguments:
        m: the number of groups.
        k: the number of draws in each.
        gradient: ``standard``, ``stl`` or ``dreg``, as for ``IWAE``; it is the guide's.

    Raises:
        ValueError: as for ``IWAE``.

    References:
        Tighter Variational Bounds are Not Necessarily Better (Rainforth et al., 2018),
        section 5. https://arxiv.org/abs/1802.04537
    """

    def __init__(self, m: int = 8, k: int = 8, gradient: Gradient = "standard") -> None:
        super().__init__(m, k, gradient)

    def bound(self, log_weights: Tensor) -> Tensor:
        return log_mean_exp(log_weights)

    def _surrogate(self, model: Any, guide: Any, args: tuple, kwargs: dict) -> Tensor:
        particles = self._particles(model, guide, args, kwargs)
        loss = -self.bound(particles.log_weights).sum()
        encoder = leaves([*particles.log_q.values(), *particles.latents.values()])
        if not encoder:
            return loss
        change = -self._climbed(particles, super().bound) - loss
        slopes = torch.autograd.grad(change, encoder, retain_graph=True)
        # zeros, whose gradient is what the guide's lacks
        for leaf, slope in zip(encoder, slopes, strict=True):
            loss = loss + ((leaf - leaf.detach()) * slope).sum()
        return loss


class CIWAE(WeightObjective):
    """β ELBO + (1 − β) L_k, both of the same k draws.

    Arguments:
        k: the number of draws.
        beta: β, in [0, 1].

    Raises:
        ValueError: if ``k`` is not a positive integer or ``beta`` is not in [0, 1].

    References:
        Tighter Variational Bounds are Not Necessarily Better (Rainforth et al., 2018),
        section 5. https://arxiv.org/abs/1802.04537
    """

    def __init__(self, k: int = 50, beta: float = 0.5) -> None:
        super().__init__(positive_int("k", k))
        if isinstance(beta, bool) or not 0 <= beta <= 1:
            raise ValueError(f"expected beta in [0, 1]; got {beta!r}")
        self.k, self.beta = k, beta

    def bound(self, log_weights: Tensor) -> Tensor:
        return self.beta * log_weights.mean(0) + (1 - self.beta) * log_mean_exp(log_weights)


class Renyi(WeightObjective):
    """1/(1 − α) log 1/k Σ_i w_i^{1−α}: α = 1 is the ELBO, α = 0 is L_k.

    A lower bound of log p(x) for α ≥ 0; for α < 0 it is one only in part, because a finite k
    pulls it down and the true bound lies above.

    Arguments:
        alpha: α, any real number.
        k: the number of draws.

    Raises:
        ValueError: if ``k`` is not a positive integer or ``alpha`` is not finite.

    References:
        Rényi Divergence Variational Inference (Li & Turner, 2016), equation 14.
        https://arxiv.org/abs/1602.02311
    """

    def __init__(self, alpha: float = 0.5, k: int = 50) -> None:
        super().__init__(positive_int("k", k))
        if isinstance(alpha, bool) or not math.isfinite(alpha):
            raise ValueError(f"expected alpha to be a finite number; got {alpha!r}")
        self.alpha, self.k = alpha, k

    def bound(self, log_weights: Tensor) -> Tensor:
        power = 1 - self.alpha
        if power == 0:
            return log_weights.mean(0)
        return log_mean_exp(power * log_weights) / power


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
