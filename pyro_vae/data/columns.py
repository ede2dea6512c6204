"""Columns of a table: their names, types and categories."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

__all__ = ["COLUMN_TYPES", "Column"]

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
