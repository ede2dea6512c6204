"""Likelihoods p(x|z): how a decoder's outputs score a datum."""

from __future__ import annotations

from abc import abstractmethod
from typing import ClassVar, Literal

import pyro.distributions as dist
import torch
from pyro.distributions.torch_distribution import TorchDistributionMixin as Distribution
from torch import nn

from ._component import Component, NetworkFactory, Shape, positive
from .data.kinds import Kind, kind_of

__all__ = ["Bernoulli", "Gaussian", "Likelihood"]


class Likelihood(Component):
    """The base of all likelihoods.

    A new likelihood defines ``forward(z) -> Distribution``: ``z`` has shape
    ``(*batch, latent_dim)``, the distribution batch shape ``batch`` and event shape
    ``event_shape``. In ``__init__`` it asks ``network(in_shape, out_shape)`` for the
    outputs it needs. Two class attributes say which data it can score:

    * ``support``: the widest :class:`~pyro_vae.data.Kind` of values with a density;
    * ``remedy``: what a user should do who has other values.

    Arguments:
        latent_dim: the number of latent variables D.
        event_shape: the shape of one datum.
        network: the factory of the decoder.

    Raises:
        ValueError: if ``latent_dim`` is not a positive integer.
    """

    support: ClassVar[Kind] = Kind.REAL
    remedy: ClassVar[str] = "choose a likelihood for such values"

    def __init__(self, latent_dim: int, event_shape: Shape, network: NetworkFactory) -> None:
        super().__init__()
        self.latent_dim = positive("latent_dim", latent_dim)
        self.event_shape = tuple(event_shape)

    @abstractmethod
    def forward(self, z: torch.Tensor) -> Distribution:
        """p(x|z): batch shape ``batch``, event shape ``event_shape``."""

    def check(self, x: torch.Tensor) -> None:
        """Refuses data ``x`` of shape ``(N, *event_shape)`` that has no density under p(x|z).

        Raises:
            ValueError: in one sentence, with what was expected, what came and the remedy.
        """
        got = kind_of(x)
        if not self.support.includes(got):
            raise ValueError(
                f"{type(self).__name__} scores only {self.support}; got {got.describe(x)}: "
                f"{self.remedy}"
            )


class Bernoulli(Likelihood):
    """p(x|z) = Π_i Bernoulli(x_i; sigmoid(f_i(z))), for binary data.

    References:
        Auto-Encoding Variational Bayes (Kingma & Welling, 2013), appendix C.1.
        https://arxiv.org/abs/1312.6114
    """

    support = Kind.BINARY
    remedy = "set data.binarize to dynamic, static or threshold, or use Gaussian"

    def __init__(self, latent_dim: int, event_shape: Shape, network: NetworkFactory) -> None:
        super().__init__(latent_dim, event_shape, network)
        self.network = network((latent_dim,), self.event_shape)

    def forward(self, z: torch.Tensor) -> Distribution:
        return dist.Bernoulli(logits=self.network(z)).to_event(len(self.event_shape))


class Gaussian(Likelihood):
    """p(x|z) = Π_i N(x_i; μ_i(z), σ_i²), for real data.

    Arguments:
        latent_dim: the number of latent variables D.
        event_shape: the shape of one datum.
        network: the factory of the decoder.
        scale: σ. A number fixes it; ``"learned"`` is one free parameter for all pixels,
            ``"per_pixel"`` one for each pixel, ``"decoded"`` a function σ_i(z) of the
            decoder, as in AEVB.
        mean: ``"identity"``, or ``"sigmoid"`` to keep μ in (0, 1), as AEVB does for faces.
        min_scale: is added to every σ that is not fixed. A pixel that never changes has
            unbounded density as σ → 0; this bounds it at −log(√(2π) ``min_scale``) nats.

    Raises:
        ValueError: if a fixed ``scale`` or ``min_scale`` is not positive.

    References:
        Auto-Encoding Variational Bayes (Kingma & Welling, 2013), appendix C.2.
        https://arxiv.org/abs/1312.6114
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
        return dist.Normal(self.squash(loc), scale).to_event(len(self.event_shape))


_MEANS = {"identity": nn.Identity, "sigmoid": nn.Sigmoid}
