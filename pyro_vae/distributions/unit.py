"""Distributions of values in [0, 1]."""

from __future__ import annotations

from typing import Any

import pyro.distributions as dist
import torch
import torch.nn.functional as F
from pyro.distributions import TorchDistribution, constraints
from torch import Tensor

from ..compile.trace import is_tracing

__all__ = ["Beta", "ContinuousBernoulli", "IndependentBernoulli"]

#: Factors between 1 and 2 whose product gets one logarithm: 2^16 is far from overflowing.
_FACTORS = 16


class Beta(dist.Beta):
    """``Beta`` scored in float64: in float32 log Γ of large concentrations cancels."""

    def log_prob(self, value: Tensor) -> Tensor:
        if self._validate_args:
            self._validate_sample(value)
        ones, zeros = self.concentration1.double(), self.concentration0.double()
        wide = dist.Beta(ones, zeros, validate_args=False)
        return wide.log_prob(value.double()).to(self.concentration1.dtype)


class ContinuousBernoulli(TorchDistribution):
    """p(x) = exp(f x) / Z(f) on [0, 1], with Z(f) = (exp f − 1) / f; λ = sigmoid(f).

    torch's own keeps λ off 0 and 1 by 1e-7 in float32, so that its density no longer
    integrates to 1 beyond |f| ≈ 15, and grey images have such pixels: an f of −500 is a mean of
    1/500.

    Arguments:
        logits: f, any real numbers, ``(*batch,)``.

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
        # where the formula's rounding, eps / f, is the series' next term, f⁵ / 30240
        f, near = self._away_from_zero((30_240 * torch.finfo(self.logits.dtype).eps) ** (1 / 6))
        size = f.abs()
        # of −|f|, and reflected for f > 0: exp(|f|) would overflow
        low = 1 / size + torch.exp(-size) / torch.expm1(-size)
        small = torch.where(near, self.logits, 0.0)
        series = 0.5 + small / 12 - small**3 / 720
        return torch.where(near, series, torch.where(f > 0, 1 - low, low))

    def log_prob(self, value: Tensor) -> Tensor:
        if self._validate_args:
            self._validate_sample(value)
        f, near = self._away_from_zero(torch.finfo(self.logits.dtype).eps ** 0.25)
        size = f.abs()
        # log Z, of |f| and reflected for f > 0: exp(f) would overflow
        log_z = torch.log(-torch.expm1(-size) / size) + f.clamp(min=0)
        log_z = torch.where(near, self.logits / 2 + self.logits.square() / 24, log_z)
        return self.logits * value - log_z

    def rsample(self, sample_shape: Any = ()) -> Tensor:
        shape = self._extended_shape(sample_shape)
        u = torch.rand(shape, dtype=self.logits.dtype, device=self.logits.device)
        f, near = self._away_from_zero(torch.finfo(self.logits.dtype).eps ** 0.25)
        size = -f.abs()
        # the inverse of the distribution function for a density that falls
        falling = torch.log1p(u * torch.expm1(size)) / size
        x = torch.where(f > 0, 1 - falling, falling)
        # the inverse to first order, so that the draw moves with f also at 0
        series = u + self.logits * u * (1 - u) / 2
        return torch.where(near, series, x).clamp(0.0, 1.0)

    def _away_from_zero(self, limit: float) -> tuple[Tensor, Tensor]:
        """f, where formulas may divide by it, and where a series has to stand for them."""
        near = self.logits.abs() < limit
        return torch.where(near, limit, self.logits), near


class IndependentBernoulli(dist.Independent):
    """``Bernoulli(logits=l).to_event(n)``, scored in fewer passes over the pixels.

    log p(x) = Σ_i x_i l_i − softplus(l_i). In a graph that is to be compiled the softplus has one
    exponential for each pixel and one logarithm for 16 of them,
    Σ log(1 + e^{−|l|}) = log Π (1 + e^{−|l|}), which is as accurate: the product is kept less 1.

    Arguments:
        base_distribution: the ``Bernoulli`` of the pixels, ``(*batch, *event)``.
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
        return _Score.apply(x.flatten(batch), logits.flatten(batch))  # type: ignore[return-value]


def _softplus(logits: Tensor) -> Tensor:
    """log(1 + e^l), and l where that rounds to it, in float64, too."""
    return F.softplus(logits, threshold=40)


class _Score(torch.autograd.Function):
    """Σ_i x_i l_i − softplus(l_i) of ``(*batch, n)`` pixels, with a gradient of few passes."""

    generate_vmap_rule = True

    @staticmethod
    def forward(x: Tensor, logits: Tensor) -> Tensor:
        if not is_tracing():
            return (x * logits).sub_(_softplus(logits)).sum(-1)
        e = torch.exp(-logits.abs())
        size = e.shape[-1] // _FACTORS
        grouped, rest = e.split([size * _FACTORS, e.shape[-1] - size * _FACTORS], -1)
        softplus = torch.log1p(rest).sum(-1)
        if size:
            first, *others = grouped.unflatten(-1, (_FACTORS, size)).unbind(-2)
            less_one = first
            for factor in others:
                less_one = less_one + factor + less_one * factor
            softplus = softplus + torch.log1p(less_one).sum(-1)
        return (x * logits - logits.clamp(min=0)).sum(-1) - softplus

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Tensor], output: Tensor) -> None:
        ctx.save_for_backward(*inputs)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, Tensor | None]:
        x, logits = ctx.saved_tensors
        (grad,) = (grad[..., None] for grad in grads)
        of_x = grad * logits if ctx.needs_input_grad[0] else None
        return of_x, grad * (x - _sigmoid(logits)) if ctx.needs_input_grad[1] else None


def _sigmoid(logits: Tensor) -> Tensor:
    """The sigmoid; in a graph that is to be compiled, of the exponential that the score has."""
    if not is_tracing():
        return logits.sigmoid()
    e = torch.exp(-logits.abs())
    return torch.where(logits >= 0, 1.0, e) / (1 + e)
