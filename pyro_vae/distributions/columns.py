"""Vectors whose columns have different distributions."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from pyro.distributions import TorchDistribution, constraints
from torch import Tensor

__all__ = ["Concatenated"]


class Concatenated(TorchDistribution):
    """Independent single values, of which each group of columns has its own distribution.

    Arguments:
        parts: distributions of single values, with batch shapes ``(*batch, size of the group)``.
        columns: the columns of each group, integers; together 0, …, D − 1 in any order.
    """

    arg_constraints = {}  # type: ignore[assignment] # noqa: RUF012

    def __init__(
        self, parts: Sequence[Any], columns: Sequence[Tensor], validate_args: bool | None = None
    ) -> None:
        self.parts, self.columns = tuple(parts), tuple(columns)
        self._order = torch.cat(self.columns).argsort()
        batch = torch.broadcast_shapes(*(part.batch_shape[:-1] for part in self.parts))
        super().__init__(torch.Size((*batch, len(self._order))), validate_args=validate_args)

    @constraints.dependent_property
    def support(self) -> constraints.Constraint:
        return _ConcatenatedSupport(self)

    @property
    def has_rsample(self) -> bool:  # type: ignore[override]
        return all(part.has_rsample for part in self.parts)

    @property
    def mean(self) -> Tensor:
        return self.merge([part.mean for part in self.parts])

    @property
    def variance(self) -> Tensor:
        return self.merge([part.variance for part in self.parts])

    def expand(self, batch_shape: Any, _instance: Any = None) -> Concatenated:
        parts = [
            part.expand(torch.Size((*batch_shape[:-1], len(index))))
            for part, index in zip(self.parts, self.columns, strict=True)
        ]
        return Concatenated(parts, self.columns, self._validate_args)

    def log_prob(self, value: Tensor) -> Tensor:
        split = zip(self.parts, self.split(value), strict=True)
        return self.merge([part.log_prob(columns) for part, columns in split])

    def rsample(self, sample_shape: Any = ()) -> Tensor:
        return self.merge([part.rsample(sample_shape) for part in self.parts])

    def sample(self, sample_shape: Any = ()) -> Tensor:
        return self.merge([part.sample(sample_shape) for part in self.parts])

    def split(self, value: Tensor) -> list[Tensor]:
        """Return the columns of each group of values ``(…, D)``."""
        return [value.index_select(-1, index) for index in self.columns]

    def merge(self, values: Sequence[Tensor]) -> Tensor:
        """Return ``(…, D)``, the inverse of :meth:`split`."""
        return torch.cat(list(values), -1).index_select(-1, self._order)


class _ConcatenatedSupport(constraints.Constraint):
    """The supports of the columns."""

    event_dim = 0  # type: ignore[assignment]

    def __init__(self, fn: Concatenated) -> None:
        self.fn = fn
        self.supports = [part.support for part in fn.parts]
        super().__init__()

    @property
    def is_discrete(self) -> bool:  # type: ignore[override]
        return all(support.is_discrete for support in self.supports)

    def check(self, value: Tensor) -> Tensor:
        split = zip(self.supports, self.fn.split(value), strict=True)
        return self.fn.merge([support.check(columns) for support, columns in split])
