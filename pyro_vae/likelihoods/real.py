"""Likelihoods of real values: a location and a scale for every pixel."""

from __future__ import annotations

from abc import abstractmethod
from typing import Literal

import pyro.distributions as dist
import torch
from pyro.distributions.torch_distribution import TorchDistributionMixin as Distribution
from torch import nn

from .._component import NetworkFactory, Shape
from .base import Likelihood

__all__ = ["Gaussian", "Laplace", "StudentT"]


class LocationScale(Likelihood):
    """The base of likelihoods with a location μ_i(z) and a scale σ_i; it says what σ may be.

    A new one defines :meth:`family`.

    Arguments:
        latent_dim: the number of latent variables D.
        event_shape: the shape of one datum.
        network: the factory of the decoder.
        scale: σ. A number fixes it; ``"learned"`` is one free parameter for all pixels,
            ``"per_pixel"`` one for each pixel, ``"decoded"`` a function σ_i(z) of the
            decoder, as in AEVB.
        mean: ``"identity"``, or ``"sigmoid"`` to keep μ in (0, 1), as AEVB does for faces.
        min_scale: is added to every σ that is not fixed. A pixel that never changes has
            unbounded density as σ → 0; this bounds it, for a normal at
            −log(√(2π) ``min_scale``) nats.

    Raises:
        ValueError: if a fixed ``scale`` or ``min_scale`` is not positive.
    """

    remedy = "clean the data first"

    def __init__(
        self,
        latent_dim: int,
        event_shape: Shape,
        network: NetworkFactory,
        scale: float | Literal["learned", "per_pixel", "decoded"] = "learned",
        mean: Literal["identity", "sigmoid"] = "identity",
        min_scale: float = 1e-3,
    ) -> None:
        super().__init__(latent_dim, event_shape, network)
        if not min_scale > 0:
            raise ValueError(f"expected min_scale > 0; got {min_scale}")
        self.network = network((latent_dim,), (2 if scale == "decoded" else 1, *self.event_shape))
        self.squash = _MEANS[mean]()
        self.min_scale = min_scale
        self.log_scale: torch.Tensor | None
        if scale == "decoded":
            self.log_scale = None
        elif scale in ("learned", "per_pixel"):
            shape = self.event_shape if scale == "per_pixel" else ()
            self.log_scale = nn.Parameter(torch.zeros(shape))
        elif isinstance(scale, str) or not scale > 0:
            raise ValueError(
                "expected scale to be a positive number, 'learned', 'per_pixel' or 'decoded'; "
                f"got {scale!r}"
            )
        else:
            self.min_scale = 0.0
            self.register_buffer("log_scale", torch.tensor(float(scale)).log(), persistent=False)

    def forward(self, z: torch.Tensor) -> Distribution:
        loc, *decoded = self.network(z).unbind(-1 - len(self.event_shape))
        log_scale = self.log_scale if self.log_scale is not None else decoded[0]
        scale = self.min_scale + log_scale.exp()
        return self.family(self.squash(loc), scale).to_event(len(self.event_shape))

    @abstractmethod
    def family(self, loc: torch.Tensor, scale: torch.Tensor) -> Distribution:
        """The distribution of single pixels: batch shape ``(*batch, *event_shape)``."""


class Gaussian(LocationScale):
    """p(x|z) = Π_i N(x_i; μ_i(z), σ_i²), for real data; σ fixed, learned or decoded.

    References:
        Auto-Encoding Variational Bayes (Kingma & Welling, 2013), appendix C.2.
        https://arxiv.org/abs/1312.6114
    """

    def family(self, loc: torch.Tensor, scale: torch.Tensor) -> Distribution:
        return dist.Normal(loc, scale)


class Laplace(LocationScale):
    """p(x|z) = Π_i Laplace(x_i; μ_i(z), σ_i), for real data: the L1 loss as a likelihood."""

    def family(self, loc: torch.Tensor, scale: torch.Tensor) -> Distribution:
        return dist.Laplace(loc, scale)


class StudentT(LocationScale):
    """p(x|z) = Π_i t_ν(x_i; μ_i(z), σ_i), for real data with outliers.

    Arguments:
        latent_dim: the number of latent variables D.
        event_shape: the shape of one datum.
        network: the factory of the decoder.
        df: ν, the degrees of freedom; above 1, so that there is a mean to draw.
        scale: σ, as :class:`LocationScale` says.
        mean: ``"identity"`` or ``"sigmoid"``.
        min_scale: is added to every σ that is not fixed.

    Raises:
        ValueError: if ``df`` is not above 1, or a scale is not positive.

    References:
        Student-t Variational Autoencoder for Robust Density Estimation (Takahashi et al.,
        2018). https://www.ijcai.org/proceedings/2018/374
    """

    def __init__(
        self,
        latent_dim: int,
        event_shape: Shape,
        network: NetworkFactory,
        df: float = 5.0,
        scale: float | Literal["learned", "per_pixel", "decoded"] = "learned",
        mean: Literal["identity", "sigmoid"] = "identity",
        min_scale: float = 1e-3,
    ) -> None:
        super().__init__(latent_dim, event_shape, network, scale, mean, min_scale)
        if not df > 1:
            raise ValueError(f"expected df > 1; got {df}")
        self.df = df

    def family(self, loc: torch.Tensor, scale: torch.Tensor) -> Distribution:
        return dist.StudentT(self.df, loc, scale)


_MEANS = {"identity": nn.Identity, "sigmoid": nn.Sigmoid}
