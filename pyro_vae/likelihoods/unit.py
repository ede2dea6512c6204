"""Likelihoods of values in [0, 1]: binary pixels and grey ones."""

from __future__ import annotations

import pyro.distributions as dist
import torch
from pyro.distributions.torch_distribution import TorchDistributionMixin as Distribution

from ..data.kinds import Kind
from .base import PixelLikelihood

__all__ = ["Bernoulli", "ContinuousBernoulli"]


class Bernoulli(PixelLikelihood):
    """p(x|z) = Π_i Bernoulli(x_i; sigmoid(f_i(z))), for binary data.

    References:
        Auto-Encoding Variational Bayes (Kingma & Welling, 2013), appendix C.1.
        https://arxiv.org/abs/1312.6114
    """

    support = Kind.BINARY
    remedy = "set data.binarize to dynamic, static or threshold, or use ContinuousBernoulli"

    def forward(self, z: torch.Tensor) -> Distribution:
        return dist.Bernoulli(logits=self.network(z)).to_event(len(self.event_shape))


class ContinuousBernoulli(PixelLikelihood):
    """p(x|z) = Π_i CB(x_i; λ_i = sigmoid(f_i(z))), a density on [0, 1].

    The Bernoulli formula, normalised for grey values, which makes it a likelihood of them.

    References:
        The continuous Bernoulli: fixing a pervasive error in variational autoencoders
        (Loaiza-Ganem & Cunningham, 2019), equation 3. https://arxiv.org/abs/1907.06845
    """

    support = Kind.UNIT
    remedy = "scale the data to [0, 1] (data.values: unit), or use Gaussian"

    def forward(self, z: torch.Tensor) -> Distribution:
        fn = dist.ContinuousBernoulli(logits=self.network(z))
        return fn.to_event(len(self.event_shape))
