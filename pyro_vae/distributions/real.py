"""Distributions of real values."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from pyro.distributions import TorchDistribution, constraints
from torch import Tensor

__all__ = ["OptimalScale"]


class OptimalScale(TorchDistribution):
    """Location-scale distribution whose ``log_prob`` uses the optimal scale for the value.

    The optimal scale depends on the value, so it is computed in ``log_prob``. Samples and
    moments are those of ``base_dist``.

    Arguments:
        base_dist: a location-scale distribution such as ``Normal``.
        optimal_scale: maps residuals x − μ, of the shape of the value, to the scale.
    """

    arg_constraints = {}  # type: ignore[assignment] # noqa: RUF012

    def __init__(
        self,
        base_dist: Any,
        optimal_scale: Callable[[Tensor], Tensor],
        validate_args: bool | None = None,
    ) -> None:
        self.base_dist, self.optimal_scale = base_dist, optimal_scale
        super().__init__(base_dist.batch_shape, base_dist.event_shape, validate_args)

    @constraints.dependent_property
    def support(self) -> constraints.Constraint:
        return self.base_dist.support

    @property
    def has_rsample(self) -> bool:  # type: ignore[override]
        return self.base_dist.has_rsample

    @property
    def mean(self) -> Tensor:
        return self.base_dist.mean

    @property
    def variance(self) -> Tensor:
        return self.base_dist.variance

    def expand(self, batch_shape: Any, _instance: Any = None) -> OptimalScale:
        return OptimalScale(
            self.base_dist.expand(batch_shape), self.optimal_scale, self._validate_args
        )

    def log_prob(self, value: Tensor) -> Tensor:
        loc = self.base_dist.loc
        return type(self.base_dist)(loc, self.optimal_scale(value - loc)).log_prob(value)

    def rsample(self, sample_shape: Any = ()) -> Tensor:
        return self.base_dist.rsample(sample_shape)

    def sample(self, sample_shape: Any = ()) -> Tensor:
        return self.base_dist.sample(sample_shape)
