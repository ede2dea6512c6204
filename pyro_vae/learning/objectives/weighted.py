"""Objectives that are functions of the importance weights, e.g. the IWAE bound."""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Callable
from typing import Any, Literal

import torch
from torch import Tensor

from ...core.validation import positive_int
from ...programs.particles import Particles, run_particles, total_log_prob
from ...programs.pathwise import run_pathwise
from ..schedules import check_number
from .base import DataPlateChecker, Objective, find_leaf_tensors, restrict_gradient

__all__ = [
    "CIWAE",
    "IWAE",
    "MIWAE",
    "PIWAE",
    "Renyi",
    "WeightObjective",
    "auxiliary_loss",
    "drop_negligible",
    "log_mean_exp",
    "score_function_term",
]

Gradient = Literal["standard", "stl", "dreg"]


#: Weights below exp(−28) / K of the largest of K, which together change a sum or its gradient by
#: less than 10⁻¹², are taken to be zero.
_NEGLIGIBLE = 28.0


def drop_negligible(log_weights: Tensor, dim: int = 0) -> Tensor:
    """Return log weights with −∞ for negligible ones, whose gradient is exactly zero.

    A normalised weight such as e⁻⁹⁰ makes the gradients of all layers below it denormal numbers,
    with which some processors compute many times more slowly.

    Arguments:
        log_weights: log weights, whose dimension ``dim`` has size K.
    """
    values = log_weights.detach()
    limit = values.amax(dim, keepdim=True) - (_NEGLIGIBLE + math.log(values.shape[dim]))
    return log_weights.masked_fill(values < limit, -math.inf)


def log_mean_exp(values: Tensor, dim: int = 0) -> Tensor:
    """Return log 1/K Σ_k exp(values_k) along a dimension of size K (L_K for log weights)."""
    return drop_negligible(values, dim).logsumexp(dim) - math.log(values.shape[dim])


class WeightObjective(Objective):
    """Base class of objectives that are functions of the log weights ``(K, N)``.

    Subclasses define :meth:`bound`, a differentiable function. They support every program that
    :func:`~pyro_vae.log_weights` supports, in training mode as well; each example has one weight
    per sample, however many latent sites there are. Reparameterised samples use the pathwise
    gradient; all others (e.g. discrete latents) use the score function with a leave-one-out
    baseline (VIMCO), which is unbiased for any bound. With ``poutine.scale``, the gradient is that
    of the same function of the scaled log-densities.

    Arguments:
        num_particles: number K of samples per example.

    Raises:
        ValueError: if ``num_particles`` is not a positive integer; at the first step, if the
            program has no weights per example.
    """

    def __init__(self, num_particles: int) -> None:
        super().__init__(positive_int("num_particles", num_particles), vectorize_particles=True)

    @abstractmethod
    def bound(self, log_weights: Tensor) -> Tensor:
        """Return the bound of each example, ``(N,)`` in nats, from log weights ``(K, N)``."""

    def terms(self, model: Any, guide: Any, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        with DataPlateChecker():
            particles = self.run(model, guide, args, kwargs)
        surrogate = self.bound(particles.scaled_log_weights).sum() + self.gradient_term(particles)
        loss = -self.bound(particles.log_weights.detach()).sum()
        return loss, auxiliary_loss(particles) - surrogate

    def run(self, model: Any, guide: Any, args: tuple, kwargs: dict) -> Particles:
        """Run the program with ``num_particles`` particles; differentiable."""
        layout, count = self.layout(model, guide, args, kwargs), self.num_particles
        return run_particles(model, guide, *args, num_samples=count, layout=layout, **kwargs)

    def gradient_term(self, particles: Particles) -> Tensor | float:
        """Return zero, with the gradient that the derivative of the bound itself lacks."""
        return score_function_term(particles, self.bound)


class GroupedObjective(WeightObjective):
    """Base class of averages of m independent L_k, with a choice of gradient estimators.

    Arguments:
        m: number of groups.
        k: number of samples per group.
        gradient: gradient estimator of the guide. ``standard`` differentiates the bound
            directly. ``stl`` drops the score of q at fixed samples: unbiased for k = 1, biased for
            k > 1. ``dreg`` replaces the score by a second reparameterisation: unbiased, with a
            signal-to-noise ratio that does not fall with k.

    Raises:
        ValueError: if a number is not a positive integer or ``gradient`` is unknown; at the first
            step, if ``stl`` or ``dreg`` is not available for the program.
    """

    def __init__(self, m: int, k: int, gradient: Gradient) -> None:
        super().__init__(positive_int("m", m) * positive_int("k", k))
        if gradient not in ("standard", "stl", "dreg"):
            raise ValueError(f"expected gradient to be standard, stl or dreg; got {gradient!r}")
        self.m, self.k, self.gradient = m, k, gradient

    def bound(self, log_weights: Tensor) -> Tensor:
        return log_mean_exp(self._groups(log_weights), 1).mean(0)

    def _groups(self, log_weights: Tensor) -> Tensor:
        return log_weights.unflatten(0, (self.m, self.k))

    def run(self, model: Any, guide: Any, args: tuple, kwargs: dict) -> Particles:
        # the loss alone does not need the additional runs of the guide for its gradient
        if self.gradient == "standard" or not torch.is_grad_enabled():
            return super().run(model, guide, args, kwargs)
        layout, count = self.layout(model, guide, args, kwargs), self.num_particles
        normalized: list[Tensor] = []
        particles = run_pathwise(
            model,
            guide,
            *args,
            num_samples=count,
            layout=layout,
            weight=(lambda: normalized[0]) if self.gradient == "dreg" else None,
            **kwargs,
        )
        # the weights normalised per group are both the first and the second factor of DReG
        log_w = particles.scaled_log_weights.detach()
        normalized.append(drop_negligible(self._groups(log_w), 1).softmax(1).flatten(0, 1))
        return particles


class IWAE(GroupedObjective):
    """Importance weighted bound, L_k = E[log 1/k Σ_i p(x, z_i)/q(z_i|x)] with z_i ~ q(z|x).

    ``gradient`` is that of :class:`GroupedObjective`.

    Arguments:
        k: number of samples.

    References:
        Importance Weighted Autoencoders (Burda et al., 2015), equation 8.
        https://arxiv.org/abs/1509.00519
        Doubly Reparameterized Gradient Estimators for Monte Carlo Objectives (Tucker et al.,
        2018), equation 8. https://arxiv.org/abs/1810.04152
    """

    def __init__(self, k: int = 50, gradient: Gradient = "standard") -> None:
        super().__init__(1, k, gradient)


class MIWAE(GroupedObjective):
    """Average of m independent L_k: the bound of k samples with the noise of m · k samples.

    The arguments are those of :class:`GroupedObjective`.

    References:
        Tighter Variational Bounds are Not Necessarily Better (Rainforth et al., 2018),
        section 5. https://arxiv.org/abs/1802.04537
    """

    def __init__(self, m: int = 8, k: int = 8, gradient: Gradient = "standard") -> None:
        super().__init__(m, k, gradient)


class PIWAE(MIWAE):
    """Partially importance weighted bound: L_{m·k} for the model, MIWAE(m, k) for the guide.

    Both use the same m · k samples. A tight bound helps the model but drowns the gradient signal
    of the guide. A parameter belongs to the guide if q(z|x) depends on it: a ``VampPrior`` uses q,
    so the encoder's weights follow MIWAE(m, k) in the prior too, and the pseudo-inputs follow
    L_{m·k}. The value returned is L_{m·k}. The arguments are those of :class:`GroupedObjective`.

    References:
        Tighter Variational Bounds are Not Necessarily Better (Rainforth et al., 2018),
        section 5. https://arxiv.org/abs/1802.04537
    """

    def bound(self, log_weights: Tensor) -> Tensor:
        return log_mean_exp(log_weights)

    def gradient_term(self, particles: Particles) -> Tensor | float:
        encoder = find_leaf_tensors([*particles.log_q.values(), *particles.latents.values()])
        if not encoder:
            return 0.0
        log_w, bound = particles.scaled_log_weights, super().bound
        difference = bound(log_w).sum() + score_function_term(particles, bound)
        # turns the guide's gradient into that of MIWAE
        return restrict_gradient(difference - self.bound(log_w).sum(), encoder)


class CIWAE(WeightObjective):
    """Combination β ELBO + (1 − β) L_k, both from the same k samples.

    Arguments:
        k: number of samples.
        beta: weight β of the ELBO, in [0, 1].

    Raises:
        ValueError: if ``k`` is not a positive integer or ``beta`` is not in [0, 1].

    References:
        Tighter Variational Bounds are Not Necessarily Better (Rainforth et al., 2018),
        section 5. https://arxiv.org/abs/1802.04537
    """

    def __init__(self, k: int = 50, beta: float = 0.5) -> None:
        super().__init__(positive_int("k", k))
        check_number("beta", beta, maximum=1.0)
        self.k, self.beta = k, beta

    def bound(self, log_weights: Tensor) -> Tensor:
        return self.beta * log_weights.mean(0) + (1 - self.beta) * log_mean_exp(log_weights)


class Renyi(WeightObjective):
    """Rényi bound, 1/(1 − α) log 1/k Σ_i w_i^{1−α}: the ELBO at α = 1, L_k at α = 0.

    A lower bound on log p(x) for α ≥ 0. For α < 0 the limit k → ∞ is an upper bound, but the
    estimate with finite k is biased downwards and may lie on either side.

    Arguments:
        alpha: order α, any real number.
        k: number of samples.

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


def auxiliary_loss(particles: Particles, scored: bool = True) -> Tensor | float:
    """Sum over the examples of the guide's observed sites, averaged over the samples.

    Its gradient is pathwise, and unless ``scored`` is false the score function's for samples that
    are not reparameterised.
    """
    if not particles.auxiliary:
        return 0.0
    values = total_log_prob(particles.auxiliary)
    total = values.mean(0).sum()
    if scored:
        total = total + score_function_term(particles, lambda v: v.mean(0), values)
    return total


def score_function_term(
    particles: Particles, bound: Callable[[Tensor], Tensor], values: Tensor | None = None
) -> Tensor | float:
    """Zero with the score-function gradient Σ_n Σ_k (L_n − L_n^{−k}) ∇ log q(z_kn).

    Covers the sites that are not reparameterised, and makes the gradient of a bound L unbiased.
    The leave-one-out baseline L^{−k}, the bound with the k-th log weight replaced by the mean of
    the others, does not depend on z_k and only reduces the variance. For K = 1 it is zero.
    ``bound`` maps ``values`` ``(K, N)``, the scaled log weights by default, to the ``(N,)``
    bounds. The score log q itself is not scaled.

    References:
        Variational Inference for Monte Carlo Objectives (Mnih & Rezende, 2016), equations 5
        and 8 to 10. https://arxiv.org/abs/1602.06725
    """
    log_q = [
        particles.log_q[name]
        for name, sample in particles.latents.items()
        if particles.log_q[name].requires_grad and not sample.requires_grad
    ]
    if not log_q:
        return 0.0
    values = (particles.scaled_log_weights if values is None else values).detach()
    signal = bound(values) - _leave_one_out(values, bound)
    term = (signal * torch.stack(log_q).sum(0)).sum()
    return term - term.detach()


def _leave_one_out(log_weights: Tensor, bound: Callable[[Tensor], Tensor]) -> Tensor:
    """Return the leave-one-out baseline of each sample, ``(K, N)``."""
    count = len(log_weights)
    if count == 1:
        return torch.zeros_like(log_weights)
    # table[j, k]: log weight of sample j with sample k left out
    table = log_weights[:, None].expand(count, count, -1)
    left_out = torch.eye(count, dtype=torch.bool, device=log_weights.device)[..., None]
    others = table.masked_fill(left_out, 0.0).sum(0) / (count - 1)
    baseline = bound(torch.where(left_out, others, table).flatten(1)).unflatten(0, (count, -1))
    # infinite if all other samples have weight 0; no baseline is unbiased as well
    return baseline.where(baseline.isfinite(), 0.0)
