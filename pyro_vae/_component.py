"""The base of every exchangeable part."""

from __future__ import annotations

from abc import ABC, ABCMeta
from collections.abc import Callable
from enum import Enum
from numbers import Integral
from typing import Protocol, runtime_checkable

from pyro.nn import PyroModule
from torch import Tensor, nn

#: The shape of one datum or of one network output, without batch dimensions.
Shape = tuple[int, ...]

#: ``factory(in_shape, out_shape)`` makes a module that maps ``(*batch, *in_shape)`` to
#: ``(*batch, *out_shape)`` for any leading batch dimensions.
NetworkFactory = Callable[[Shape, Shape], nn.Module]


@runtime_checkable
class StartsFromData(Protocol):
    """A module that looks at the training data once, before training."""

    def start_from(self, x: Tensor) -> None:
        """Starts from data ``x``, ``(N, *event_shape)``; does nothing the second time."""


class Space(Enum):
    """Where latent variables live."""

    REAL = "ℝ^D"
    SPHERE = "the unit sphere"

    def __str__(self) -> str:
        return self.value


class _AbstractModule(ABCMeta, type(PyroModule)):
    """Joins the metaclasses of ``ABC`` and ``PyroModule``, which Python refuses to guess."""


class Component(PyroModule, ABC, metaclass=_AbstractModule):
    """A module whose ``forward`` returns a distribution: a prior, a likelihood or a posterior."""

    def __repr__(self) -> str:
        # PyroModule renames the class; the user knows it under the name that was written
        return nn.Module.__repr__(self)


def positive(name: str, value: int) -> int:
    """``value`` if it is a positive integer, else a ``ValueError`` that names the argument."""
    if isinstance(value, bool) or not isinstance(value, Integral) or value < 1:
        raise ValueError(f"expected {name} to be a positive integer; got {value!r}")
    return int(value)
