"""Distributions of real values."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from pyro.distributions import TorchDistribution, constraints
from torch import Tensor

__all__ = ["BestScale"]


class BestScale(TorchDistribution):
    """A family of location and scale that scores values with the scale that is best for them.

    Only what is scored sees the values, so the scale is found there. Draws and moments are
    those of ``base_dist``.

    Arguments:
        base_dist: a ``Normal`` or the like, with the scale for everything else.
        best: the scale for residuals x − μ, of the shape of the values scored.
    """

    arg_constraints = {}  # type: ignore[assignment] # noqa: RUF012

    def __init__(
        self,
        base_dist: Any,
        best: Callable[[Tensor], Tensor],
        validate_args: bool | None = None,
    ) -> None:
        self.base_dist, self.best = base_dist, best
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

    def expand(self, batch_shape: Any, _instance: Any = None) -> BestScale:
        return BestScale(self.base_dist.expand(batch_shape), self.best, self._validate_args)

    def log_prob(self, value: Tensor) -> Tensor:
        loc = self.base_dist.loc
        return type(self.base_dist)(loc, self.best(value - loc)).log_prob(value)

    def rsample(self, sample_shape: Any = ()) -> Tensor:
        return self.base_dist.rsample(sample_shape)

    def sample(self, sample_shape: Any = ()) -> Tensor:
        return self.base_dist.sample(sample_shape)
