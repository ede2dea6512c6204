"""Posteriors on the unit sphere."""

from __future__ import annotations

from pyro.distributions.torch_distribution import TorchDistributionMixin as Distribution
from torch import Tensor
from torch.nn.functional import softplus

from .. import distributions
from ..core.components import NetworkFactory, Shape, Space
from .base import Posterior

__all__ = ["PowerSpherical"]


class PowerSpherical(Posterior):
    """q(z|x) ∝ (1 + μ(x)ᵀz)^κ(x) on the unit sphere, with the prior ``UniformSphere``.

    The network gives a vector whose direction is μ, and κ through a softplus, at least 1 so
    that q has a single smooth peak; the KL is in closed form. q vanishes opposite to μ, where
    p(z|x) does not: the ELBO is sound, but for κ ≥ (D − 1)/2 importance weights have no
    variance, L_k rises slowly, and k̂ says so.

    Raises:
        ValueError: if ``latent_dim`` is below 2.

    References:
        The Power Spherical distribution (De Cao & Aziz, 2020). https://arxiv.org/abs/2006.04437
        Hyperspherical Variational Auto-Encoders (Davidson et al., 2018).
        https://arxiv.org/abs/1804.00891
    """

    space = Space.SPHERE

    def __init__(self, event_shape: Shape, latent_dim: int, network: NetworkFactory) -> None:
        super().__init__(event_shape, distributions.check_dim(latent_dim), network)
        self.network = network(self.event_shape, (latent_dim + 1,))

    def forward(self, x: Tensor) -> Distribution:
        out = self.network(x)
        concentration = 1 + softplus(out[..., -1])
        return distributions.PowerSpherical(distributions.unit_vector(out[..., :-1]), concentration)
