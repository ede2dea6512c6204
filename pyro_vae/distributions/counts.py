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

__all__ = ["GivenTotal", "NegativeBinomial", "Poisson", "total_of"]


class GivenTotal(TorchDistribution):
    """p(x | ℓ), where the total ℓ = Σ_i x_i is read off the very x that is scored.

    An empty x counts as one of total 1. Draws and moments are those for a typical total.

    Arguments:
        given: ``given(total)`` is p(x | ℓ = total), for totals that broadcast with
            ``batch_shape``.
        typical: the total for draws and moments, a number.
        batch_shape: of ``given(typical)``, or larger.
        event_shape: the shape of one datum.

    References:
        Deep generative modeling for single-cell transcriptomics (Lopez et al., 2018).
        https://doi.org/10.1038/s41592-018-0229-2
    """

    arg_constraints = {}  # type: ignore[assignment] # noqa: RUF012
    has_rsample = False

    def __init__(
        self,
        given: Callable[[Tensor], Distribution],
        typical: Tensor,
        batch_shape: Shape,
        event_shape: Shape,
        validate_args: bool | None = None,
    ) -> None:
        self.given, self.typical = given, typical
        super().__init__(torch.Size(batch_shape), torch.Size(event_shape), validate_args)

    @property
    def base_dist(self) -> Any:
        """p(x | ℓ) for the typical total."""
        base: Any = self.given(self.typical)
        return base.expand(self.batch_shape)

    @constraints.dependent_property
    def support(self) -> constraints.Constraint:
        return self.base_dist.support

    @property
    def mean(self) -> Tensor:
        return self.base_dist.mean

    @property
    def variance(self) -> Tensor:
        return self.base_dist.variance

    def expand(self, batch_shape: Any, _instance: Any = None) -> GivenTotal:
        return GivenTotal(
            self.given, self.typical, batch_shape, self.event_shape, self._validate_args
        )

    def log_prob(self, value: Tensor) -> Tensor:
        log_prob = self.given(total_of(value, len(self.event_shape))).log_prob(value)
        return log_prob.expand(torch.broadcast_shapes(log_prob.shape, self.batch_shape))

    def sample(self, sample_shape: Any = ()) -> Tensor:
        return self.base_dist.sample(sample_shape)


class NegativeBinomial(TorchDistribution):
    """p(x) = Γ(r + x) / (Γ(r) x!) σ(f)^x σ(−f)^r, of mean μ = r exp(f).

    Scored in float64 and written so that nothing cancels or overflows for any r: with r → ∞ it
    becomes the Poisson distribution of the same mean. torch's own takes log Γ(r + x) − log Γ(r)
    in the type of its arguments, which in float32 is 8 nats off at r = 10⁷.

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
        # log (r log (1 + exp f)): neither r alone nor the logarithm alone fits into a number
        tail = f.clamp(max=-20.0)
        soft = (-logsigmoid(-f.clamp(min=-20.0))).log()
        log_stops = log_r + torch.where(f < -20, tail - tail.exp() / 2, soft)
        going_on = x * (log_r + logsigmoid(f)) - (x + 1).lgamma()
        return (_log_rising(x, log_r) + going_on - log_stops.exp()).to(self.logits.dtype)

    @torch.no_grad()
    def sample(self, sample_shape: Any = ()) -> Tensor:
        info = torch.finfo(self.logits.dtype)
        # a Poisson variable whose rate is μ times a gamma variable of mean 1
        r = self.log_total_count.exp().clamp(info.tiny, info.max**0.5)
        return torch.poisson(self.mean * dist.Gamma(r, r).sample(torch.Size(sample_shape)))


class Poisson(TorchDistribution):
    """p(x) = exp(f x − exp f) / x!, by the logarithm f of the rate, scored in float64.

    torch's own takes the rate, whose logarithm is −∞ where it underflows.

    Arguments:
        log_rate: f, any real numbers.
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


def total_of(x: Tensor, event_dims: int) -> Tensor:
    """Σ_i x_i over the last ``event_dims`` dimensions, at least 1."""
    return x.flatten(x.ndim - event_dims).sum(-1).clamp(min=1) if event_dims else x.clamp(min=1)


def _log_rising(x: Tensor, log_r: Tensor) -> Tensor:
    """log Γ(r + x) / (Γ(r) r^x) in float64, for x = 0, 1, … and any r > 0; it → 0 with r → ∞."""
    # x = 0 apart, and one factor r out of Γ(r), which has no logarithm at an r that underflows
    least, log_small = x.clamp(min=1), log_r.clamp(max=_STIRLING_LOG)
    small = log_small.exp()
    direct = (small + least).lgamma() - (small + 1).lgamma() + (1 - least) * log_small
    # Stirling's formula for both, in which log Γ of large numbers do not appear
    r = log_r.clamp(_STIRLING_LOG, 300.0).exp()
    difference = (r + x - 0.5) * torch.log1p(x / r) - x + _stirling(r + x) - _stirling(r)
    return torch.where(log_r > _STIRLING_LOG, difference, torch.where(x > 0, direct, 0.0))


def _stirling(y: Tensor) -> Tensor:
    """log Γ(y) − (y − ½) log y + y − ½ log 2π, to float64's rounding for y ≥ 100."""
    inverse = 1 / y
    square = inverse.square()
    return inverse * (1 / 12 - square * (1 / 360 - square / 1260))


_STIRLING_LOG = 4.605170185988092  # log 100
