"""Normalising flows."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pyro.distributions as dist
from torch import Tensor
from torch.distributions import Distribution, Transform, TransformedDistribution

from .float64 import score_in_float64

__all__ = ["Flow"]


class Flow(dist.TransformedDistribution):
    """``TransformedDistribution`` that scores values other than its latest sample in float64.

    The inverse of a nearly singular flow amplifies rounding errors: in float32, splines and
    autoregressive layers are off by many nats, or overflow. The latest sample is scored with its
    noise, which the transforms cache, in the dtype of the parameters.

    Arguments:
        base_distribution: the distribution of the noise.
        transforms: the transforms from noise to value, each with a cache.
        double: returns the same distribution in float64; ``None`` to score every value in the
            dtype of the parameters.
    """

    def __init__(
        self,
        base_distribution: Distribution,
        transforms: list[Transform],
        double: Callable[[], TransformedDistribution] | None = None,
        validate_args: bool | None = None,
    ) -> None:
        super().__init__(base_distribution, transforms, validate_args)
        self.double = double

    def expand(self, batch_shape: Any, _instance: Any = None) -> Flow:
        new = super().expand(batch_shape, type(self).__new__(type(self)))
        new.double = self.double
        return new

    def log_prob(self, value: Tensor) -> Tensor:
        if self.double is None or _is_latest_output(self.transforms[-1], value):
            return super().log_prob(value)
        return score_in_float64(self, self.double().expand(self.batch_shape), value)


def _is_latest_output(transform: Transform, value: Tensor) -> bool:
    """Whether a transform has cached the input of this output."""
    # the inverse of a transform shares the cache of the transform
    _, output = getattr(transform, "_cached_x_y", (None, None))
    input_of_inverse, _ = getattr(transform.inv, "_cached_x_y", (None, None))
    return output is value or input_of_inverse is value
