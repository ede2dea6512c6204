"""Posteriors on the unit sphere."""

from __future__ import annotations

from pyro.distributions.torch_distribution import TorchDistributionMixin as Distribution
from torch import Tensor
from torch.nn.functional import softplus

from .. import distributions
from ..core.components import Heads, NetworkFactory, Shape, Space
from .base import Posterior

__all__ = ["PowerSpherical"]


class PowerSpherical(Posterior):
    """q(z|x) ∝ (1 + μ(x)ᵀz)^κ(x) on the unit sphere, for the prior ``UniformSphere``.

    The network outputs a vector in the direction of μ, and κ through a softplus, with a minimum
    of 1 so that q has a single smooth mode. The KL divergence is analytic. q vanishes opposite
    to μ, where p(z|x) does not. The ELBO is valid, but for κ ≥ (D − 1)/2 the importance weights
    have infinite variance: L_k increases slowly, and k̂ is large.

    Raises:
        ValueError: if ``latent_dim`` is below 2.

    References:
        The Power Spherical distribution (De Cao & Aziz, 2020). https://arxiv.org/abs/2006.04437
        Hyperspherical Variational Auto-Encoders (Davidson et al., 2018).
        https://arxiv.org/abs/1804.00891
    """

    space = Space.SPHERE

    def __init__(self, event_shape: Shape, latent_dim: int, network: NetworkFactory) -> None:
        super().__init__(event_shape, distributions.check_sphere_dim(latent_dim), network)
        self.network = network(self.event_shape, Heads((latent_dim + 1,), [latent_dim, 1]))

    def forward(self, x: Tensor) -> Distribution:
        out = self.network(x)
        concentration = 1 + softplus(out[..., -1])
        return distributions.PowerSpherical(distributions.unit_vector(out[..., :-1]), concentration)
