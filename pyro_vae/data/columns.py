"""Columns of a table: their names, types and categories."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

__all__ = ["COLUMN_TYPES", "Column", "decode_columns"]

#: The types of columns.
COLUMN_TYPES = ("real", "count", "binary", "categorical")


@dataclass(frozen=True)
class Column:
    """A column of a table.

    Attributes:
        name: its name in the file.
        type: ``real``, ``count``, ``binary`` or ``categorical``.
        categories: the strings that the values 0, 1, … stand for, if it has strings.
    """

    name: str
    type: str
    categories: tuple[str, ...] | None = None

    def __str__(self) -> str:
        names = "" if self.categories is None else f" ({', '.join(self.categories)})"
        return f"{self.name}: {self.type}{names}"

    def to_dict(self) -> dict[str, Any]:
        """Return the column as JSON values."""
        categories = None if self.categories is None else list(self.categories)
        return {"name": self.name, "type": self.type, "categories": categories}

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Column:
        """Return the column with the values of :meth:`to_dict`."""
        categories = values["categories"]
        return cls(
            values["name"], values["type"], None if categories is None else tuple(categories)
        )


def decode_columns(values: Any, columns: Sequence[Column]) -> dict[str, list[Any]]:
    """Return the values of a table as in its file, e.g. for ``pandas.DataFrame``.

    Categories are strings, counts and 0/1 integers where they are whole, and NaN is ``None``.

    Arguments:
        values: rows in the units of the data, a tensor or array ``(n, D)``.
        columns: the D columns.

    Raises:
        ValueError: if the values have another shape.
    """
    array = np.asarray(values)
    if array.ndim != 2 or array.shape[1] != len(columns):
        raise ValueError(
            f"expected rows of {len(columns)} columns, ({', '.join(c.name for c in columns)}); got "
            f"shape {array.shape}"
        )
    return {c.name: [_decode(v, c) for v in array[:, i]] for i, c in enumerate(columns)}


def _decode(value: Any, column: Column) -> Any:
    if np.isnan(value):
        return None
    index = round(float(value))
    # a scale and its inverse may change the last digit
    if column.type == "real" or not np.isclose(value, index, rtol=1e-6, atol=1e-6):
        return float(str(value))  # the shortest number that is the same in float32
    if column.categories is None or not 0 <= index < len(column.categories):
        return index
    return column.categories[index]
