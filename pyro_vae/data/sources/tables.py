"""Tables of the user, in CSV and Parquet files, with a type for every column."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ..columns import COLUMN_TYPES, Column
from .arrays import levels_of
from .base import ArrayNameError, RawData, SourceOptions, explain_read_errors, require_file
from .labels import encode_groups, to_labels

__all__ = ["table"]


def table(options: SourceOptions) -> RawData:
    """A CSV or Parquet file of columns: real, count, binary or categorical ones.

    The types are recognised and can be set by ``types``. Categories become 0, 1, … in alphabetical
    order, and empty cells NaN. ``labels_key`` and ``groups_key`` name the columns of the labels and
    of the groups, and ``drop`` those to leave out.
    """
    file = require_file(options, "table", "a CSV or Parquet file")
    with explain_read_errors(file, "be a CSV or Parquet file with a row of column names"):
        frame = _read_frame(file)
    labels_key = options.labels_key
    if options.has_optional_labels and labels_key not in frame.columns:
        labels_key = None
    for name in (*(options.drop or ()), labels_key, options.groups_key):
        if name is not None:
            _check_column(name, frame, file)
    labels = groups = None
    if labels_key is not None:
        labels = to_labels(_label_array(frame[labels_key]), len(frame), file)
    if options.groups_key is not None:
        names = frame[options.groups_key]
        if names.isna().any():
            raise ValueError(f"expected a group in every row of {file}; got empty cells")
        groups = encode_groups(names.astype(str).to_numpy(str), len(frame), file)
    others = {*(options.drop or ()), labels_key, options.groups_key}
    frame = frame[[name for name in frame.columns if name not in others]]
    types = _parse_types(options.types or (), frame, file)
    if options.columns is None:
        parts = [_read_column(frame[name], types.get(name), file) for name in frame.columns]
    else:
        parts = [_read_known(column, frame, file) for column in options.columns]
    if not parts or not len(frame):
        raise ValueError(f"expected at least one row and one column of values in {file}; got none")
    columns = tuple(column for column, _ in parts)
    values = np.stack([part for _, part in parts], 1)
    if np.isfinite(values).all() and all(column.type != "real" for column in columns):
        values = values.astype(np.int64)
    tensor = torch.from_numpy(values)
    numbers, classes = labels or (None, None)
    return RawData(
        tensor, numbers, levels_of(tensor), classes=classes, groups=groups, columns=columns
    )


def _read_frame(file: Path) -> Any:
    import pandas

    if file.suffix in (".parquet", ".pq"):
        try:
            return pandas.read_parquet(file)
        except ImportError as error:  # pandas names no package
            raise ModuleNotFoundError("pyarrow", name="pyarrow") from error
    separator = "\t" if {".tsv", ".tab"} & set(file.suffixes) else ","
    frame: Any = pandas.read_csv(file, sep=separator)
    first = frame.columns[0]
    # DataFrame.to_csv writes the numbers of the rows as a column without a name
    if str(first).startswith("Unnamed: 0") and (frame[first] == np.arange(len(frame))).all():
        frame = frame.drop(columns=first)
    return frame


def _check_column(name: str, frame: Any, file: Path) -> None:
    if name not in frame.columns:
        listed = ", ".join(map(str, frame.columns[:20]))
        raise ArrayNameError(f"expected the name of a column of {file}, {listed}; got {name!r}")


def _label_array(column: Any) -> np.ndarray:
    """Return labels as an array: integers or strings with unknown ones, or floats."""
    import pandas

    if pandas.api.types.is_bool_dtype(column):
        return column.to_numpy(np.int64)
    if not pandas.api.types.is_numeric_dtype(column):
        return column.astype(object).where(column.notna(), "").astype(str).to_numpy(str)
    values = column.to_numpy(np.float64)
    known = values[~np.isnan(values)]
    # integers with empty cells are read as floats
    if (known == known.round()).all() and (len(known) < len(values) or column.dtype.kind in "iu"):
        return np.nan_to_num(values, nan=-1).astype(np.int64)
    return values


def _parse_types(types: Sequence[str], frame: Any, file: Path) -> dict[str, str]:
    """Return the types that the user sets, by column."""
    parsed = {}
    for item in types:
        name, _, kind = item.rpartition("=")
        if kind not in COLUMN_TYPES or not name:
            raise ValueError(
                f"expected data.types to be a list of NAME=TYPE, with a type among "
                f"{', '.join(COLUMN_TYPES)}; got {item!r}"
            )
        _check_column(name, frame, file)
        parsed[name] = kind
    return parsed


def _read_column(series: Any, kind: str | None, file: Path) -> tuple[Column, np.ndarray]:
    """Return a column and its values, with NaN in empty cells.

    Raises:
        ValueError: if it has no value, if a given type does not suit it, or if every row has
            another string, as in a column of names.
    """
    import pandas

    name, known = str(series.name), series.dropna()
    if not len(known):
        raise ValueError(f"expected values in column {name!r} of {file}; got none: set data.drop")
    is_number = pandas.api.types.is_numeric_dtype(series)
    if kind == "categorical" or not is_number:
        if kind not in (None, "categorical", "binary"):
            raise ValueError(
                f"expected numbers in column {name!r} of {file} for type {kind}; got strings, e.g. "
                f"{str(known.iloc[0])!r}: set its type to categorical, or set data.drop"
            )
        return _read_categories(series, kind, file)
    values = series.to_numpy(np.float64, na_value=np.nan)
    present = values[~np.isnan(values)]
    kind = kind or _recognise(series, present)
    suits = {
        "real": np.isfinite(present).all(),
        "count": (present >= 0).all() and (present == present.round()).all(),
        "binary": np.isin(present, (0, 1)).all(),
    }
    if not suits[kind]:
        raise ValueError(
            f"expected column {name!r} of {file} to be of type {kind}; got values from "
            f"{present.min():g} to {present.max():g}: set another type in data.types"
        )
    return Column(name, kind), values


def _read_known(column: Column, frame: Any, file: Path) -> tuple[Column, np.ndarray]:
    """Read a column of the training data from another file."""
    if column.name not in frame.columns:
        raise ArrayNameError(
            f"expected the columns of the training data in {file}; got none of the name "
            f"{column.name!r}: add it, with empty cells if its values are unknown"
        )
    series = frame[column.name]
    if not series.notna().any():
        return column, np.full(len(series), np.nan)
    if column.categories is None:
        return column, _read_column(series, column.type, file)[1]
    text = _as_text(series)
    for value in text:
        if value is not None and value not in column.categories:
            raise ValueError(
                f"expected categories of the training data ({', '.join(column.categories)}) in "
                f"column {column.name!r} of {file}; got {value!r}"
            )
    return column, _encode(text, column.categories)


def _as_text(series: Any) -> list[str | None]:
    """Return the strings of a column, ``None`` in empty cells."""
    return [None if missing else str(v) for v, missing in zip(series, series.isna(), strict=True)]


def _encode(text: Sequence[str | None], categories: Sequence[str]) -> np.ndarray:
    codes: dict[str | None, float] = {name: float(i) for i, name in enumerate(categories)}
    return np.array([codes.get(value, np.nan) for value in text])


def _read_categories(series: Any, kind: str | None, file: Path) -> tuple[Column, np.ndarray]:
    for value in series.dropna():
        if not isinstance(value, str | bool | int | float | np.bool_ | np.number):
            raise ValueError(
                f"expected numbers or strings in column {series.name!r} of {file}; got a "
                f"{type(value).__name__}, e.g. {str(value)!r}: convert the column, or leave it out "
                f"by data.drop"
            )
    text = _as_text(series)
    known = sorted({value for value in text if value is not None})
    count = int(series.notna().sum())
    if len(known) == count > 2:
        raise ValueError(
            f"expected categories in column {series.name!r} of {file}; got another string in each "
            f"of {count} rows, e.g. {known[0]!r}: leave it out by data.drop"
        )
    if kind == "binary" and len(known) > 2:
        raise ValueError(
            f"expected two values in column {series.name!r} of {file} for type binary; got "
            f"{len(known)}: set its type to categorical"
        )
    kind = kind or ("binary" if len(known) == 2 else "categorical")
    return Column(str(series.name), kind, tuple(known)), _encode(text, known)


def _recognise(series: Any, present: np.ndarray) -> str:
    """Return the type of a column of numbers."""
    is_integer = series.dtype.kind in "iub" or len(present) < len(series)
    if not is_integer or (present != present.round()).any() or present.min() < 0:
        return "real"
    return "binary" if present.max() <= 1 else "count"
