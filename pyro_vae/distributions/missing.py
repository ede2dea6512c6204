"""The observed part of an example, whose unobserved values are NaN."""

from __future__ import annotations

from typing import Any

import torch
from pyro.distributions import constraints
from torch import Tensor

from .real import OptimalScale
from .rescored import RescoredDistribution

__all__ = ["OrUnobserved", "PartiallyObserved"]


class PartiallyObserved(RescoredDistribution):
    """Distribution of single values whose ``log_prob`` is 0 for an unobserved value, NaN.

    Summed over the event dimensions, the log-density is that of the observed values, and its
    gradient does not depend on the parameters of the others. Samples and moments are those of
    ``base_dist``: all values.

    Arguments:
        base_dist: a distribution of single values, with scalar events.
        placeholder: a value with a finite density, which replaces NaN before ``base_dist`` scores
            it; it broadcasts to the value.
    """

    def __init__(
        self, base_dist: Any, placeholder: Tensor | float, validate_args: bool | None = None
    ) -> None:
        self.base_dist, self.placeholder = base_dist, placeholder
        super().__init__(base_dist.batch_shape, base_dist.event_shape, validate_args)

    @constraints.dependent_property
    def support(self) -> constraints.Constraint:
        return OrUnobserved(self.base_dist.support, self.placeholder)

    def expand(self, batch_shape: Any, _instance: Any = None) -> PartiallyObserved:
        base_dist = self.base_dist.expand(batch_shape)
        return PartiallyObserved(base_dist, self.placeholder, self._validate_args)

    def log_prob(self, value: Tensor) -> Tensor:
        base_dist = self.base_dist
        if isinstance(base_dist, OptimalScale):
            # the scale is that of the observed values, not of the placeholders
            base_dist = base_dist.at_optimal_scale(value)
        log_prob = base_dist.log_prob(_fill(value, self.placeholder))
        # the gradient of a value that is not selected is zero, because the placeholder has a
        # finite density; the gradient of NaN would be NaN
        return torch.where(value.isnan(), 0.0, log_prob)


class OrUnobserved(constraints.Constraint):
    """The values of a constraint, and NaN."""

    def __init__(self, base_constraint: Any, placeholder: Tensor | float) -> None:
        self.base_constraint, self.placeholder = base_constraint, placeholder
        super().__init__()

    @property
    def is_discrete(self) -> bool:  # type: ignore[override]
        return self.base_constraint.is_discrete

    @property
    def event_dim(self) -> int:  # type: ignore[override]
        return self.base_constraint.event_dim

    def check(self, value: Tensor) -> Tensor:
        return self.base_constraint.check(_fill(value, self.placeholder))


def _fill(value: Tensor, placeholder: Tensor | float) -> Tensor:
    return torch.where(value.isnan(), placeholder, value)
