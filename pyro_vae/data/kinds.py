"""Kinds of data values, inferred from the values themselves."""

from __future__ import annotations

import functools
from collections.abc import Iterable
from enum import Enum

import torch

from .containers import Container, iter_blocks

__all__ = ["Kind", "is_unobserved", "kind_of", "kind_of_blocks"]


class Kind(Enum):
    """Kind of values in a data set, from the narrowest to the widest.

    Every kind except ``UNIT`` contains the kinds before it. ``UNIT`` contains only ``BINARY``,
    and only ``REAL`` contains ``UNIT``.
    """

    BINARY = "0/1"
    UNIT = "values in [0, 1]"
    LEVELS = "integers 0…255"
    COUNTS = "counts 0, 1, 2, …"
    REAL = "finite real numbers"

    def __str__(self) -> str:
        return self.value

    def includes(self, other: Kind) -> bool:
        """Whether every value of kind ``other`` is also of this kind."""
        if Kind.UNIT in (self, other):
            return self is other or self is Kind.REAL or other is Kind.BINARY
        order = list(Kind)
        return order.index(other) <= order.index(self)

    def join(self, other: Kind) -> Kind:
        """Return the narrowest kind that includes the values of both kinds."""
        return next(kind for kind in Kind if kind.includes(self) and kind.includes(other))

    def describe(self, x: torch.Tensor | Container) -> str:
        """Summarise the observed values of ``x``, which are of this kind, for messages.

        Of a container, only the first block of examples is summarised.
        """
        x = x if isinstance(x, torch.Tensor) else next(iter_blocks(x))
        x = x[~x.isnan()]
        if self is Kind.REAL:
            negative = int((x < 0).sum())
            return f"real numbers from {x.min():.4g} to {x.max():.4g}, {negative} of them negative"
        return f"{len(x.unique())} levels ({self})"


def kind_of(x: torch.Tensor | Container) -> Kind:
    """Return the narrowest kind that includes every observed value of ``x``; NaN is unobserved.

    Raises:
        ValueError: if ``x`` is empty, has no observed value, or contains infinite values.
    """
    return kind_of_blocks(iter_blocks(x)) if x.ndim and len(x) else _kind_of_block(x)


def _kind_of_block(x: torch.Tensor | Container) -> Kind:
    if isinstance(x, Container):
        x = x.gather(slice(None))
    if not x.numel():
        raise ValueError(f"expected at least one value; got an empty tensor of {tuple(x.shape)}")
    if x.is_floating_point():
        unusable = int((~torch.isfinite(x)).sum())
        missing = int(x.isnan().sum()) if unusable else 0
        if unusable > missing:
            raise ValueError(
                f"expected finite values; got {unusable - missing} infinite of {x.numel()}"
            )
        if missing == x.numel():
            raise ValueError(f"expected at least one observed value; got NaN for all {missing}")
        x = x[~x.isnan()] if missing else x
    elif x.dtype == torch.bool:
        return Kind.BINARY
    low, high = float(x.min()), float(x.max())
    if x.is_floating_point() and not bool((x == x.round()).all()):
        return Kind.UNIT if low >= 0 and high <= 1 else Kind.REAL
    if low < 0:
        return Kind.REAL
    if high <= 1:
        return Kind.BINARY
    return Kind.LEVELS if high <= 255 else Kind.COUNTS


def kind_of_blocks(blocks: Iterable[torch.Tensor]) -> Kind:
    """Return the narrowest kind that includes every observed value of all blocks of values.

    Raises:
        ValueError: as for :func:`kind_of`; a block without observed values is left out, unless
            there is no other.
    """
    kinds, unobserved = [], torch.empty(0)
    for block in blocks:
        if is_unobserved(block):
            unobserved = block
        else:
            kinds.append(_kind_of_block(block))
    return functools.reduce(Kind.join, kinds) if kinds else _kind_of_block(unobserved)


def is_unobserved(x: torch.Tensor) -> bool:
    """Whether all values are NaN, i.e. unobserved."""
    # tensors on the meta device have no values
    if x.is_meta or not x.is_floating_point() or not x.numel() or not x.flatten()[0].isnan():
        return False
    return bool(x.isnan().all())
