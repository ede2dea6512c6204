"""Distributions of other code as distributions of a program."""

from __future__ import annotations

import copy
import math
from typing import Any

import pyro.distributions as dist
import torch
from pyro.distributions import TorchDistribution, constraints
from pyro.distributions.torch_distribution import TorchDistributionMixin as Distribution
from torch import Tensor

from ..core.components import Shape

__all__ = ["as_event", "as_pyro", "total_shape"]


class ReshapedDistribution(TorchDistribution):
    """A distribution whose values have other dimensions, with the elements in the same order.

    Arguments:
        base: the distribution.
        batch_shape: the new batch shape, with as many elements as that of ``base``.
        event_shape: the new event shape, with as many elements as that of ``base``.
    """

    arg_constraints = {}  # type: ignore[assignment] # noqa: RUF012

    def __init__(self, base: Any, batch_shape: Shape, event_shape: Shape) -> None:
        self.base = base
        sizes = math.prod(batch_shape), math.prod(event_shape)
        assert sizes == (math.prod(base.batch_shape), math.prod(base.event_shape))
        super().__init__(torch.Size(batch_shape), torch.Size(event_shape), validate_args=False)

    @constraints.dependent_property
    def support(self) -> Any:
        support = self.base.support
        while isinstance(support, constraints.independent):
            support = support.base_constraint
        if support.event_dim == 0:
            return constraints.independent(support, len(self.event_shape))
        return _ReshapedConstraint(self.base.support, self.base.event_shape, self.event_shape)

    @property
    def has_rsample(self) -> bool:  # type: ignore[override]
        return self.base.has_rsample

    @property
    def mean(self) -> Tensor:
        return self.base.mean.reshape(self.batch_shape + self.event_shape)

    @property
    def variance(self) -> Tensor:
        return self.base.variance.reshape(self.batch_shape + self.event_shape)

    def rsample(self, sample_shape: Any = ()) -> Tensor:
        shape = (*sample_shape, *self.batch_shape, *self.event_shape)
        return self.base.rsample(torch.Size(sample_shape)).reshape(shape)

    def sample(self, sample_shape: Any = ()) -> Tensor:
        shape = (*sample_shape, *self.batch_shape, *self.event_shape)
        return self.base.sample(torch.Size(sample_shape)).reshape(shape)

    def log_prob(self, value: Tensor) -> Tensor:
        own = self.batch_shape + self.event_shape
        value = value.expand(torch.broadcast_shapes(value.shape, own))
        sample_shape = value.shape[: value.ndim - len(own)]
        flat = value.reshape(*sample_shape, *self.base.batch_shape, *self.base.event_shape)
        return self.base.log_prob(flat).reshape(*sample_shape, *self.batch_shape)


class _ReshapedConstraint(constraints.Constraint):
    """A constraint on whole events, which have other dimensions."""

    def __init__(self, base: Any, base_shape: Shape, shape: Shape) -> None:
        self.base, self.base_shape = base, base_shape
        self.is_discrete, self.event_dim = base.is_discrete, len(shape)  # type: ignore[misc]

    def check(self, value: Tensor) -> Tensor:
        batch = value.shape[: value.ndim - self.event_dim]
        return self.base.check(value.reshape(*batch, *self.base_shape))


def total_shape(fn: Any) -> Shape:
    """Return the shape of one sample, batch dimensions included."""
    return (*fn.batch_shape, *fn.event_shape)


def as_pyro(fn: Any) -> Any:
    """Return a distribution of torch as one of Pyro, which has the same class name.

    A distribution of another class, or of Pyro, is returned with the dimensions that it has.
    """
    if isinstance(fn, Distribution):
        return fn
    if isinstance(fn, torch.distributions.Independent):
        return as_pyro(fn.base_dist).to_event(fn.reinterpreted_batch_ndims)
    own = getattr(dist, type(fn).__name__, None)
    if isinstance(own, type) and issubclass(own, type(fn)):
        if own.__init__ is type(fn).__init__:
            fn = copy.copy(fn)
            fn.__class__ = own
            return fn
        given = {name: vars(fn)[name] for name in fn.arg_constraints if name in vars(fn)}
        return own(**given)
    return ReshapedDistribution(fn, tuple(fn.batch_shape), tuple(fn.event_shape))


def as_event(fn: Any, batch: Shape | None, event_shape: Shape) -> Any:
    """Return a distribution with batch shape ``batch`` and event shape ``event_shape``.

    Arguments:
        fn: a distribution over ``(B, …)``, with B the number of elements of ``batch``, or over
            ``(…)`` if ``batch`` is ``None``. The remaining dimensions, some of which may be batch
            dimensions, are an event of as many elements as ``event_shape``, in the same order.
        batch: the batch shape; ``None`` for one event.
    """
    leading = 0 if batch is None else 1
    batch = batch or ()
    fn = as_pyro(fn)
    while isinstance(fn, torch.distributions.Independent):
        fn = fn.base_dist
    if fn.event_shape:
        # scores whole events: the other batch dimensions are independent
        fn = fn.to_event(len(fn.batch_shape) - leading)
        if (tuple(fn.batch_shape), tuple(fn.event_shape)) == (batch, event_shape):
            return fn
        return ReshapedDistribution(fn, batch, event_shape)
    if tuple(fn.batch_shape) != batch + event_shape:
        fn = _reshape_elements(fn, batch + event_shape)
    return fn.to_event(len(event_shape))


def _reshape_elements(fn: Any, shape: Shape) -> Any:
    if type(fn) is dist.Normal:
        # keeps the closed forms that exist for normals
        loc, scale = torch.broadcast_tensors(fn.loc, fn.scale)
        return dist.Normal(loc.reshape(shape), scale.reshape(shape))
    return ReshapedDistribution(fn, shape, ())
