"""Some data as they are stored, with their labels, and as a likelihood sees them."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ..core.components import Shape
from ..core.random import seeded
from .pixel_values import binarize, dequantize

__all__ = ["Split", "checksum", "is_class", "materialize"]


@dataclass(frozen=True)
class Split:
    """Some data, as stored and as a likelihood sees them.

    Attributes:
        values: as stored, ``(N, *event_shape)``: images stay bytes, a quarter of the memory.
        peak: what the stored values are divided by.
        dynamic: whether pixels are drawn anew, Bernoulli(value), at every use.
        labels: ``(N, …)``, if there are any: a class for each datum, an integer that is −1
            where it is not known, or any tensor that a program conditions on.
        noisy: whether levels are dequantised with new noise at every use; ``peak`` is then
            the highest level.

    Raises:
        ValueError: if it is to be both ``dynamic`` and ``noisy``, or if there are not as many
            labels as data.
    """

    values: Tensor
    peak: float = 1.0
    dynamic: bool = False
    labels: Tensor | None = None
    noisy: bool = False

    def __post_init__(self) -> None:
        if self.dynamic and self.noisy:
            raise ValueError("expected a split to be dynamic or noisy; got both: 0/1 need no noise")
        if self.labels is not None and self.labels.shape[:1] != self.values.shape[:1]:
            raise ValueError(
                f"expected a label for each of {len(self)} data; got labels of shape "
                f"{tuple(self.labels.shape)}"
            )

    def __len__(self) -> int:
        return len(self.values)

    @property
    def event_shape(self) -> Shape:
        """The shape of one datum."""
        return tuple(self.values.shape[1:])

    @property
    def known(self) -> Tensor:
        """Which data have a label, ``(N,)`` booleans, on the device of the data."""
        if self.labels is None:
            return torch.zeros(len(self), dtype=torch.bool, device=self.values.device)
        if is_class(self.labels):
            return self.labels >= 0
        return torch.ones(len(self), dtype=torch.bool, device=self.labels.device)

    def draw(self, index: Tensor | slice = slice(None)) -> Tensor:
        """The data at ``index`` as a likelihood sees them, on the device of the data.

        Dynamic binarisation and dequantisation draw from torch's global generator at every
        call.
        """
        x = self.values[index].to(torch.get_default_dtype())
        if self.noisy:
            return dequantize(x, self.peak)
        if self.peak != 1.0:
            x = x / self.peak
        # torch.bernoulli(x), but compiled code draws the same
        return (torch.rand_like(x) < x).to(x.dtype) if self.dynamic else x

    def materialize(self, seed: int) -> Tensor:
        """All data as a likelihood sees them, what is drawn anew drawn once with ``seed``."""
        if self.noisy:
            with seeded(seed, len(self)):
                return self.draw()
        if not self.dynamic:
            return self.draw()
        grey = replace(self, dynamic=False).draw()
        return binarize(grey, "static", seed, len(self)).to(grey.dtype)

    def to(self, device: torch.device | str) -> Split:
        """The same data on another device."""
        labels = None if self.labels is None else self.labels.to(device)
        return replace(self, values=self.values.to(device), labels=labels)

    def at(self, index: Tensor | slice) -> Split:
        """The data at ``index``, with their labels."""
        labels = None if self.labels is None else self.labels[index]
        return replace(self, values=self.values[index], labels=labels)

    def head(self, size: int) -> Split:
        """The first ``size`` data."""
        return self.at(slice(size))


def is_class(labels: Tensor) -> bool:
    """Whether labels are classes, one integer for each datum, and not a tensor of numbers."""
    return labels.ndim == 1 and not labels.is_floating_point()


def checksum(tensors: Iterable[Tensor]) -> str:
    """SHA-256 of the numbers in tensors, in this order, whatever device holds them."""
    digest = hashlib.sha256()
    for tensor in tensors:
        digest.update(tensor.contiguous().cpu().numpy().tobytes())
    return digest.hexdigest()


def materialize(data: Split | Tensor, seed: int) -> Tensor:
    """The data as a likelihood sees them, what is drawn anew drawn once with ``seed``."""
    return data.materialize(seed) if isinstance(data, Split) else data
