"""Distributions of values in [0, 1]."""

from __future__ import annotations

from typing import Any

import pyro.distributions as dist
import torch
import torch.nn.functional as F
from pyro.distributions import TorchDistribution, constraints
from torch import Tensor

from ..compiler.trace import is_tracing
from .float64 import score_in_float64

__all__ = ["Beta", "ContinuousBernoulli", "IndependentBernoulli"]

#: Number of factors between 1 and 2 per logarithm: their product, up to 2^16, cannot overflow.
_FACTORS = 16


class Beta(dist.Beta):
    """``Beta`` evaluated in float64: in float32 log Γ of large concentrations cancels."""

    def log_prob(self, value: Tensor) -> Tensor:
        ones, zeros = self.concentration1.double(), self.concentration0.double()
        return score_in_float64(self, dist.Beta(ones, zeros, validate_args=False), value)


class ContinuousBernoulli(TorchDistribution):
    """p(x) = exp(f x) / Z(f) on [0, 1], with Z(f) = (exp f − 1) / f; λ = sigmoid(f).

    torch's implementation clamps λ to 1e-7 from 0 and 1 in float32, so its density does not
    integrate to 1 beyond |f| ≈ 15. Grey images have such pixels: f = −500 is a mean of 1/500.

    Arguments:
        logits: f, any real values, ``(*batch,)``.

    References:
        The continuous Bernoulli: fixing a pervasive error in variational autoencoders
        (Loaiza-Ganem & Cunningham, 2019), equations 3 to 8. https://arxiv.org/abs/1907.06845
    """

    arg_constraints = {"logits": constraints.real}  # type: ignore[assignment] # noqa: RUF012
    support = constraints.unit_interval  # type: ignore[assignment]
    has_rsample = True

    def __init__(self, logits: Tensor, validate_args: bool | None = None) -> None:
        self.logits = logits
        super().__init__(logits.shape, validate_args=validate_args)

    def expand(self, batch_shape: Any, _instance: Any = None) -> ContinuousBernoulli:
        return ContinuousBernoulli(self.logits.expand(batch_shape), self._validate_args)

    @property
    def mean(self) -> Tensor:
        """E[x] = 1 / (1 − exp(−f)) − 1/f, and ½ + f/12 − f³/720 near 0."""
        # the limit at which the rounding error, eps / f, equals the next term, f⁵ / 30240
        f, is_small = self._away_from_zero((30_240 * torch.finfo(self.logits.dtype).eps) ** (1 / 6))
        size = f.abs()
        # computed from −|f| and reflected for f > 0: exp(|f|) would overflow
        low = 1 / size + torch.exp(-size) / torch.expm1(-size)
        small = torch.where(is_small, self.logits, 0.0)
        series = 0.5 + small / 12 - small**3 / 720
        return torch.where(is_small, series, torch.where(f > 0, 1 - low, low))

    def log_prob(self, value: Tensor) -> Tensor:
        if self._validate_args:
            self._validate_sample(value)
        f, is_small = self._away_from_zero(torch.finfo(self.logits.dtype).eps ** 0.25)
        size = f.abs()
        # log Z, computed from |f| and reflected for f > 0: exp(f) would overflow
        log_z = torch.log(-torch.expm1(-size) / size) + f.clamp(min=0)
        log_z = torch.where(is_small, self.logits / 2 + self.logits.square() / 24, log_z)
        return self.logits * value - log_z

    def rsample(self, sample_shape: Any = ()) -> Tensor:
        shape = self._extended_shape(sample_shape)
        u = torch.rand(shape, dtype=self.logits.dtype, device=self.logits.device)
        f, is_small = self._away_from_zero(torch.finfo(self.logits.dtype).eps ** 0.25)
        size = -f.abs()
        # inverse cdf of the decreasing density, f < 0
        decreasing = torch.log1p(u * torch.expm1(size)) / size
        x = torch.where(f > 0, 1 - decreasing, decreasing)
        # first-order inverse cdf, so that the sample has a gradient also at f = 0
        series = u + self.logits * u * (1 - u) / 2
        return torch.where(is_small, series, x).clamp(0.0, 1.0)

    def _away_from_zero(self, limit: float) -> tuple[Tensor, Tensor]:
        """Return f with small values replaced by ``limit``, and the mask of the small values."""
        is_small = self.logits.abs() < limit
        return torch.where(is_small, limit, self.logits), is_small


class IndependentBernoulli(dist.Independent):
    """``Bernoulli(logits=l).to_event(n)``, evaluated in fewer passes over the pixels.

    log p(x) = Σ_i x_i l_i − softplus(l_i). In a traced graph, the softplus takes one exponential
    per pixel but one logarithm per 16 pixels, Σ log(1 + e^{−|l|}) = log Π (1 + e^{−|l|}). To keep
    full accuracy, the product minus 1 is accumulated.

    Arguments:
        base_distribution: the ``Bernoulli`` of single pixels, ``(*batch, *event)``.
        reinterpreted_batch_ndims: n, the number of event dimensions.
    """

    def log_prob(self, value: Tensor) -> Tensor:
        base: Any = self.base_dist
        if base._validate_args:
            base._validate_sample(value)
        x, logits = torch.broadcast_tensors(value.to(base.logits.dtype), base.logits)
        if not self.reinterpreted_batch_ndims:
            return x * logits - _softplus(logits)
        batch = logits.ndim - self.reinterpreted_batch_ndims
        return _BernoulliLogProb.apply(x.flatten(batch), logits.flatten(batch))  # type: ignore[return-value]


def _softplus(logits: Tensor) -> Tensor:
    """Return log(1 + e^l), or l where the two are equal in float64."""
    return F.softplus(logits, threshold=40)


class _BernoulliLogProb(torch.autograd.Function):
    """Σ_i x_i l_i − softplus(l_i) for pixels ``(*batch, n)``, with a gradient in few passes."""

    generate_vmap_rule = True

    @staticmethod
    def forward(x: Tensor, logits: Tensor) -> Tensor:
        if not is_tracing():
            return (x * logits).sub_(_softplus(logits)).sum(-1)
        e = torch.exp(-logits.abs())
        size = e.shape[-1] // _FACTORS
        grouped, remainder = e.split([size * _FACTORS, e.shape[-1] - size * _FACTORS], -1)
        softplus = torch.log1p(remainder).sum(-1)
        if size:
            first, *others = grouped.unflatten(-1, (_FACTORS, size)).unbind(-2)
            product_minus_1 = first
            for factor in others:
                product_minus_1 = product_minus_1 + factor + product_minus_1 * factor
            softplus = softplus + torch.log1p(product_minus_1).sum(-1)
        return (x * logits - logits.clamp(min=0)).sum(-1) - softplus

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Tensor], output: Tensor) -> None:
        ctx.save_for_backward(*inputs)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, Tensor | None]:
        x, logits = ctx.saved_tensors
        (grad,) = (grad[..., None] for grad in grads)
        grad_x = grad * logits if ctx.needs_input_grad[0] else None
        return grad_x, grad * (x - logits.sigmoid()) if ctx.needs_input_grad[1] else None
