"""Base class of distributions that change nothing but the log-density of another one."""

from __future__ import annotations

from typing import Any

from pyro.distributions import TorchDistribution, constraints
from torch import Tensor

__all__ = ["RescoredDistribution"]


class RescoredDistribution(TorchDistribution):
    """Distribution whose support, samples and moments are those of ``base_dist``.

    A subclass defines ``base_dist``, ``log_prob`` and ``expand``.
    """

    arg_constraints = {}  # type: ignore[assignment] # noqa: RUF012
    base_dist: Any

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

    def rsample(self, sample_shape: Any = ()) -> Tensor:
        return self.base_dist.rsample(sample_shape)

    def sample(self, sample_shape: Any = ()) -> Tensor:
        return self.base_dist.sample(sample_shape)
