"""Densities in float64 of distributions with float32 parameters."""

from __future__ import annotations

from pyro.distributions.torch_distribution import TorchDistributionMixin as Distribution
from torch import Tensor

__all__ = ["score_in_float64"]


def score_in_float64(fn: Distribution, double: Distribution, value: Tensor) -> Tensor:
    """Return log p(value), computed in float64 and rounded to the dtype of the value.

    Arguments:
        fn: the distribution, which validates the value if it validates its arguments.
        double: the same distribution, with the same parameters in float64.
        value: the values, ``(*sample, *batch, *event)``.
    """
    if fn._validate_args:
        fn._validate_sample(value)
    return double.log_prob(value.double()).to(value.dtype)
