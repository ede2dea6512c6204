"""Likelihoods of values in [0, 1]: binary and grey pixels."""

from __future__ import annotations

import pyro.distributions as dist
import torch
from pyro.distributions.torch_distribution import TorchDistributionMixin as Distribution

from .. import distributions
from ..core.components import Heads, NetworkFactory, Shape
from ..data.kinds import Kind
from .base import Likelihood, PixelLikelihood, clamped_logit

__all__ = ["Bernoulli", "Beta", "ContinuousBernoulli"]


class Bernoulli(PixelLikelihood):
    """p(x|z) = Π_i Bernoulli(x_i; sigmoid(f_i(z))), for binary data.

    References:
        Auto-Encoding Variational Bayes (Kingma & Welling, 2013), appendix C.1.
        https://arxiv.org/abs/1312.6114
    """

    supported_kind = Kind.BINARY
    hint = "set data.binarize to dynamic, static or threshold, or use ContinuousBernoulli"

    def forward(self, z: torch.Tensor) -> Distribution:
        pixels = dist.Bernoulli(logits=self.network(z))
        return distributions.IndependentBernoulli(pixels, len(self.event_shape))

    def initial_outputs(self, x: torch.Tensor) -> torch.Tensor:
        return clamped_logit(x.mean(0))


class Beta(Likelihood):
    """p(x|z) = Π_i Beta(x_i; κ_i m_i, κ_i (1 − m_i)), a density on the open interval (0, 1).

    The decoder outputs f and g, ``(2, *event_shape)``: the mean is m_i(z) = sigmoid(f_i(z)), the
    concentration is κ_i(z) = exp(g_i(z)), at most exp(12). Data that contain 0 or 1, where the
    density is zero or infinite, raise an error.

    References:
        Beta Regression for Modelling Rates and Proportions (Ferrari & Cribari-Neto, 2004),
        equation 4. https://doi.org/10.1080/0266476042000214501
    """

    supported_kind = Kind.UNIT
    hint = "dequantise the data (data.values: dequantized), or use ContinuousBernoulli"
    placeholder = 0.5

    def __init__(self, latent_dim: int, event_shape: Shape, network: NetworkFactory) -> None:
        super().__init__(latent_dim, event_shape, network)
        self.network = network((latent_dim,), Heads((2, *self.event_shape)))

    def forward(self, z: torch.Tensor) -> Distribution:
        f, log_concentration = self.network(z).unbind(-1 - len(self.event_shape))
        # the density of a constant pixel is unbounded as κ → ∞, which would overflow
        concentration = log_concentration.clamp(max=_MAX_LOG_CONCENTRATION).exp()
        # a concentration must be positive, even if the sigmoid underflows
        tiny = torch.finfo(f.dtype).tiny
        ones, zeros = ((concentration * side.sigmoid()).clamp(min=tiny) for side in (f, -f))
        return distributions.Beta(ones, zeros).to_event(len(self.event_shape))

    def initial_outputs(self, x: torch.Tensor) -> torch.Tensor:
        mean = x.mean(0).clamp(1e-3, 1 - 1e-3)
        # the variance is m (1 − m) / (κ + 1)
        variance = x.var(0, correction=0).clamp(min=1e-6)
        concentration = mean * (1 - mean) / variance - 1
        return torch.stack(
            [mean.logit(), concentration.clamp(min=1e-1).log().clamp(max=_MAX_LOG_CONCENTRATION)]
        )

    @classmethod
    def supports(cls, kind: Kind) -> bool:
        return kind is Kind.UNIT

    def check(self, x: torch.Tensor) -> None:
        super().check(x)
        num_ends = int(((x == 0) | (x == 1)).sum())
        if num_ends:
            raise ValueError(
                f"Beta scores only values inside (0, 1); got {num_ends} of {x.numel()} equal to 0 "
                f"or 1: {self.hint}"
            )


class ContinuousBernoulli(PixelLikelihood):
    """p(x|z) = Π_i CB(x_i; λ_i = sigmoid(f_i(z))), a density on [0, 1].

    The Bernoulli formula, normalised to a density of grey values.

    References:
        The continuous Bernoulli: fixing a pervasive error in variational autoencoders
        (Loaiza-Ganem & Cunningham, 2019), equation 3. https://arxiv.org/abs/1907.06845
    """

    supported_kind = Kind.UNIT
    hint = "scale the data to [0, 1] (data.values: unit), or use Gaussian"

    def forward(self, z: torch.Tensor) -> Distribution:
        fn = distributions.ContinuousBernoulli(self.network(z))
        return fn.to_event(len(self.event_shape))

    def initial_outputs(self, x: torch.Tensor) -> torch.Tensor:
        # the mean increases with the logit; its inverse has no closed form: use bisection
        mean = x.mean(0).clamp(1e-3, 1 - 1e-3)
        low, high = torch.full_like(mean, -2e3), torch.full_like(mean, 2e3)
        for _ in range(60):
            middle = (low + high) / 2
            below = distributions.ContinuousBernoulli(middle).mean < mean
            low, high = torch.where(below, middle, low), torch.where(below, high, middle)
        return (low + high) / 2


#: Upper bound of log κ: a standard deviation of 1/800 at mean ½, a third of one grey level of 255.
_MAX_LOG_CONCENTRATION = 12.0
