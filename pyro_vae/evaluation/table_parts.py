"""Registry of the rows and diagnostics that a file adds to the table of :class:`Bounds`.

A file that computes further columns of :class:`~pyro_vae.evaluation.Bounds` registers a
:class:`TablePart`: the rows of these columns in the table and the line below it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Literal

__all__ = ["DEFAULT_KS", "BoundsRow", "Role", "TablePart", "register", "registered_parts"]

#: Values of k reported by default, as is common in papers.
DEFAULT_KS = (5, 50, 500, 5000)

Role = Literal["lower bound", "estimate", "upper bound", "gap"]


@dataclass(frozen=True)
class BoundsRow:
    """A column of :class:`Bounds` with its Monte Carlo variance, as a row of the table.

    Attributes:
        name: the column; ``{name}_variance`` is its variance.
        label: the label.
        role: how it relates to log p(x).
        gap: name of the difference from another row, and the name of that row. Its variance is
            the sum of both, or a column ``{name of the difference}_variance``.
        unit: the unit of ``num_samples`` in bounds from this estimator alone.
    """

    name: str
    label: str
    role: Role
    gap: tuple[str, str] | None = None
    unit: str = "samples"


@dataclass(frozen=True)
class TablePart:
    """Rows and diagnostics of an estimator, or a line of diagnostics only.

    Attributes:
        order: position in the table; those of the core are below 10.
        rows: the rows, shown if the column has a value for every example.
        describe: returns the line below the table for given bounds, or ``None``.
        summarize: returns further entries of :meth:`Bounds.summary`.
        remedy: sentence of the warning about bad k̂ if a row is shown that does not depend on it.
    """

    order: int
    rows: tuple[BoundsRow, ...] = ()
    describe: Callable[[Any], str | None] = field(default=lambda bounds: None)
    summarize: Callable[[Any], dict[str, Any]] = field(default=lambda bounds: {})
    remedy: str | None = None


_parts: list[TablePart] = []


def register(part: TablePart) -> None:
    """Add a part to :func:`registered_parts`."""
    _parts.append(part)
    _parts.sort(key=lambda part: part.order)


def registered_parts() -> tuple[TablePart, ...]:
    """Return all parts in the order of the table."""
    return tuple(_parts)
