"""Further arguments of a program, such as masks, lengths or covariates, with a row per example."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset as TorchDataset

from ..core.random import seeded
from .containers import Container, array_to_tensor
from .frames import column_to_array, find_column, from_arrow, is_annotated, is_frame

__all__ = ["as_argument", "as_arguments", "is_per_datum", "read_arguments", "select_rows"]


def is_per_datum(value: Any, size: int) -> bool:
    """Whether a value is a tensor with one row for each of ``size`` examples."""
    return isinstance(value, Tensor) and value.ndim > 0 and len(value) == size


def as_argument(value: Any, size: int) -> Any:
    """Return an array with one row per example as a tensor, and any other value as it is.

    Floating-point numbers of arrays get torch's default dtype, as networks compute with it. A
    tensor is returned as it is.
    """
    shape = getattr(value, "shape", None)
    is_array = hasattr(value, "__array__") and not isinstance(value, Tensor)
    if not is_array or not shape or shape[0] != size:
        return value
    tensor = array_to_tensor(np.asarray(value))
    return tensor.to(torch.get_default_dtype()) if tensor.is_floating_point() else tensor


def as_arguments(arguments: Mapping[str, Any] | None, size: int) -> dict[str, Any]:
    """Return arguments by name, arrays with one row per example as tensors.

    Raises:
        ValueError: if they are not a mapping of names to values, or an array has no numbers.
    """
    if arguments is None:
        return {}
    if not isinstance(arguments, Mapping) or not all(isinstance(n, str) for n in arguments):
        raise ValueError(
            f"expected arguments to be a mapping of names to values, as in "
            f"{{'lengths': lengths}}; got {type(arguments).__name__}"
        )
    converted = {}
    for name, value in arguments.items():
        if isinstance(value, Container):
            raise ValueError(
                f"expected the argument {name!r} in memory; got values that are read when needed: "
                f"make them a part of x"
            )
        try:
            converted[name] = as_argument(value, size)
        except ValueError as error:
            raise ValueError(f"argument {name!r}: {error}") from None
    return converted


def select_rows(arguments: Mapping[str, Any], size: int, index: Tensor | slice) -> dict[str, Any]:
    """Return the arguments of some of ``size`` examples."""

    def select(value: Any) -> Any:
        if not is_per_datum(value, size):
            return value
        return value[index.to(value.device) if isinstance(index, Tensor) else index]

    return {name: select(value) for name, value in arguments.items()}


def read_arguments(data: Any, names: Sequence[str]) -> tuple[Any, dict[str, Any]]:
    """Read named arguments of examples, and return the remaining data and the arguments.

    Arguments:
        data: a data set of mappings that is read by index, a data frame, or an AnnData object,
            whose columns of ``obs`` are read.
        names: keys of the items, or names of columns, which are removed from a frame.

    Raises:
        ValueError: if ``data`` are of another type, have no part of this name, or if values are
            not numbers, or have another shape in some items.
    """
    if isinstance(names, str) or not all(isinstance(name, str) for name in names):
        raise ValueError(
            f"expected arguments to be a list of names, or a mapping of names to values; got "
            f"{names!r}"
        )
    data = from_arrow(data)
    if is_annotated(data):
        return data, _read_columns(data.obs, names)
    if is_frame(data):
        others = [name for name in data.columns if name not in names]
        return data[others], _read_columns(data, names)
    dataset = getattr(data, "dataset", data)  # that of a DataLoader
    is_indexed = isinstance(dataset, TorchDataset) or hasattr(dataset, "column_names")
    if not is_indexed or not hasattr(dataset, "__len__") or not hasattr(dataset, "__getitem__"):
        raise ValueError(
            f"expected a data set that is read by index, a data frame or an AnnData object, of "
            f"which arguments are named; got {type(dataset).__name__}: pass the tensors, as in "
            f"arguments={{{names[0] if names else 'name'!r}: tensor}}"
        )
    return data, _read_items(dataset, names)


def _read_columns(table: Any, names: Sequence[str]) -> dict[str, Any]:
    columns = {name: column_to_array(find_column(table, name, "column")) for name in names}
    return as_arguments(columns, len(table))


def _read_items(dataset: Any, names: Sequence[str]) -> dict[str, Tensor]:
    """Read the named entries of all items in one pass."""
    rows: dict[str, list[Tensor]] = {name: [] for name in names}
    with seeded(0):  # a data set may transform its items at random
        for row in range(len(dataset)):
            item = dataset[row]
            for name in names:
                if not isinstance(item, Mapping) or name not in item:
                    found = ", ".join(map(repr, item)) if isinstance(item, Mapping) else None
                    raise ValueError(
                        f"expected items with an entry {name!r}, an argument; got "
                        f"{found or type(item).__name__} in item {row}"
                    )
                rows[name].append(torch.as_tensor(item[name]))
    arguments = {}
    for name, values in rows.items():
        if len({value.shape for value in values}) > 1:
            raise ValueError(
                f"expected the argument {name!r} to have the same shape in all items; got "
                f"{', '.join(sorted({str(tuple(v.shape)) for v in values})[:3])}: pad it"
            )
        arguments[name] = torch.stack(values)
    return arguments
