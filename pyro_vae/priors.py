"""Priors p(z): what the latents look like before any datum is seen."""

from __future__ import annotations

import math
from abc import abstractmethod

import pyro.distributions as dist
import torch
from pyro.distributions.torch_distribution import TorchDistributionMixin as Distribution
from torch import nn

from ._component import Component, positive
from .posteriors import Posterior

__all__ = [
    "DiagonalNormal",
    "Laplace",
    "MixtureOfNormals",
    "Prior",
    "StandardNormal",
    "StudentT",
    "VampPrior",
]


class Prior(Component):
    """The base of all priors.

    A new prior defines ``forward() -> Distribution`` with batch shape ``()`` and event
    shape ``(latent_dim,)``; its learned parts are ``nn.Parameter`` s. One that is written
    with the encoder also defines :meth:`bind`.

    Arguments:
        latent_dim: the number of latent variables D.

    Raises:
        ValueError: if ``latent_dim`` is not a positive integer.
    """

    def __init__(self, latent_dim: int) -> None:
        super().__init__()
        self.latent_dim = positive("latent_dim", latent_dim)

    @abstractmethod
    def forward(self) -> Distribution:
        """p(z): batch shape ``()``, event shape ``(latent_dim,)``."""

    def bind(self, posterior: Posterior) -> None:
        """Called once, by the program that owns both, when it is built. Does nothing here."""


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
        # buffers follow the module's device and dtype; constants need no place in a weights file
        self.register_buffer("loc", torch.zeros(latent_dim), persistent=False)
        self.register_buffer("scale", torch.ones(latent_dim), persistent=False)

    def forward(self) -> Distribution:
        return dist.Normal(self.loc, self.scale).to_event(1)


class DiagonalNormal(Prior):
    """p(z) = N(μ, diag σ²), learned.

    A VAE with a learned affine layer at the decoder's entrance could say the same; it is the
    simplest prior with parameters, to compare richer ones with.
    """

    def __init__(self, latent_dim: int) -> None:
        super().__init__(latent_dim)
        self.loc = nn.Parameter(torch.zeros(latent_dim))
        self.log_scale = nn.Parameter(torch.zeros(latent_dim))

    def forward(self) -> Distribution:
        return dist.Normal(self.loc, self.log_scale.exp()).to_event(1)


class Laplace(Prior):
    """p(z) = Π_d Laplace(z_d; 0, 1/√2), of unit variance: sparser than the normal."""

    scale: torch.Tensor

    def __init__(self, latent_dim: int) -> None:
        super().__init__(latent_dim)
        self.register_buffer("scale", torch.full((latent_dim,), 0.5**0.5), persistent=False)

    def forward(self) -> Distribution:
        return dist.Laplace(torch.zeros_like(self.scale), self.scale).to_event(1)


class StudentT(Prior):
    """p(z) = Π_d t_ν(z_d), with heavier tails than the normal.

    Arguments:
        latent_dim: the number of latent variables D.
        df: ν, the degrees of freedom.

    Raises:
        ValueError: if ``df`` is not positive.
    """

    scale: torch.Tensor

    def __init__(self, latent_dim: int, df: float = 5.0) -> None:
        super().__init__(latent_dim)
        if not df > 0:
            raise ValueError(f"expected df > 0; got {df}")
        self.df = df
        self.register_buffer("scale", torch.ones(latent_dim), persistent=False)

    def forward(self) -> Distribution:
        return dist.StudentT(self.df, torch.zeros_like(self.scale), self.scale).to_event(1)


class MixtureOfNormals(Prior):
    """p(z) = Σ_c π_c N(z; μ_c, diag σ_c²), weights, means and scales learned.

    Arguments:
        latent_dim: the number of latent variables D.
        components: the number C of normals.

    References:
        VAE with a VampPrior (Tomczak & Welling, 2018), section 2, "MoG".
        https://arxiv.org/abs/1705.07120
    """

    def __init__(self, latent_dim: int, components: int = 10) -> None:
        super().__init__(latent_dim)
        positive("components", components)
        self.logits = nn.Parameter(torch.zeros(components))
        # spread over N(0, I), or all components would receive the same gradient for ever
        self.loc = nn.Parameter(torch.randn(components, latent_dim))
        self.log_scale = nn.Parameter(torch.zeros(components, latent_dim))

    def forward(self) -> Distribution:
        normals = dist.Normal(self.loc, self.log_scale.exp()).to_event(1)
        return dist.MixtureSameFamily(dist.Categorical(logits=self.logits), normals)


class VampPrior(Prior):
    """p(z) = 1/C Σ_c q(z | u_c): the posterior, averaged over learned pseudo-inputs u.

    The encoder's weights belong to the posterior alone: the prior holds only the
    pseudo-inputs, ``(components, *event_shape)``, made when it is bound to a posterior.

    Arguments:
        latent_dim: the number of latent variables D.
        components: the number C of pseudo-inputs.
        interval: pseudo-inputs are clamped to it, as the authors' code does for images in
            [0, 1]; ``None`` leaves them free, for real-valued data.

    Raises:
        RuntimeError: if used before :meth:`bind`.

    References:
        VAE with a VampPrior (Tomczak & Welling, 2018), equation 9.
        https://arxiv.org/abs/1705.07120
    """

    pseudo_inputs: nn.Parameter

    def __init__(
        self,
        latent_dim: int,
        components: int = 500,
        interval: tuple[float, float] | None = (0.0, 1.0),
    ) -> None:
        super().__init__(latent_dim)
        self.components = positive("components", components)
        if interval is not None and not -math.inf < interval[0] < interval[1] < math.inf:
            raise ValueError(f"expected interval to be (low, high) with low < high; got {interval}")
        self.interval = interval
        self._posterior: tuple[Posterior, ...] = ()

    def bind(self, posterior: Posterior) -> None:
        # in a tuple, so that torch does not register the posterior a second time
        self._posterior = (posterior,)
        low, high = self.interval or (-1.0, 1.0)
        start = low + (high - low) * torch.rand(self.components, *posterior.event_shape)
        self.pseudo_inputs = nn.Parameter(start)

    def forward(self) -> Distribution:
        if not self._posterior:
            raise RuntimeError("VampPrior is written with q(z|x): call bind(posterior) first")
        u = self.pseudo_inputs
        if self.interval is not None:
            u = u.clamp(*self.interval)
        weights = dist.Categorical(logits=torch.zeros_like(u.flatten(1)[:, 0]))
        return dist.MixtureSameFamily(weights, self._posterior[0](u))
