"""Distributions of real values."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pyro.distributions as dist
import torch
from torch import Tensor

from .float64 import score_in_float64
from .rescored import RescoredDistribution

__all__ = [
    "LogNormal",
    "LowRankMultivariateNormal",
    "MultivariateNormal",
    "OptimalScale",
    "StudentT",
]


class LogNormal(dist.LogNormal):
    """``LogNormal`` with samples that are positive and finite, like its support.

    The exponential of a normal variable underflows to 0, or overflows, where its scale is large.
    """

    def rsample(self, sample_shape: Any = ()) -> Tensor:
        return self._clamp(super().rsample(sample_shape))

    def sample(self, sample_shape: Any = ()) -> Tensor:
        return self._clamp(super().sample(sample_shape))

    @staticmethod
    def _clamp(x: Any) -> Tensor:
        limits = torch.finfo(x.dtype)
        return x.clamp(limits.tiny, limits.max)


class LowRankMultivariateNormal(dist.LowRankMultivariateNormal):
    """``LowRankMultivariateNormal`` evaluated in float64.

    The squared distance is a difference of terms of size (W / σ)², which cancels in float32 where
    the factor W is much larger than the diagonal σ.
    """

    def log_prob(self, value: Tensor) -> Tensor:
        parameters = (self.loc, self._unbroadcasted_cov_factor, self._unbroadcasted_cov_diag)
        double = dist.LowRankMultivariateNormal(
            *(parameter.double() for parameter in parameters), validate_args=False
        )
        return score_in_float64(self, double, value)


class MultivariateNormal(dist.MultivariateNormal):
    """``MultivariateNormal(loc, scale_tril=L)`` evaluated in float64.

    In float32 the solution of L ε = z − μ loses the digits of a nearly singular L.
    """

    def log_prob(self, value: Tensor) -> Tensor:
        loc, tril = self.loc.double(), self._unbroadcasted_scale_tril.double()
        double = dist.MultivariateNormal(loc, scale_tril=tril, validate_args=False)
        return score_in_float64(self, double, value)


class OptimalScale(RescoredDistribution):
    """Location-scale distribution whose ``log_prob`` uses the optimal scale for the value.

    The optimal scale depends on the value, so it is computed in ``log_prob``. Samples and
    moments are those of ``base_dist``.

    Arguments:
        base_dist: a location-scale distribution such as ``Normal``.
        optimal_scale: maps residuals x − μ, of the shape of the value, to the scale.
    """

    def __init__(
        self,
        base_dist: Any,
        optimal_scale: Callable[[Tensor], Tensor],
        validate_args: bool | None = None,
    ) -> None:
        self.base_dist, self.optimal_scale = base_dist, optimal_scale
        super().__init__(base_dist.batch_shape, base_dist.event_shape, validate_args)

    def expand(self, batch_shape: Any, _instance: Any = None) -> OptimalScale:
        return OptimalScale(
            self.base_dist.expand(batch_shape), self.optimal_scale, self._validate_args
        )

    def at_optimal_scale(self, value: Tensor) -> Any:
        """Return the distribution with the optimal scale for a value."""
        loc = self.base_dist.loc
        return type(self.base_dist)(loc, self.optimal_scale(value - loc))

    def log_prob(self, value: Tensor) -> Tensor:
        return self.at_optimal_scale(value).log_prob(value)


class StudentT(dist.StudentT):
    """``StudentT`` with a normaliser computed in float64.

    The normaliser is a difference of log Γ ((ν + 1) / 2) and log Γ (ν / 2), which cancels in
    float32 for many degrees of freedom: 50 variables with ν = 10⁶ are off by 4 nats.

    Arguments:
        df: ν, a number.
        loc, scale: location and scale, ``(*batch,)``.
    """

    def __init__(
        self, df: float, loc: Tensor, scale: Tensor, validate_args: bool | None = None
    ) -> None:
        self._df = float(df)
        super().__init__(torch.as_tensor(self._df).to(loc), loc, scale, validate_args)

    def expand(self, batch_shape: Any, _instance: Any = None) -> StudentT:
        loc, scale = self.loc.expand(batch_shape), self.scale.expand(batch_shape)
        return StudentT(self._df, loc, scale, self._validate_args)

    def log_prob(self, value: Tensor) -> Tensor:
        if self._validate_args:
            self._validate_sample(value)
        df = self._df
        log_z = math.lgamma(df / 2) - math.lgamma((df + 1) / 2) + math.log(math.pi * df) / 2
        kernel = torch.log1p(((value - self.loc) / self.scale).square() / df)
        return -(df + 1) / 2 * kernel - self.scale.log() - log_z
