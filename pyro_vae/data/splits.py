"""Splits of a data set: stored values, labels, and the values that a likelihood sees."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import InitVar, dataclass, replace
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from ..core.components import Shape
from ..core.random import seeded
from ..core.validation import check_memory
from .arguments import as_arguments, read_arguments, select_rows
from .containers import Container, block_slices, gather, iter_blocks
from .conversion import as_labels, as_values, open_examples
from .kinds import Kind, kind_of_blocks
from .labels import LabelColumn, name_classes
from .pixel_values import dequantize
from .scaling import Scale

__all__ = [
    "Split",
    "are_class_labels",
    "as_data",
    "as_split",
    "checksum",
    "contains_nan",
    "materialize",
]


@dataclass(frozen=True, repr=False)
class Split:
    """Examples as stored, with the transform to the values that a likelihood sees.

    Attributes:
        values: the stored values, ``(N, *event_shape)``; images stay bytes, which takes a quarter
            of the memory. Arrays, lists, data frames and sparse matrices become a tensor, or, if
            it would take more than 256 MiB, memory-mapped and sparse ones a
            :class:`~.containers.Container` that reads examples when they are needed.
        peak: the divisor of the stored values.
        dynamic: whether pixels are resampled from Bernoulli(value) on every use.
        labels: optional labels, ``(N, …)``: integer classes, −1 where unknown, or any tensor that
            a program conditions on.
        noisy: whether levels are dequantised with fresh noise on every use; ``peak`` is then
            the highest level.
        rows: the row of each example in the file or array that it comes from, ``(N,)``; ``None``
            if the examples are in its order.
        scale: the scaling of the values that a likelihood sees, if any.
        classes: the names of the classes 0, 1, …, if labels are classes. Labels that are strings
            become classes in alphabetical order, or in that of ``classes`` if given; −1 where
            empty or ``None``. Categories of a data frame keep their order.
        arguments: further arguments of model and guide by name, such as a mask, lengths or
            covariates. Tensors and arrays of leading size N have one row per example; other
            values are passed as they are.
        observed: optional mask of the observed values, booleans of the shape of ``values``, for
            integers, which have no NaN. It is not kept: ``values`` become floating-point numbers
            with NaN, which mark unobserved values, where the mask is false.

    Raises:
        ValueError: if both ``dynamic`` and ``noisy`` are set, if values are not numbers, if labels
            are neither numbers nor strings, or have no name in ``classes``, if the number of
            labels or rows differs from the number of examples, if ``arguments`` are not a
            mapping, or if ``observed`` has another shape or type.
    """

    values: Tensor | Container
    peak: float = 1.0
    dynamic: bool = False
    labels: Tensor | None = None
    noisy: bool = False
    rows: Tensor | None = None
    scale: Scale | None = None
    classes: Sequence[str] | None = None
    arguments: Mapping[str, Any] | None = None
    observed: InitVar[Tensor | None] = None

    def __post_init__(self, observed: Tensor | None) -> None:
        # a frozen dataclass
        object.__setattr__(self, "values", as_values(self.values, "values"))
        if observed is not None:
            object.__setattr__(self, "values", _mark_unobserved(self.values, observed))
        if self.labels is not None:
            column = name_classes(as_labels(self.labels), self.classes)
            object.__setattr__(self, "labels", column.values)
            object.__setattr__(self, "classes", column.classes)
        if self.rows is not None:
            object.__setattr__(self, "rows", as_labels(self.rows, "rows").values)
        object.__setattr__(self, "arguments", as_arguments(self.arguments, len(self.values)))
        if self.scale is not None and (self.dynamic or self.noisy):
            raise ValueError(
                "expected a split with a scale to be neither dynamic nor noisy; got both: scale "
                "the values, or draw them"
            )
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
        options.append(("classes", self.classes, None))
        parts += [f"{name}={value}" for name, value, default in options if value != default]
        if self.arguments:
            parts.append(f"arguments={', '.join(self.arguments)}")
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

    def draw(self, index: Tensor | slice = slice(None), dtype: torch.dtype | None = None) -> Tensor:
        """Return the examples at ``index`` as a likelihood sees them, on the device of the data.

        Dynamic binarisation and dequantisation sample from torch's global generator on every
        call. Unobserved values are NaN.

        Arguments:
            index: rows.
            dtype: the type of the result, by default torch's default dtype.
        """
        return self.transform(gather(self.values, index), dtype)

    def transform(self, stored: Tensor, dtype: torch.dtype | None = None) -> Tensor:
        """Return stored values as a likelihood sees them, as in :meth:`draw`."""
        dtype = torch.get_default_dtype() if dtype is None else dtype
        if self.scale is not None:
            return self.scale.apply(stored.double() / self.peak).to(dtype)
        x = stored.to(dtype)
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

    def materialize(self, seed: int, dtype: torch.dtype | None = None) -> Tensor:
        """Return all examples as a likelihood sees them, with randomness fixed by ``seed``."""
        if self.is_random:
            with seeded(seed, len(self)):
                return self._draw_once(gather(self.values, slice(None)), dtype)
        return self.draw(dtype=dtype)

    def iter_materialized(
        self, seed: int, dtype: torch.dtype | None = None
    ) -> Iterator[tuple[slice, Tensor]]:
        """Yield all examples as in :meth:`materialize`, in blocks of 16 MiB, with their slices.

        Memory does not depend on the number of examples. On the CPU, the values are those of
        :meth:`materialize`.
        """
        if self.values.device.type != "cpu":
            yield slice(0, len(self)), self.materialize(seed, dtype)
            return
        state: Tensor | None = None
        for rows in block_slices(self.values):
            with seeded(seed, len(self)):
                if state is not None:
                    torch.set_rng_state(state)
                x = self._draw_once(gather(self.values, rows), dtype)
                state = torch.get_rng_state()
            yield rows, x

    @property
    def is_random(self) -> bool:
        """Whether examples depend on random numbers: those of this split, or of a data set."""
        reads_randomly = isinstance(self.values, Container) and not self.values.reads_ahead
        return self.noisy or self.dynamic or reads_randomly

    def _draw_once(self, stored: Tensor, dtype: torch.dtype | None) -> Tensor:
        """Return stored values as a likelihood sees them in an evaluation."""
        if not self.dynamic:
            return self.transform(stored, dtype)
        # not as in training, where compiled code samples: results depend on the choice
        other = {"labels": None, "rows": None, "arguments": None}
        grey = replace(self, values=stored, dynamic=False, **other).draw(dtype=dtype)
        if not self.has_missing:
            return torch.bernoulli(grey).to(grey.dtype)
        return torch.where(grey.isnan(), grey, torch.bernoulli(grey.nan_to_num()).to(grey.dtype))

    def find_kind(self, seed: int = 0) -> Kind:
        """Return the kind of the values that a likelihood sees."""
        return kind_of_blocks(x for _, x in self.iter_materialized(seed))

    def to(self, device: torch.device | str) -> Split:
        """Return the split with its tensors on ``device``; containers stay on the CPU."""
        labels = None if self.labels is None else self.labels.to(device)
        values = self.values
        if isinstance(values, Tensor):
            values = values.to(device)
        arguments = {
            name: value.to(device) if isinstance(value, Tensor) else value
            for name, value in (self.arguments or {}).items()
        }
        return replace(self, values=values, labels=labels, arguments=arguments)

    def at(self, index: Tensor | slice) -> Split:
        """Return the examples at ``index``, with their labels and arguments."""
        labels = None if self.labels is None else self.labels[index]
        rows = torch.arange(len(self)) if self.rows is None else self.rows
        rows = rows[index.to(rows.device) if isinstance(index, Tensor) else index]
        arguments = select_rows(self.arguments or {}, len(self), index)
        values = self.values[index]
        return replace(self, values=values, labels=labels, rows=rows, arguments=arguments)

    def head(self, size: int) -> Split:
        """Return the first ``size`` examples."""
        return self.at(slice(size))


def are_class_labels(labels: Tensor) -> bool:
    """Whether labels are classes, i.e. one integer per example."""
    return labels.ndim == 1 and not labels.is_floating_point()


def contains_nan(values: Tensor | Container) -> bool:
    """Whether any value is NaN, which marks unobserved values."""
    # tensors on the meta device have no values
    if not values.dtype.is_floating_point or values.device.type == "meta":
        return False
    # the sum needs no mask of the size of the data; infinities of both signs make it NaN too
    with seeded(0):  # a data set may transform its items at random
        return any(bool(x.sum().isnan()) and bool(x.isnan().any()) for x in iter_blocks(values))


def _mark_unobserved(values: Tensor | Container, observed: Any) -> Tensor:
    """Return the values as floating-point numbers, with NaN where they are not observed."""
    mask = as_values(observed, "observed")
    if not isinstance(values, Tensor) or not isinstance(mask, Tensor):
        raise ValueError(
            "expected a mask of observed values only for values in memory; got one for values that "
            "are read when needed: store NaN where they are not observed"
        )
    if mask.dtype != torch.bool or mask.shape != values.shape:
        raise ValueError(
            f"expected observed to be booleans of shape {tuple(values.shape)}, one for each value; "
            f"got {mask.dtype} of shape {tuple(mask.shape)}"
        )
    floats = values if values.is_floating_point() else values.to(torch.get_default_dtype())
    return floats.masked_fill(~mask.to(values.device), torch.nan)


def checksum(values: Iterable[Tensor | Container]) -> str:
    """Return the SHA-256 of the values, in order and independent of their device and storage."""
    digest = hashlib.sha256()
    for part in values:
        for block in iter_blocks(part) if part.ndim else [torch.as_tensor(part)]:
            array: Any = block.contiguous().cpu().reshape(-1).view(torch.uint8).numpy()
            digest.update(array)
    return digest.hexdigest()


def as_split(
    data: Any,
    x: Any = None,
    labels: Any = None,
    arguments: Mapping[str, Any] | Sequence[str] | None = None,
    **options: Any,
) -> Split:
    """Return examples of any type as a split.

    Arguments:
        data: a tensor, an array, a (nested) list, a pandas or polars frame, an Arrow table, a SciPy
            sparse matrix, an AnnData object, a torch ``Dataset`` or ``DataLoader``, or a Hugging
            Face data set. Items of a data set are x, (x, label) or mappings. Masked and missing
            numbers become NaN, unobserved values.
        x: the part to read: the key of x in an item (by default ``"x"``, or the only one besides
            the label) or a list of keys of numbers; a column or a list of columns of a frame (by
            default all others); or a layer or an entry of ``obsm`` of an AnnData object (by
            default ``X``).
        labels: the labels, an array or a list; or their name: a key (by default ``"y"``,
            ``"label"`` or ``"labels"``), a column, or a column of ``obs``. Strings and categories
            become classes, named by ``Split.classes``, in the order of their categories, sorted
            by default, −1 where missing. Those of an iterable data set are read in a pass of their
            own, and items of later passes must have the same.
        arguments: further arguments of a program, as in :class:`Split`; or their names: keys of
            the items of a data set, columns of a frame (which are then no part of x), or columns
            of ``obs``.
        **options: ``peak``, ``dynamic``, ``noisy`` and ``classes``, as in :class:`Split`.

    Raises:
        ValueError: if ``data`` is of another type, has no part of this name, or if its values
            are not numbers.
    """
    if arguments is not None and not isinstance(arguments, Mapping):
        data, arguments = read_arguments(data, arguments)
    values, found, names = open_examples(data, x=x, labels=labels)
    if found is not None:
        found, options["classes"] = name_classes(LabelColumn(found, names), options.get("classes"))
    return Split(values, labels=found, arguments=arguments, **options)


def as_data(data: Any, name: str = "x", read_labels: bool = False) -> Split | Tensor:
    """Return examples as a tensor, if they are one, or as a split.

    Arguments:
        data: as in :func:`as_split`, or a split.
        name: the name of the argument, for messages.
        read_labels: whether to read the labels of a data set, which takes a pass over it.

    Raises:
        ValueError: if ``data`` is of another type, or its values are not numbers.
    """
    if isinstance(data, Split):
        return data
    if isinstance(getattr(data, "train", None), Split):
        raise ValueError(
            "expected a split or a tensor; got a whole Dataset: pass data.train, data.valid or "
            "data.test"
        )
    values, labels, classes = open_examples(data, name, read_labels=read_labels)
    if isinstance(values, Tensor) and values is data:
        return values
    return Split(values, labels=labels, classes=classes)


def materialize(data: Split | Tensor, seed: int, dtype: torch.dtype | None = None) -> Tensor:
    """Return the examples as a likelihood sees them, with randomness fixed by ``seed``.

    A tensor is returned as it is; a split in ``dtype``, by default torch's default.

    Raises:
        ValueError: if the examples of a container do not fit into memory.
    """
    if isinstance(data, Tensor):
        return data
    if isinstance(data.values, Container):
        itemsize = (torch.get_default_dtype() if dtype is None else dtype).itemsize
        size = len(data) * math.prod(data.event_shape) * itemsize
        check_memory("the examples", size, "pass some of them, e.g. split.head(1000)")
        return _materialize_blocks(data, seed, dtype)
    return data.materialize(seed, dtype)


def _materialize_blocks(data: Split, seed: int, dtype: torch.dtype | None) -> Tensor:
    """Return the examples, without a copy of all stored values."""
    result = torch.empty(0)
    for rows, x in data.iter_materialized(seed, dtype):
        if rows.start == 0:
            result = x.new_empty(len(data), *data.event_shape)
        result[rows] = x
    return result
