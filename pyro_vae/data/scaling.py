"""Scaling of values by statistics of the training data, and its inverse."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, get_args

import torch
from torch import Tensor

from .columns import Column

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

__all__ = ["SCALE_CHOICES", "Scale", "ScaleName", "fit_scale", "in_data_units"]

#: ``standard``: mean 0 and standard deviation 1; ``unit``: from 0 to 1; ``none``: unchanged.
ScaleName = Literal["standard", "unit", "none"]
SCALE_CHOICES: tuple[str, ...] = get_args(ScaleName)


@dataclass(frozen=True, eq=False)
class Scale:
    """The map x ↦ (x − shift) / factor.

    Attributes:
        name: ``standard`` or ``unit``.
        shift, factor: float64 tensors that broadcast to one example.
    """

    name: str
    shift: Tensor
    factor: Tensor

    def apply(self, x: Tensor) -> Tensor:
        """Return scaled values; in float64, so that a large shift loses no digits."""
        return (x.double() - self.shift.to(x.device)) / self.factor.to(x.device)

    def undo(self, x: Tensor) -> Tensor:
        """Return values in the units of the data, of the type of ``x``."""
        return (x.double() * self.factor.to(x.device) + self.shift.to(x.device)).to(x.dtype)

    def to_dict(self) -> dict[str, Any]:
        """Return the scale as JSON values."""
        return {"name": self.name, "shift": self.shift.tolist(), "factor": self.factor.tolist()}

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Scale:
        """Return the scale with the values of :meth:`to_dict`."""
        shift, factor = (torch.tensor(values[n], dtype=torch.float64) for n in ("shift", "factor"))
        return cls(values["name"], shift, factor)


def in_data_units(x: Tensor, scale: Scale | None) -> Tensor:
    """Return values that a likelihood sees in the units of the data, with or without a scale."""
    return x if scale is None else scale.undo(x)


def fit_scale(
    name: str, blocks: Iterable[Tensor], columns: Sequence[Column] | None = None
) -> Scale:
    """Compute a scale from the training data.

    Examples ``(D,)`` are scaled by column, images ``(C, H, W)`` by channel, and others as a whole.
    Unobserved values (NaN) are left out. Values that are all the same get the factor 1.

    Arguments:
        name: ``standard`` or ``unit``.
        blocks: all training examples, in blocks ``(n, *event_shape)``.
        columns: the columns of a table, of which binary and categorical ones are not scaled.
    """
    count = total = squares = low = high = torch.zeros((), dtype=torch.float64)
    offset: Tensor | None = None
    for x in (block.double() for block in blocks):
        dims = [0] if x.ndim == 2 else [0, 2, 3] if x.ndim == 4 else list(range(x.ndim))
        observed = ~x.isnan()
        if offset is None:  # near the mean, so that squares lose no digits
            offset = x.nanmean(dims, keepdim=True)[0].nan_to_num()
            low, high = torch.full_like(offset, torch.inf), torch.full_like(offset, -torch.inf)
        centred = torch.where(observed, x - offset, 0.0)
        count = count + observed.sum(dims, keepdim=True)[0]
        total = total + centred.sum(dims, keepdim=True)[0]
        squares = squares + centred.square().sum(dims, keepdim=True)[0]
        low = torch.minimum(low, x.nan_to_num(nan=torch.inf).amin(dims, keepdim=True)[0])
        high = torch.maximum(high, x.nan_to_num(nan=-torch.inf).amax(dims, keepdim=True)[0])
    assert offset is not None  # training data are not empty
    if name == "standard":
        mean = total / count.clamp(min=1)
        shift = offset + mean
        factor = (squares / count.clamp(min=1) - mean.square()).clamp(min=0).sqrt()
    else:
        shift, factor = low, high - low
    is_constant = ~(factor > 0) | ~factor.isfinite()
    shift, factor = shift.nan_to_num(posinf=0.0), torch.where(is_constant, 1.0, factor)
    if columns is not None:
        is_scaled = torch.tensor([column.type in ("real", "count") for column in columns])
        shift, factor = torch.where(is_scaled, shift, 0.0), torch.where(is_scaled, factor, 1.0)
    return Scale(name, shift, factor)
