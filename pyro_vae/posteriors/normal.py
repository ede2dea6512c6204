"""Normal posteriors with diagonal, full or low-rank covariance."""

from __future__ import annotations

import pyro.distributions as dist
import torch
from pyro.distributions.torch_distribution import TorchDistributionMixin as Distribution

from .. import distributions
from ..core.components import Heads, NetworkFactory, Shape
from ..core.validation import positive_int
from .base import Posterior

__all__ = ["DiagonalNormal", "FullCovarianceNormal", "LowRankNormal"]


class DiagonalNormal(Posterior):
    """q(z|x) = N(μ(x), diag σ(x)²), where the network outputs μ and log σ.

    Arguments:
        log_variance: whether the network outputs log σ² in place of log σ, as in AEVB. The family
            is the same, but the gradient of the output is half as large. With an optimizer whose
            steps do not depend on the scale of the gradient, log σ moves half as fast.

    Raises:
        ValueError: if ``log_variance`` is not a boolean.

    References:
        Auto-Encoding Variational Bayes (Kingma & Welling, 2013), equation 9.
        https://arxiv.org/abs/1312.6114
    """

    def __init__(
        self,
        event_shape: Shape,
        latent_dim: int,
        network: NetworkFactory,
        log_variance: bool = False,
    ) -> None:
        super().__init__(event_shape, latent_dim, network)
        if not isinstance(log_variance, bool):
            raise ValueError(f"expected log_variance to be true or false; got {log_variance!r}")
        self.log_variance = log_variance
        self.network = network(self.event_shape, Heads((2, latent_dim)))

    def forward(self, x: torch.Tensor) -> Distribution:
        loc, log_scale = self.network(x).unbind(-2)
        if self.log_variance:
            log_scale = log_scale / 2
        return dist.Normal(loc, log_scale.exp()).to_event(1)


class FullCovarianceNormal(Posterior):
    """q(z|x) = N(μ(x), L(x) L(x)ᵀ), where the network outputs μ and the lower triangle of L.

    The diagonal of L is the exponential of the network's output. The entries below it are
    divided by √D, so that the covariance of an untrained network is nearly diagonal for any D.

    References:
        An Introduction to Variational Autoencoders (Kingma & Welling, 2019), section 2.5.1.
        https://arxiv.org/abs/1906.02691
    """

    def __init__(self, event_shape: Shape, latent_dim: int, network: NetworkFactory) -> None:
        super().__init__(event_shape, latent_dim, network)
        # one row for μ, one for log diag L, and D for L below its diagonal
        sizes = [latent_dim, latent_dim, latent_dim**2]
        self.network = network(self.event_shape, Heads((2 + latent_dim, latent_dim), sizes))

    def forward(self, x: torch.Tensor) -> Distribution:
        out = self.network(x)
        loc, log_diagonal, lower = out[..., 0, :], out[..., 1, :], out[..., 2:, :]
        scale_tril = lower.tril(-1) / self.latent_dim**0.5 + log_diagonal.exp().diag_embed()
        return distributions.MultivariateNormal(loc, scale_tril=scale_tril)


class LowRankNormal(Posterior):
    """q(z|x) = N(μ(x), W(x) W(x)ᵀ + diag σ(x)²), with a low-rank factor W.

    Arguments:
        rank: number of columns of W.

    Raises:
        ValueError: if ``rank`` is not a positive integer.

    References:
        Stochastic Backpropagation and Approximate Inference in Deep Generative Models
        (Rezende et al., 2014), section 4.3. https://arxiv.org/abs/1401.4082
    """

    def __init__(
        self, event_shape: Shape, latent_dim: int, network: NetworkFactory, rank: int = 2
    ) -> None:
        super().__init__(event_shape, latent_dim, network)
        sizes = [latent_dim, latent_dim, positive_int("rank", rank) * latent_dim]
        self.network = network(self.event_shape, Heads((2 + rank, latent_dim), sizes))

    def forward(self, x: torch.Tensor) -> Distribution:
        out = self.network(x)
        loc, log_scale, factor = out[..., 0, :], out[..., 1, :], out[..., 2:, :]
        return distributions.LowRankMultivariateNormal(loc, factor.mT, (2 * log_scale).exp())
