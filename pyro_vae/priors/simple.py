"""Priors with independent variables, and the uniform prior on the sphere."""

from __future__ import annotations

import math

import pyro.distributions as dist
import torch
from pyro.distributions.torch_distribution import TorchDistributionMixin as Distribution
from torch import nn

from .. import distributions
from ..core.components import Space
from .base import Prior

__all__ = ["DiagonalNormal", "Laplace", "StandardNormal", "StudentT", "UniformSphere"]


class StandardNormal(Prior):
    """p(z) = N(0, I).

    References:
        Auto-Encoding Variational Bayes (Kingma & Welling, 2013), section 3.
        https://arxiv.org/abs/1312.6114
    """

    loc: torch.Tensor
    scale: torch.Tensor

    def __init__(self, latent_dim: int) -> None:
        super().__init__(latent_dim)
        # buffers follow the module's device and dtype; constants are not saved in the state
        self.register_buffer("loc", torch.zeros(latent_dim), persistent=False)
        self.register_buffer("scale", torch.ones(latent_dim), persistent=False)

    def forward(self) -> Distribution:
        return dist.Normal(self.loc, self.scale).to_event(1)


class DiagonalNormal(Prior):
    """p(z) = N(μ, diag σ²) with learned mean and scale.

    A learned affine layer at the input of the decoder is equivalent. This is the simplest prior
    with parameters, a baseline for richer ones.

    References:
        ELBO surgery: yet another way to carve up the variational evidence lower bound (Hoffman
        & Johnson, 2016), on learned priors.
        http://approximateinference.org/accepted/HoffmanJohnson2016.pdf
    """

    def __init__(self, latent_dim: int) -> None:
        super().__init__(latent_dim)
        self.loc = nn.Parameter(torch.zeros(latent_dim))
        self.log_scale = nn.Parameter(torch.zeros(latent_dim))

    def forward(self) -> Distribution:
        return dist.Normal(self.loc, self.log_scale.exp()).to_event(1)


class Laplace(Prior):
    """p(z) = Π_d Laplace(z_d; 0, 1/√2), with unit variance, sparser than the normal.

    References:
        Sparse-Coding Variational Auto-Encoders (Barello et al., 2018).
        https://doi.org/10.1101/399246
    """

    scale: torch.Tensor

    def __init__(self, latent_dim: int) -> None:
        super().__init__(latent_dim)
        self.register_buffer("scale", torch.full((latent_dim,), 0.5**0.5), persistent=False)

    def forward(self) -> Distribution:
        return dist.Laplace(torch.zeros_like(self.scale), self.scale).to_event(1)


class StudentT(Prior):
    """p(z) = Π_d t_ν(z_d), with heavier tails than the normal.

    Arguments:
        df: degrees of freedom ν.

    Raises:
        ValueError: if ``df`` is not positive and finite.

    References:
        t³-Variational Autoencoder (Kim et al., 2023), with a joint t distribution over all latents.
        https://arxiv.org/abs/2312.01133
    """

    scale: torch.Tensor

    def __init__(self, latent_dim: int, df: float = 5.0) -> None:
        super().__init__(latent_dim)
        if isinstance(df, bool) or not 0 < df < math.inf:
            raise ValueError(f"expected df > 0 and finite; got {df}")
        self.df = df
        self.register_buffer("scale", torch.ones(latent_dim), persistent=False)

    def forward(self) -> Distribution:
        return distributions.StudentT(self.df, torch.zeros_like(self.scale), self.scale).to_event(1)


class UniformSphere(Prior):
    """p(z) = 1 / area(S^{D−1}), uniform on the unit sphere in ℝ^D.

    Raises:
        ValueError: if ``latent_dim`` is below 2.

    References:
        Hyperspherical Variational Auto-Encoders (Davidson et al., 2018).
        https://arxiv.org/abs/1804.00891
    """

    space = Space.SPHERE
    like: torch.Tensor

    def __init__(self, latent_dim: int) -> None:
        super().__init__(distributions.check_sphere_dim(latent_dim))
        self.register_buffer("like", torch.zeros(latent_dim), persistent=False)

    def forward(self) -> Distribution:
        return distributions.UniformSphere(self.like)
