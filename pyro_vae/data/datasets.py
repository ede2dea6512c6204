"""Data sets: three splits, and properties of their values."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor

from ..core.components import Shape
from ..core.validation import check_choice, positive_int
from .columns import Column
from .containers import concatenate
from .kinds import Kind
from .pixel_values import Binarize, Values
from .scaling import Scale
from .splits import Split, are_class_labels

__all__ = ["Dataset", "Split"]

#: The choices of :meth:`Dataset.take`.
SPLIT_NAMES = ("train", "valid", "test", "all")

Nats = TypeVar("Nats", float, np.ndarray, Tensor)


@dataclass(frozen=True, repr=False)
class Dataset:
    """Named data set, split and binarised or dequantised.

    Attributes:
        name: the name passed to :func:`~pyro_vae.data.load`.
        train, valid, test: the three :class:`Split` s; ``valid`` and ``test`` may be empty.
        kind: the kind of values that a likelihood sees.
        binarize: the binarisation scheme.
        checksum: SHA-256 of the stored train, valid and test values, in this order.
        values: the representation of image levels; always ``unit`` for binarised images.
        peak: the level that becomes 1 in the unit representation; ``None`` for values that are
            not levels.
        classes: the names of the classes 0, 1, …, if the labels of the file are strings.
        columns: the columns of a table, in the order of the values of an example.
        scale: the scaling of the values, whose ``undo`` returns the units of the file.
    """

    name: str
    train: Split
    valid: Split
    test: Split
    kind: Kind
    binarize: Binarize
    checksum: str
    values: Values = "unit"
    peak: float | None = None
    classes: tuple[str, ...] | None = None
    columns: tuple[Column, ...] | None = None
    scale: Scale | None = None

    def __repr__(self) -> str:
        labels = self.train.labels
        if labels is None:
            kind = "none"
        elif are_class_labels(labels):
            names = self.classes or ()
            is_short = 0 < len(names) <= 10
            kind = f"classes {', '.join(names) if is_short else f'0 … {int(labels.max())}'}"
        else:
            kind = f"shape {tuple(labels.shape[1:])}"
        sizes = " + ".join(str(len(split)) for split in self._splits)
        return (
            f"Dataset {self.name!r}: {sizes} examples (train + valid + test) of shape "
            f"{self.event_shape}, {self.kind}; binarize={self.binarize}, labels: {kind}"
        )

    @property
    def event_shape(self) -> Shape:
        """Shape of one example."""
        return self.train.event_shape

    @property
    def num_classes(self) -> int:
        """Number of classes: one more than the largest label of any split.

        Raises:
            ValueError: if the data have no class labels.
        """
        labels = [s.labels for s in self._splits if s.labels is not None and len(s)]
        if not labels or not are_class_labels(labels[0]):
            got = f"labels of shape {tuple(labels[0].shape)}" if labels else "no labels"
            raise ValueError(
                f"expected data set {self.name!r} to have class labels, one integer per example; "
                f"got {got}: choose a data set with labels, or set data.labels_key for a .npz file"
            )
        largest = max(int(split_labels.max()) for split_labels in labels)
        if largest < 0:
            raise ValueError(
                f"expected data set {self.name!r} to have known class labels; got −1 (unknown) for "
                f"every example: choose a data set with known labels, or a program without classes"
            )
        return 1 + largest

    @property
    def condition(self) -> int | Shape:
        """Number of classes, or the shape of one label if labels are not classes.

        Raises:
            ValueError: if the data have no labels.
        """
        labels = self.train.labels
        if labels is None or are_class_labels(labels):
            return self.num_classes
        return tuple(labels.shape[1:])

    def take(self, split: str = "test", num_data: int | None = None) -> Split:
        """Return the first examples of a split, all by default.

        Arguments:
            split: ``test``, ``valid`` or ``train``; or ``all``, the examples of all three, in the
                order of the file. If training, validation and test data come from several files,
                these follow each other in this order, and the rows of each start at 0.
            num_data: the number of examples; all if there are fewer.

        Raises:
            ValueError: if the split is unknown or empty, or if the number is not a positive
                integer.
        """
        check_choice("split", split, SPLIT_NAMES)
        examples = self._join() if split == "all" else getattr(self, split)
        if not len(examples):
            raise ValueError(f"expected {split} data; the run has none: set --split")
        return examples if num_data is None else examples.head(positive_int("num_data", num_data))

    def _join(self) -> Split:
        """Return the examples of all splits in the order of the file."""
        parts = [split for split in self._splits if len(split)]
        values = concatenate([part.values for part in parts])
        labels = [part.labels for part in parts if part.labels is not None]
        rows = torch.cat([_rows_of(part) for part in parts])
        # rows of several files repeat, and these stay one after the other
        is_one_file = len(rows.unique()) == len(rows)
        order = rows.argsort() if is_one_file else torch.arange(len(rows))
        return replace(
            parts[0],
            values=values[order],
            labels=torch.cat(labels)[order] if len(labels) == len(parts) else None,
            rows=rows[order],
        )

    @property
    def _splits(self) -> tuple[Split, Split, Split]:
        return self.train, self.valid, self.test

    @property
    def has_missing(self) -> bool:
        """Whether any split has unobserved values (NaN)."""
        return any(split.has_missing for split in self._splits)

    def bits_per_dim(self, nats: Nats) -> Nats:
        """Convert log-likelihoods, or bounds on them, to bits per dimension.

        Lower is better, unlike for log-likelihoods. For D values per example, the result is
        −``nats`` / (D log 2) for 0/1 and integer values under a discrete likelihood
        (``Bernoulli``, ``Categorical``, …). For dequantised levels 0 … n under a density, it is
        −(``nats`` − D log (n + 1)) / (D log 2), an upper bound in expectation on the bits per
        dimension of the levels.

        Arguments:
            nats: log-likelihoods in nats per datum; a number, an array or a tensor.

        Returns:
            Bits per dimension, of the same type as ``nats``.

        Raises:
            ValueError: if the values are neither integers nor dequantised levels, because their
                log-likelihood is a log-density, which has no equivalent in bits; or if values
                are unobserved, because the number of dimensions then differs between examples.

        References:
            A note on the evaluation of generative models (Theis et al., 2016), section 3.1.
            https://arxiv.org/abs/1511.01844
        """
        if self.values != "dequantized" and self.kind in (Kind.UNIT, Kind.REAL):
            raise ValueError(
                f"expected integers or dequantised levels for bits per dimension; got {self.kind}, "
                f"whose log-likelihood is a log-density: set data.values to dequantized or integer"
            )
        if self.has_missing:
            raise ValueError(
                "expected complete data for bits per dimension; got NaN (unobserved values): "
                "report nats, or the nats of an example divided by its number of observed values"
            )
        size = math.prod(self.event_shape)
        levels = self.train.peak + 1 if self.values == "dequantized" else 1
        return math.log2(levels) - nats / (size * math.log(2))


def _rows_of(split: Split) -> Tensor:
    return torch.arange(len(split)) if split.rows is None else split.rows
