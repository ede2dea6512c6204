"""Likelihoods of counts 0, 1, 2, …"""

from __future__ import annotations

import pyro.distributions as dist
import torch
from pyro.distributions.torch_distribution import TorchDistributionMixin as Distribution
from torch import nn

from .._component import NetworkFactory, Shape, positive
from ..data.kinds import Kind
from .base import Likelihood, PixelLikelihood

__all__ = ["Binomial", "NegativeBinomial", "Poisson", "ZeroInflatedNegativeBinomial"]

_REMEDY = "set data.values to integer, or choose a likelihood of real values"


class Binomial(PixelLikelihood):
    """p(x|z) = Π_i Binomial(x_i; n, sigmoid(f_i(z))), for levels 0 … n.

    Arguments:
        latent_dim: the number of latent variables D.
        event_shape: the shape of one datum.
        network: the factory of the decoder.
        levels: n, the highest level (16 for ``digits``, 255 for bytes).

    Raises:
        ValueError: if ``levels`` is not a positive integer.
    """

    support = Kind.COUNTS
    remedy = _REMEDY

    def __init__(
        self, latent_dim: int, event_shape: Shape, network: NetworkFactory, levels: int = 255
    ) -> None:
        super().__init__(latent_dim, event_shape, network)
        self.levels = positive("levels", levels)

    def forward(self, z: torch.Tensor) -> Distribution:
        fn = dist.Binomial(self.levels, logits=self.network(z))
        return fn.to_event(len(self.event_shape))

    def check(self, x: torch.Tensor) -> None:
        super().check(x)
        if x.max() > self.levels:
            raise ValueError(
                f"Binomial with levels={self.levels} scores 0 … {self.levels}; got a value of "
                f"{int(x.max())}: set levels to the highest there is"
            )


class Poisson(PixelLikelihood):
    """p(x|z) = Π_i Poisson(x_i; exp f_i(z)), for counts."""

    support = Kind.COUNTS
    remedy = _REMEDY

    def forward(self, z: torch.Tensor) -> Distribution:
        return dist.Poisson(self.network(z).exp()).to_event(len(self.event_shape))


class NegativeBinomial(PixelLikelihood):
    """p(x|z) = Π_i NB(x_i; r_i, logit f_i(z)), for counts that vary more than Poisson's.

    x has mean r exp(f) and variance r exp(f) (1 + exp(f)); the dispersion r_i is a free
    parameter of each pixel.

    References:
        Deep generative modeling for single-cell transcriptomics (Lopez et al., 2018).
        https://doi.org/10.1038/s41592-018-0229-2
    """

    support = Kind.COUNTS
    remedy = _REMEDY

    def __init__(self, latent_dim: int, event_shape: Shape, network: NetworkFactory) -> None:
        super().__init__(latent_dim, event_shape, network)
        self.log_total_count = nn.Parameter(torch.zeros(self.event_shape))

    def forward(self, z: torch.Tensor) -> Distribution:
        fn = dist.NegativeBinomial(self.log_total_count.exp(), logits=self.network(z))
        return fn.to_event(len(self.event_shape))


class ZeroInflatedNegativeBinomial(Likelihood):
    """p(x|z) = Π_i [π_i 1(x_i = 0) + (1 − π_i) NB(x_i; r_i, f_i)], π_i and f_i from the decoder.

    References:
        Deep generative modeling for single-cell transcriptomics (Lopez et al., 2018).
        https://doi.org/10.1038/s41592-018-0229-2
    """

    support = Kind.COUNTS
    remedy = _REMEDY

    def __init__(self, latent_dim: int, event_shape: Shape, network: NetworkFactory) -> None:
        super().__init__(latent_dim, event_shape, network)
        self.network = network((latent_dim,), (2, *self.event_shape))
        self.log_total_count = nn.Parameter(torch.zeros(self.event_shape))

    def forward(self, z: torch.Tensor) -> Distribution:
        logits, gate_logits = self.network(z).unbind(-1 - len(self.event_shape))
        fn = dist.ZeroInflatedNegativeBinomial(
            self.log_total_count.exp(), logits=logits, gate_logits=gate_logits
        )
        return fn.to_event(len(self.event_shape))
