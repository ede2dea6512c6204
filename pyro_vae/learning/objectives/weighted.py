"""Objectives that are functions of importance weights, as the IWAE's bound is."""

from __future__ import annotations

import math
from abc import abstractmethod
from typing import Any, Literal

import torch
from torch import Tensor

from ..._component import positive
from ..._programs import evaluating
from ...particles import Layout, inspect, run
from ...pathwise import run_pathwise
from .base import Objective

__all__ = ["CIWAE", "IWAE", "MIWAE", "Renyi", "WeightObjective"]

Gradient = Literal["standard", "stl", "dreg"]


class WeightObjective(Objective):
    """The base of objectives that are functions of the log weights ``(K, N)``.

    A new one defines :meth:`bound`, differentiable. They work on any program on which
    :func:`~pyro_vae.log_weights` does: the weights are per datum, whatever the number of
    latent sites.

    Arguments:
        num_particles: the number K of draws for each datum.

    Raises:
        ValueError: if ``num_particles`` is not a positive integer.
    """

    def __init__(self, num_particles: int) -> None:
        super().__init__(positive("num_particles", num_particles), vectorize_particles=True)
        self._seen: tuple[Any, Any, Layout] | None = None

    @abstractmethod
    def bound(self, log_weights: Tensor) -> Tensor:
        """The bound of each datum, ``(N,)`` in nats, of log weights ``(K, N)``."""

    def loss(self, model: Any, guide: Any, *args: Any, **kwargs: Any) -> float:
        with torch.no_grad():
            return float(self._standard(model, guide, args, kwargs))

    def differentiable_loss(self, model: Any, guide: Any, *args: Any, **kwargs: Any) -> Tensor:
        return self._standard(model, guide, args, kwargs)

    def _standard(self, model: Any, guide: Any, args: tuple, kwargs: dict) -> Tensor:
        layout = self.layout(model, guide, args, kwargs)
        count = self.num_particles
        particles = run(model, guide, *args, num_samples=count, layout=layout, **kwargs)
        return -self.bound(particles.log_weights).sum()

    def layout(self, model: Any, guide: Any, args: tuple, kwargs: dict) -> Layout:
        """How this program's particles are laid out; looked at once."""
        # compared by ==, because vae.model is a new bound method at every access
        if self._seen is None or self._seen[:2] != (model, guide):
            with evaluating(model, guide):
                self._seen = (model, guide, inspect(model, guide, *args, **kwargs))
        return self._seen[2]


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
        super().__init__(positive("m", m) * positive("k", k))
        if gradient not in ("standard", "stl", "dreg"):
            raise ValueError(f"expected gradient to be standard, stl or dreg; got {gradient!r}")
        self.m, self.k, self.gradient = m, k, gradient

    def bound(self, log_weights: Tensor) -> Tensor:
        groups = log_weights.unflatten(0, (self.m, self.k))
        return groups.logsumexp(1).mean(0) - math.log(self.k)

    def differentiable_loss(self, model: Any, guide: Any, *args: Any, **kwargs: Any) -> Tensor:
        if self.gradient == "standard":
            return self._standard(model, guide, args, kwargs)
        shares: list[Tensor] = []
        particles = run_pathwise(
            model,
            guide,
            *args,
            num_samples=self.num_particles,
            layout=self.layout(model, guide, args, kwargs),
            weight=(lambda: shares[0]) if self.gradient == "dreg" else None,
            **kwargs,
        )
        log_w = particles.log_weights
        bound = self.bound(log_w).sum()
        if log_w.requires_grad:
            # the weights normalised in their groups are DReG's first factor, and its second
            (share,) = torch.autograd.grad(bound, log_w, retain_graph=True)
            shares.append(self.m * share)
        return -bound


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
        super().__init__(positive("k", k))
        if isinstance(beta, bool) or not 0 <= beta <= 1:
            raise ValueError(f"expected beta in [0, 1]; got {beta!r}")
        self.k, self.beta = k, beta

    def bound(self, log_weights: Tensor) -> Tensor:
        tight = log_weights.logsumexp(0) - math.log(len(log_weights))
        return self.beta * log_weights.mean(0) + (1 - self.beta) * tight


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
        super().__init__(positive("k", k))
        if isinstance(alpha, bool) or not math.isfinite(alpha):
            raise ValueError(f"expected alpha to be a finite number; got {alpha!r}")
        self.alpha, self.k = alpha, k

    def bound(self, log_weights: Tensor) -> Tensor:
        power = 1 - self.alpha
        if power == 0:
            return log_weights.mean(0)
        return ((power * log_weights).logsumexp(0) - math.log(len(log_weights))) / power
