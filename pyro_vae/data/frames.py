"""Parts of data frames (pandas, polars, Arrow) and of AnnData objects."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

__all__ = [
    "column_to_array",
    "find_column",
    "find_matrix",
    "frame_to_array",
    "from_arrow",
    "is_annotated",
    "is_column",
    "is_frame",
]


def is_frame(data: Any) -> bool:
    """Whether an object is a data frame of pandas or polars."""
    return hasattr(data, "to_numpy") and hasattr(data, "columns")


def is_column(data: Any) -> bool:
    """Whether an object is a column of pandas or polars."""
    # an array of xarray, which has dimensions with names, may be too large to be converted
    return hasattr(data, "to_numpy") and not hasattr(data, "dims") and not is_frame(data)


def from_arrow(data: Any) -> Any:
    """Return Arrow tables and columns as those of pandas, and other objects as they are."""
    is_arrow = type(data).__module__.partition(".")[0] == "pyarrow"
    return data.to_pandas() if is_arrow and hasattr(data, "to_pandas") else data


def frame_to_array(frame: Any) -> np.ndarray:
    """Return the columns of a frame as one array; missing values become NaN.

    Raises:
        ValueError: if some columns have no numbers, with their names.
    """
    array = frame.to_numpy()
    if array.dtype.kind in "biuf":
        return array
    others = [str(n) for n in frame.columns if not _is_number(frame[n].dtype)]
    if others:
        listed = ", ".join(map(repr, others[:5]))
        raise ValueError(
            f"expected columns of numbers; got other values in {listed}: drop these columns, "
            f"convert them to numbers, or name the labels by pv.data.as_split(frame, labels=…)"
        )
    return np.stack([column_to_array(frame[name]) for name in frame.columns], 1)


def column_to_array(column: Any) -> np.ndarray:
    """Return a column of numbers as an array; missing values become NaN."""
    array = column.to_numpy()
    if array.dtype.kind == "O" and _is_number(getattr(column, "dtype", None)):
        if hasattr(column, "iloc"):  # the nullable types of pandas
            return column.to_numpy(dtype=np.float64, na_value=np.nan)
        return array.astype(np.float64)
    return array


def _is_number(dtype: Any) -> bool:
    """Whether a type of pandas or polars contains numbers or booleans."""
    if hasattr(dtype, "is_numeric"):
        return dtype.is_numeric() or str(dtype) == "Boolean"
    return getattr(dtype, "kind", "O") in "biuf"


def find_column(table: Any, name: Any, kind: str) -> Any:
    """Return a column of a frame.

    Raises:
        ValueError: if it does not exist; the message calls it ``kind``.
    """
    if name not in table.columns:
        raise ValueError(f"expected a {kind} named {name!r}; found {_list(table.columns)}")
    return table[name]


def is_annotated(data: Any) -> bool:
    """Whether an object is like an AnnData object."""
    # of the class, since X of an object may fail to be read
    return all(hasattr(type(data), name) for name in ("X", "obs", "layers"))


def find_matrix(data: Any, name: Any = None) -> Any:
    """Return X of an AnnData object, or a layer or an entry of obsm with a name.

    Raises:
        ValueError: if there is none, or if it cannot be read.
    """
    if name is not None:
        parts: list[Mapping[str, Any]] = [data.layers, getattr(data, "obsm", {})]
        found = next((part[name] for part in parts if name in part), None)
        if found is None:
            known = _list([key for part in parts for key in part]) or "none"
            raise ValueError(f"expected a layer or an entry of obsm named {name!r}; found {known}")
        return found
    try:
        matrix = data.X
    except Exception as error:  # e.g. a view of a file, by unsuitable versions of packages
        raise ValueError(
            f"expected an AnnData object whose X can be read; reading it raises "
            f"{type(error).__name__} ({error}): call to_memory() of the object in the file first"
        ) from error
    if matrix is None:
        raise ValueError(
            "expected an AnnData object with X; got one without: name a layer by "
            "pv.data.as_split(data, x=…)"
        )
    return matrix


def _list(names: Any) -> str:
    return ", ".join(map(repr, list(names)[:10]))
