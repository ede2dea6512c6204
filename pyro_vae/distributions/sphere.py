"""Distributions on the unit sphere S^{D−1} ⊂ ℝ^D, with densities in the surface measure."""

from __future__ import annotations

import math
from typing import Any

import torch
from pyro.distributions import TorchDistribution, constraints
from torch import Tensor
from torch.distributions import Dirichlet, register_kl
from torch.nn.functional import normalize

from ..core.validation import positive_int

__all__ = ["PowerSpherical", "UniformSphere", "check_sphere_dim", "log_sphere_area", "unit_vector"]


class UniformSphere(TorchDistribution):
    """Uniform distribution on the sphere, with density 1 / area(S^{D−1}).

    Arguments:
        like: a tensor ``(*batch, D)`` that sets the shape, dtype and device.
    """

    arg_constraints = {}  # type: ignore[assignment] # noqa: RUF012
    support = constraints.sphere  # type: ignore[assignment]
    has_rsample = True

    def __init__(self, like: Tensor, validate_args: bool | None = None) -> None:
        self._like = like
        super().__init__(like.shape[:-1], like.shape[-1:], validate_args=validate_args)

    def expand(self, batch_shape: Any, _instance: Any = None) -> UniformSphere:
        return UniformSphere(self._like.expand(*batch_shape, *self.event_shape), False)

    @property
    def mean(self) -> Tensor:
        """The centre of the ball, which does not lie on the sphere."""
        return torch.zeros_like(self._like)

    def rsample(self, sample_shape: Any = ()) -> Tensor:
        return normalize(self._like.new_empty(self._extended_shape(sample_shape)).normal_(), dim=-1)

    def log_prob(self, value: Tensor) -> Tensor:
        if self._validate_args:
            self._validate_sample(value)
        # zero times the value, for its shape
        return (0.0 * value).sum(-1).expand(value.shape[:-1]) - log_sphere_area(self.event_shape[0])

    def entropy(self) -> Tensor:
        return self._like.new_full(self.batch_shape, log_sphere_area(self.event_shape[0]))


class PowerSpherical(TorchDistribution):
    """p(z) ∝ (1 + μᵀz)^κ on the sphere: similar to von Mises–Fisher, sampled without rejection.

    Arguments:
        loc: μ, unit vectors ``(*batch, D)``, D ≥ 2.
        concentration: κ > 0, ``(*batch,)``.

    References:
        The Power Spherical distribution (De Cao & Aziz, 2020), equations 8, 12 and 16.
        https://arxiv.org/abs/2006.04437
    """

    arg_constraints = {  # type: ignore[assignment] # noqa: RUF012
        "loc": constraints.sphere,
        "concentration": constraints.positive,
    }
    support = constraints.sphere  # type: ignore[assignment]
    has_rsample = True

    def __init__(
        self, loc: Tensor, concentration: Tensor, validate_args: bool | None = None
    ) -> None:
        batch_shape = torch.broadcast_shapes(loc.shape[:-1], concentration.shape)
        self.loc = loc.expand(*batch_shape, -1)
        self.concentration = concentration.expand(batch_shape)
        super().__init__(batch_shape, loc.shape[-1:], validate_args=validate_args)

    def expand(self, batch_shape: Any, _instance: Any = None) -> PowerSpherical:
        loc = self.loc.expand(*batch_shape, *self.event_shape)
        return PowerSpherical(loc, self.concentration.expand(batch_shape), False)

    @property
    def _beta(self) -> tuple[Tensor, Tensor]:
        """Parameters α and β of (1 + μᵀz)/2 ~ Beta(α, β)."""
        half = (self.event_shape[0] - 1) / 2
        return half + self.concentration, torch.full_like(self.concentration, half)

    @property
    def mean(self) -> Tensor:
        """E[z] = μ (α − β)/(α + β), inside the ball."""
        alpha, beta = self._beta
        return self.loc * ((alpha - beta) / (alpha + beta)).unsqueeze(-1)

    @property
    def _log_normalizer(self) -> Tensor:
        """log ∫ ((1 + μᵀz)/2)^κ dz, in float64 because the gamma terms nearly cancel."""
        alpha, beta = (part.double() for part in self._beta)
        log_gammas = torch.lgamma(alpha) - torch.lgamma(alpha + beta)
        return 2 * beta * math.log(2) + beta * math.log(math.pi) + log_gammas

    def rsample(self, sample_shape: Any = ()) -> Tensor:
        shape = self._extended_shape(sample_shape)
        # sample both (1 ± cos)/2: one minus the other would lose precision near μ
        halves = Dirichlet(torch.stack(self._beta, -1).expand(*shape[:-1], 2)).rsample()
        up, down = halves[..., :1], halves[..., 1:]
        direction = normalize(self.loc.new_empty(*shape[:-1], shape[-1] - 1).normal_(), dim=-1)
        tiny = torch.finfo(halves.dtype).tiny
        tangent = 2 * (up * down).clamp_min(tiny).sqrt() * direction
        # reflect the first axis, or its opposite if that is farther away, onto μ
        sign = torch.where(self.loc[..., :1] > 0, -1.0, 1.0)
        z = torch.cat([sign * (up - down), tangent], -1)
        axis = torch.cat([sign, torch.zeros_like(self.loc[..., 1:])], -1)
        normal = normalize(axis - self.loc, dim=-1)
        return normalize(z - 2 * (normal * z).sum(-1, keepdim=True) * normal, dim=-1)

    def log_prob(self, value: Tensor) -> Tensor:
        if self._validate_args:
            self._validate_sample(value)
        # (1 + μᵀz)/2 = 1 − |μ − z|²/4, accurate near μ; clamped to avoid log 0
        below = (self.loc - value).square().sum(-1) / 4
        below = below.clamp_max(1 - torch.finfo(below.dtype).eps)
        log_prob = self.concentration * torch.log1p(-below)
        return log_prob - self._log_normalizer.to(log_prob.dtype)

    def entropy(self) -> Tensor:
        """Entropy in nats, ``(*batch,)``."""
        alpha, beta = (part.double() for part in self._beta)
        mean_log = torch.digamma(alpha) - torch.digamma(alpha + beta)
        entropy = self._log_normalizer - self.concentration.double() * mean_log
        return entropy.to(self.loc.dtype)


def unit_vector(x: Tensor) -> Tensor:
    """Return x / |x| along the last dimension, or an arbitrary unit vector where x is zero."""
    is_zero = x.square().sum(-1, keepdim=True) < torch.finfo(x.dtype).tiny
    return normalize(torch.where(is_zero, 1.0, x), dim=-1)


def log_sphere_area(dim: int) -> float:
    """Return the logarithm of the surface area of S^{D−1}, for D = ``dim``."""
    return math.log(2) + dim / 2 * math.log(math.pi) - math.lgamma(dim / 2)


def check_sphere_dim(latent_dim: int) -> int:
    """Return ``latent_dim``; raise a ``ValueError`` below 2, where the sphere is not connected."""
    if positive_int("latent_dim", latent_dim) < 2:
        raise ValueError("expected latent_dim ≥ 2 for latents on the unit sphere; got 1")
    return latent_dim


@register_kl(PowerSpherical, UniformSphere)
def _kl_power_spherical_uniform(q: PowerSpherical, p: UniformSphere) -> Tensor:
    return log_sphere_area(q.event_shape[0]) - q.entropy()
