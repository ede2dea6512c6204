"""Labels of any type as tensors: classes, names of classes, and numbers to condition on."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from .frames import from_arrow, is_frame

__all__ = [
    "LabelColumn",
    "encode_names",
    "encode_numbers",
    "fill_unknown",
    "find_names",
    "name_classes",
    "number_by_names",
]


class LabelColumn(NamedTuple):
    """Labels as in :class:`~pyro_vae.data.Split`, and the names of classes that were strings."""

    values: Tensor
    classes: tuple[str, ...] | None = None


def encode_names(names: np.ndarray, classes: Sequence[str] | None = None) -> LabelColumn:
    """Return the classes of names, and −1 for an empty one, which is unknown.

    Arguments:
        names: strings, ``(N,)``.
        classes: the names of the classes 0, 1, …, which contain all others; by default those that
            occur, in alphabetical order.
    """
    found, position = np.unique(names, return_inverse=True)
    known = [str(name) for name in found if name != ""]
    classes = tuple(known if classes is None else classes)
    numbers = number_by_names([str(name) or None for name in found], classes)
    return LabelColumn(numbers[torch.from_numpy(position)], classes)


def number_by_names(names: Sequence[str | None], classes: Sequence[str]) -> Tensor:
    """Return the number of each class by its name, −1 for ``None`` and for names of no class."""
    numbers: dict[str | None, int] = {name: i for i, name in enumerate(classes)}
    return torch.tensor([numbers.get(name, -1) for name in names], dtype=torch.int64)


def name_classes(labels: LabelColumn, classes: Sequence[str] | None) -> LabelColumn:
    """Return labels with the numbers of given classes; by default, they are returned as they are.

    Raises:
        ValueError: if a label is none of the classes.
    """
    if classes is None or labels.classes == tuple(classes):
        return labels
    classes = tuple(map(str, classes))
    if len(set(classes)) < len(classes):
        raise ValueError(f"expected different names in classes; got {', '.join(classes)}")
    values, listed = labels.values, ", ".join(map(str, classes[:20]))
    if labels.classes is not None:
        used = [name for i, name in enumerate(labels.classes) if bool((values == i).any())]
        unknown = [name for name in used if name not in classes]
        if unknown:
            raise ValueError(
                f"expected labels among the classes {listed}; got {', '.join(unknown)}: use the "
                f"same names, or '' for unknown labels"
            )
        numbers = number_by_names((*labels.classes, None), classes)
        return LabelColumn(numbers[values], classes)
    if values.ndim != 1 or values.is_floating_point():
        raise ValueError(
            f"expected labels that are classes, one integer per example, for the names {listed}; "
            f"got labels of shape {tuple(values.shape)} and type {values.dtype}: leave classes out"
        )
    # not on a GPU, which would wait for the result
    if values.device.type == "cpu" and len(values) and int(values.max()) >= len(classes):
        raise ValueError(
            f"expected labels below {len(classes)}, the number of names in classes; got "
            f"{int(values.max())}"
        )
    return LabelColumn(values, classes)


def find_names(labels: Any) -> LabelColumn | None:
    """Return the classes of labels that are strings or categories; ``None`` for numbers.

    Categories of pandas and Arrow, and those of an ``Enum`` of polars, keep their order. Missing
    values and empty strings are −1, unknown.

    Arguments:
        labels: an array, a list, or a column of a pandas, polars or Arrow table.

    Raises:
        ValueError: if only some of the labels are strings.
    """
    labels = from_arrow(labels)
    dtype: Any = getattr(labels, "dtype", None)
    if hasattr(labels, "cat") and hasattr(dtype, "categories") and hasattr(labels, "iloc"):
        codes = labels.cat.codes.to_numpy().astype(np.int64)
        return LabelColumn(torch.from_numpy(codes), tuple(map(str, dtype.categories)))
    array = _to_array(labels)
    if array is None or array.ndim != 1 or array.dtype.kind not in "US":
        return None
    if array.dtype.kind == "S":
        array = np.char.decode(array, "utf-8")
    # an Enum of polars; its other categories have no fixed order
    order = getattr(dtype, "categories", None) if type(dtype).__name__ == "Enum" else None
    return encode_names(array, None if order is None else [str(c) for c in order])


def _to_array(labels: Any) -> np.ndarray | None:
    """Return labels as an array, strings with "" where missing; ``None`` if they are no array."""
    if is_frame(labels) and len(labels.columns) == 1:
        labels = labels[labels.columns[0]]
    if isinstance(labels, list | tuple):
        if not any(isinstance(label, str | bytes) for label in labels):
            return None
        array = np.empty(len(labels), object)
        array[:] = labels
    elif hasattr(labels, "to_numpy") and not is_frame(labels):  # xarray, too
        array = labels.to_numpy()
    elif isinstance(labels, np.ndarray):
        array = labels
    else:
        return None
    # objects, and the strings of NumPy 2 that have any length
    is_text = array.dtype.kind in "OT" and array.ndim == 1
    return _fill_missing(array.astype(object)) if is_text else array


def _fill_missing(objects: np.ndarray) -> np.ndarray:
    """Return an array of Python strings as one of strings; unchanged if it has none."""
    text = [v.decode() if isinstance(v, bytes) else v for v in objects]
    is_text = [isinstance(value, str) for value in text]
    if not any(is_text):
        return objects
    for value, known in zip(text, is_text, strict=True):
        if not known and not _is_missing(value):
            raise ValueError(
                f"expected labels that are all strings or all numbers; got {value!r} among "
                f"strings: convert them to one type"
            )
    return np.array([v if known else "" for v, known in zip(text, is_text, strict=True)], str)


def _is_missing(value: Any) -> bool:
    """Whether a value is None, NaN or ``pandas.NA``."""
    is_nan = isinstance(value, float) and value != value
    return value is None or is_nan or type(value).__name__ == "NAType"


def fill_unknown(labels: Any) -> Any:
    """Return a list or a column of objects with ``None`` as numbers with NaN; others unchanged."""
    is_objects = getattr(getattr(labels, "dtype", None), "kind", None) == "O"
    is_column = is_objects and len(labels.shape) == 1
    if not (is_column or isinstance(labels, list | tuple)):
        return labels
    return [np.nan if _is_missing(value) else value for value in labels]


def encode_numbers(labels: Tensor, name: str) -> Tensor:
    """Return labels with NaN, e.g. of empty cells, as classes that are −1 where NaN.

    Raises:
        ValueError: if the others are not classes, for which no value means unknown.
    """
    is_missing = labels.isnan()
    known = labels[~is_missing]
    if labels.ndim != 1 or not bool(((known >= 0) & (known == known.round())).all()):
        raise ValueError(
            f"expected {name} without NaN, unless they are classes; got NaN in "
            f"{int(is_missing.sum())} of {labels.numel()} numbers: leave these examples out"
        )
    return labels.masked_fill(is_missing, -1).to(torch.int64)
