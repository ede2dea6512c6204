"""Splits of a data set: stored values, labels, and the values that a likelihood sees."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import InitVar, dataclass, replace
from functools import cached_property

import torch
from torch import Tensor

from ..core.components import Shape
from ..core.random import seeded
from ..core.validation import check_tensor
from .pixel_values import binarize, dequantize

__all__ = [
    "Split",
    "are_class_labels",
    "check_container",
    "checksum",
    "contains_nan",
    "materialize",
]


@dataclass(frozen=True, repr=False)
class Split:
    """Examples as stored, with the transform to the values that a likelihood sees.

    Attributes:
        values: the stored values, ``(N, *event_shape)``; images stay bytes, which takes a quarter
            of the memory.
        peak: the divisor of the stored values.
        dynamic: whether pixels are resampled from Bernoulli(value) on every use.
        labels: optional labels, ``(N, …)``: integer classes, −1 where unknown, or any tensor that
            a program conditions on.
        noisy: whether levels are dequantised with fresh noise on every use; ``peak`` is then
            the highest level.
        rows: the row of each example in the file or array that it comes from, ``(N,)``; ``None``
            if the examples are in its order.
        observed: optional mask of the observed values, booleans of the shape of ``values``, for
            integers, which have no NaN. It is not kept: ``values`` become floating-point numbers
            with NaN, which mark unobserved values, where the mask is false.

    Raises:
        ValueError: if both ``dynamic`` and ``noisy`` are set, if values or labels are not
            tensors, if the number of labels or rows differs from the number of examples, or if
            ``observed`` has another shape or type.
    """

    values: Tensor
    peak: float = 1.0
    dynamic: bool = False
    labels: Tensor | None = None
    noisy: bool = False
    rows: Tensor | None = None
    observed: InitVar[Tensor | None] = None

    def __post_init__(self, observed: Tensor | None) -> None:
        check_tensor("values", self.values)
        if observed is not None:
            object.__setattr__(self, "values", _mark_unobserved(self.values, observed))
        if self.labels is not None:
            check_tensor("labels", self.labels)
        if self.dynamic and self.noisy:
            raise ValueError(
                "expected a split to be dynamic or noisy; got both: binary values need no noise"
            )
        if self.labels is not None and self.labels.shape[:1] != self.values.shape[:1]:
            raise ValueError(
                f"expected one label for each of {len(self)} examples; got labels of shape "
                f"{tuple(self.labels.shape)}"
            )
        if self.rows is not None and self.rows.shape != self.values.shape[:1]:
            raise ValueError(
                f"expected one row number for each of {len(self)} examples; got rows of shape "
                f"{tuple(self.rows.shape)}"
            )

    def __len__(self) -> int:
        return len(self.values)

    def __repr__(self) -> str:
        tensors = [("values", self.values), ("labels", self.labels)]
        parts = [f"{n}={t.dtype} {tuple(t.shape)}" for n, t in tensors if t is not None]
        options = [("peak", self.peak, 1.0), ("dynamic", self.dynamic, False)]
        options.append(("noisy", self.noisy, False))
        parts += [f"{name}={value}" for name, value, default in options if value != default]
        return f"Split({', '.join(parts)})"

    @property
    def event_shape(self) -> Shape:
        """Shape of one example."""
        return tuple(self.values.shape[1:])

    @cached_property
    def has_missing(self) -> bool:
        """Whether any value is NaN, i.e. unobserved."""
        return contains_nan(self.values)

    @property
    def has_label(self) -> Tensor:
        """Mask of the examples with a known label, ``(N,)``, on the device of the data."""
        if self.labels is None:
            return torch.zeros(len(self), dtype=torch.bool, device=self.values.device)
        if are_class_labels(self.labels):
            return self.labels >= 0
        return torch.ones(len(self), dtype=torch.bool, device=self.labels.device)

    def draw(self, index: Tensor | slice = slice(None)) -> Tensor:
        """Return the examples at ``index`` as a likelihood sees them, on the device of the data.

        Dynamic binarisation and dequantisation sample from torch's global generator on every
        call. Unobserved values are NaN.
        """
        x = self.values[index].to(torch.get_default_dtype())
        if self.noisy:
            return dequantize(x, self.peak)
        if self.peak != 1.0:
            x = x / self.peak
        # torch.bernoulli(x) in a form for which compiled code draws the same samples
        if not self.dynamic:
            return x
        drawn = (torch.rand_like(x) < x).to(x.dtype)
        # a comparison with NaN is false, so that an unobserved pixel would become 0
        return torch.where(x.isnan(), x, drawn) if self.has_missing else drawn

    def materialize(self, seed: int) -> Tensor:
        """Return all examples as a likelihood sees them, with randomness fixed by ``seed``."""
        if self.noisy:
            with seeded(seed, len(self)):
                return self.draw()
        if not self.dynamic:
            return self.draw()
        grey = replace(self, dynamic=False).draw()
        if not self.has_missing:
            return binarize(grey, "static", seed, len(self)).to(grey.dtype)
        drawn = binarize(grey.nan_to_num(), "static", seed, len(self)).to(grey.dtype)
        return torch.where(grey.isnan(), grey, drawn)

    def to(self, device: torch.device | str) -> Split:
        """Return the split with its tensors on ``device``."""
        labels = None if self.labels is None else self.labels.to(device)
        return replace(self, values=self.values.to(device), labels=labels)

    def at(self, index: Tensor | slice) -> Split:
        """Return the examples at ``index``, with their labels."""
        labels = None if self.labels is None else self.labels[index]
        rows = torch.arange(len(self)) if self.rows is None else self.rows
        rows = rows[index.to(rows.device) if isinstance(index, Tensor) else index]
        return replace(self, values=self.values[index], labels=labels, rows=rows)

    def head(self, size: int) -> Split:
        """Return the first ``size`` examples."""
        return self.at(slice(size))


def are_class_labels(labels: Tensor) -> bool:
    """Whether labels are classes, i.e. one integer per example."""
    return labels.ndim == 1 and not labels.is_floating_point()


def contains_nan(values: Tensor) -> bool:
    """Whether any value is NaN, which marks unobserved values."""
    # the sum needs no mask of the size of the data; infinities of both signs make it NaN too
    if not values.is_floating_point() or not bool(values.sum().isnan()):
        return False
    return bool(values.isnan().any())


def _mark_unobserved(values: Tensor, observed: Tensor) -> Tensor:
    """Return the values as floating-point numbers, with NaN where they are not observed."""
    check_tensor("observed", observed)
    if observed.dtype != torch.bool or observed.shape != values.shape:
        raise ValueError(
            f"expected observed to be booleans of shape {tuple(values.shape)}, one for each value; "
            f"got {observed.dtype} of shape {tuple(observed.shape)}"
        )
    floats = values if values.is_floating_point() else values.to(torch.get_default_dtype())
    return floats.masked_fill(~observed.to(values.device), torch.nan)


def checksum(tensors: Iterable[Tensor]) -> str:
    """Return the SHA-256 of the tensors' values, in order and independent of the device."""
    digest = hashlib.sha256()
    for tensor in tensors:
        digest.update(tensor.contiguous().cpu().numpy().tobytes())
    return digest.hexdigest()


def check_container(data: object) -> None:
    """Raise a ``ValueError`` if the data are neither a split nor a tensor."""
    if isinstance(data, Split):
        return
    if isinstance(getattr(data, "train", None), Split):
        raise ValueError(
            "expected a split or a tensor; got a whole Dataset: pass data.train, data.valid or "
            "data.test"
        )
    check_tensor("x", data)


def materialize(data: Split | Tensor, seed: int) -> Tensor:
    """Return the examples as a likelihood sees them, with randomness fixed by ``seed``."""
    check_container(data)
    return data.materialize(seed) if isinstance(data, Split) else data
