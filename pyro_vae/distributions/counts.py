"""Distributions of counts 0, 1, 2, …"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pyro.distributions as dist
import torch
from pyro.distributions import TorchDistribution, constraints
from pyro.distributions.torch_distribution import TorchDistributionMixin as Distribution
from torch import Tensor
from torch.nn.functional import logsigmoid

from ..core.components import Shape
from .rescored import RescoredDistribution

__all__ = ["ConditionedOnTotal", "NegativeBinomial", "Poisson", "sum_counts"]


class ConditionedOnTotal(RescoredDistribution):
    """p(x | ℓ), where the total ℓ = Σ_i x_i is computed from the value that is scored.

    The total of an all-zero x is taken as 1. Samples and moments use ``typical_total``.

    Arguments:
        conditional: maps totals that broadcast with ``batch_shape`` to p(x | ℓ = total).
        typical_total: the total for samples and moments, a scalar.
        batch_shape: the batch shape of ``conditional(typical_total)``, or larger.
        event_shape: the shape of one example.

    References:
        Deep generative modeling for single-cell transcriptomics (Lopez et al., 2018).
        https://doi.org/10.1038/s41592-018-0229-2
    """

    has_rsample = False  # type: ignore[assignment]

    def __init__(
        self,
        conditional: Callable[[Tensor], Distribution],
        typical_total: Tensor,
        batch_shape: Shape,
        event_shape: Shape,
        validate_args: bool | None = None,
    ) -> None:
        self.conditional, self.typical_total = conditional, typical_total
        super().__init__(torch.Size(batch_shape), torch.Size(event_shape), validate_args)

    @property
    def base_dist(self) -> Any:
        """p(x | ℓ) at the typical total."""
        base: Any = self.conditional(self.typical_total)
        return base.expand(self.batch_shape)

    def expand(self, batch_shape: Any, _instance: Any = None) -> ConditionedOnTotal:
        return ConditionedOnTotal(
            self.conditional, self.typical_total, batch_shape, self.event_shape, self._validate_args
        )

    def log_prob(self, value: Tensor) -> Tensor:
        log_prob = self.conditional(sum_counts(value, len(self.event_shape))).log_prob(value)
        return log_prob.expand(torch.broadcast_shapes(log_prob.shape, self.batch_shape))


class NegativeBinomial(TorchDistribution):
    """p(x) = Γ(r + x) / (Γ(r) x!) σ(f)^x σ(−f)^r, with mean μ = r exp(f).

    Evaluated in float64, without cancellation or overflow for any r; as r → ∞ it becomes the
    Poisson distribution with the same mean. torch's implementation computes
    log Γ(r + x) − log Γ(r) in the dtype of its arguments, which is 8 nats off at r = 10⁷ in
    float32.

    Arguments:
        log_total_count: log r.
        logits: f, log μ − log r.
    """

    arg_constraints = {  # type: ignore[assignment] # noqa: RUF012
        "log_total_count": constraints.real,
        "logits": constraints.real,
    }
    support = constraints.nonnegative_integer  # type: ignore[assignment]
    has_rsample = False

    def __init__(
        self, log_total_count: Tensor, logits: Tensor, validate_args: bool | None = None
    ) -> None:
        self.log_total_count, self.logits = torch.broadcast_tensors(log_total_count, logits)
        super().__init__(self.logits.shape, validate_args=validate_args)

    @property
    def mean(self) -> Tensor:
        return (self.log_total_count + self.logits).exp()

    @property
    def variance(self) -> Tensor:
        return self.mean * (1 + self.logits.exp())

    def expand(self, batch_shape: Any, _instance: Any = None) -> NegativeBinomial:
        log_r, f = self.log_total_count.expand(batch_shape), self.logits.expand(batch_shape)
        return NegativeBinomial(log_r, f, self._validate_args)

    def log_prob(self, value: Tensor) -> Tensor:
        if self._validate_args:
            self._validate_sample(value)
        x, log_r, f = value.double(), self.log_total_count.double(), self.logits.double()
        # log (r log (1 + exp f)): either factor alone can overflow or underflow
        tail = f.clamp(max=-20.0)
        log_softplus = (-logsigmoid(-f.clamp(min=-20.0))).log()
        log_failures = log_r + torch.where(f < -20, tail - tail.exp() / 2, log_softplus)
        successes = x * (log_r + logsigmoid(f)) - (x + 1).lgamma()
        return (_log_rising(x, log_r) + successes - log_failures.exp()).to(self.logits.dtype)

    @torch.no_grad()
    def sample(self, sample_shape: Any = ()) -> Tensor:
        info = torch.finfo(self.logits.dtype)
        # Poisson with rate μ times a gamma variable of mean 1
        r = self.log_total_count.exp().clamp(info.tiny, info.max**0.5)
        return torch.poisson(self.mean * dist.Gamma(r, r).sample(torch.Size(sample_shape)))


class Poisson(TorchDistribution):
    """p(x) = exp(f x − exp f) / x!, parameterised by the log-rate f and evaluated in float64.

    torch's implementation takes the rate, whose logarithm is −∞ where it underflows.

    Arguments:
        log_rate: f, any real values.
    """

    arg_constraints = {"log_rate": constraints.real}  # type: ignore[assignment] # noqa: RUF012
    support = constraints.nonnegative_integer  # type: ignore[assignment]
    has_rsample = False

    def __init__(self, log_rate: Tensor, validate_args: bool | None = None) -> None:
        self.log_rate = log_rate
        super().__init__(log_rate.shape, validate_args=validate_args)

    @property
    def mean(self) -> Tensor:
        return self.log_rate.exp()

    @property
    def variance(self) -> Tensor:
        return self.mean

    def expand(self, batch_shape: Any, _instance: Any = None) -> Poisson:
        return Poisson(self.log_rate.expand(batch_shape), self._validate_args)

    def log_prob(self, value: Tensor) -> Tensor:
        if self._validate_args:
            self._validate_sample(value)
        x, f = value.double(), self.log_rate.double()
        return (x * f - f.exp() - (x + 1).lgamma()).to(self.log_rate.dtype)

    @torch.no_grad()
    def sample(self, sample_shape: Any = ()) -> Tensor:
        return torch.poisson(self.mean.expand(self._extended_shape(sample_shape)))


def sum_counts(x: Tensor, event_dims: int) -> Tensor:
    """Return Σ_i x_i over the last ``event_dims`` dimensions, at least 1."""
    return x.flatten(x.ndim - event_dims).sum(-1).clamp(min=1) if event_dims else x.clamp(min=1)


def _log_rising(x: Tensor, log_r: Tensor) -> Tensor:
    """Return log Γ(r + x) / (Γ(r) r^x) in float64, for x = 0, 1, … and r > 0; → 0 as r → ∞."""
    # x = 0 is handled separately; Γ(r) = Γ(r + 1) / r, because log Γ(r) fails if r underflows
    x_min_1, log_small = x.clamp(min=1), log_r.clamp(max=_STIRLING_LOG)
    small = log_small.exp()
    direct = (small + x_min_1).lgamma() - (small + 1).lgamma() + (1 - x_min_1) * log_small
    # Stirling's formula for both gammas, where the large terms cancel analytically
    r = log_r.clamp(_STIRLING_LOG, 300.0).exp()
    difference = (r + x - 0.5) * torch.log1p(x / r) - x + _stirling(r + x) - _stirling(r)
    return torch.where(log_r > _STIRLING_LOG, difference, torch.where(x > 0, direct, 0.0))


def _stirling(y: Tensor) -> Tensor:
    """Return log Γ(y) − (y − ½) log y + y − ½ log 2π, to float64 precision for y ≥ 100."""
    inverse = 1 / y
    square = inverse.square()
    return inverse * (1 / 12 - square * (1 / 360 - square / 1260))


_STIRLING_LOG = 4.605170185988092  # log 100
