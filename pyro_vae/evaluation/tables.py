"""Tables of estimates, as text and as HTML."""

from __future__ import annotations

import math
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

from .estimates import Estimate

__all__ = ["Caution", "Row", "Table", "TextTable", "to_html"]

#: Minimum width of the column of labels.
_MIN_LABEL_WIDTH = 14
#: Width of a mean and of each of its two standard errors.
_MEAN_WIDTH, _ERROR_WIDTH = 11, 10
#: Attribute of a highlighted row in HTML.
_MAIN = ' class="main"'


class Caution(str):
    """A sentence that limits what the numbers beside it mean, highlighted in HTML."""

    __slots__ = ()


@dataclass(frozen=True)
class Row:
    """A labelled row of a :class:`Table`.

    Attributes:
        label: the label.
        estimates: one estimate per column of the table.
        note: text after the numbers, such as the role of a bound.
        is_main: highlight the row in the report.
    """

    label: str
    estimates: Sequence[Estimate]
    note: str = ""
    is_main: bool = False


@dataclass(frozen=True)
class Table:
    """Rows of estimates with both standard errors; ``str(table)`` is its text.

    Attributes:
        rows: the rows.
        columns: the name of each estimate of a row.
        label_head: the head of the column of labels.
    """

    rows: Sequence[Row]
    columns: Sequence[str] = ("mean",)
    label_head: str = ""

    def __str__(self) -> str:
        width = max([_MIN_LABEL_WIDTH, *(2 + _width(row.label) for row in self.rows)])
        head = "".join(
            f"{name:>{_MEAN_WIDTH}}{'± data':>{_ERROR_WIDTH}}{'± MC':>{_ERROR_WIDTH}}"
            for name in self.columns
        )
        lines = [f"{self.label_head:{width}}{head}"]
        for row in self.rows:
            numbers = "".join(
                f"{value:{_MEAN_WIDTH}.3f}{data:{_ERROR_WIDTH}.3f}{monte_carlo:{_ERROR_WIDTH}.3f}"
                for value, data, monte_carlo in row.estimates
            )
            padding = " " * (width - _width(row.label))
            lines.append(f"{row.label}{padding}{numbers}  {row.note}".rstrip())
        return "\n".join(lines)

    @property
    def head(self) -> list[str]:
        """The names of the columns of :attr:`cells`."""
        columns = [(name, "± data", "± MC") for name in self.columns]
        return [self.label_head, *(name for names in columns for name in names), ""]

    @property
    def cells(self) -> list[list[str]]:
        """The formatted cells of each row: label, numbers and note."""
        return [
            [row.label, *(_format_number(x) for e in row.estimates for x in e), row.note]
            for row in self.rows
        ]


@dataclass(frozen=True)
class TextTable:
    """Rows of text; ``str(table)`` is aligned.

    Attributes:
        head: the names of the columns; that of the first is the head of the labels.
        cells: the text of each row, one per column.
    """

    head: Sequence[str]
    cells: Sequence[Sequence[str]]

    def __str__(self) -> str:
        lines = [self.head, *self.cells]
        widths = [max(map(_width, column)) for column in zip(*lines, strict=True)]
        return "\n".join(
            "  ".join(
                text + " " * (width - _width(text))
                for text, width in zip(line, widths, strict=True)
            ).rstrip()
            for line in lines
        )

    @property
    def rows(self) -> list[Row]:
        """The rows without their text, none of them highlighted."""
        return [Row(cells[0], ()) for cells in self.cells]


def to_html(part: str | Table | TextTable) -> str:
    """Return a sentence or a table as HTML, with the text escaped."""
    if isinstance(part, Caution):
        style = "border-left: 4px solid #c0392b; padding-left: .6em"
        return f'<p class="warning" style="{style}">{escape(part)}</p>'
    if isinstance(part, str):
        return f"<p>{'<br>'.join(map(escape, part.splitlines()))}</p>"
    rows = [
        f"<tr{_MAIN * row.is_main}>{''.join(map(_format_cell, cells))}</tr>"
        for row, cells in zip(part.rows, part.cells, strict=True)
    ]
    head = "".join(f"<th>{escape(name)}</th>" for name in part.head)
    kind = ' class="text"' if isinstance(part, TextTable) else ""
    return f"<table{kind}><thead><tr>{head}</tr></thead><tbody>{''.join(rows)}</tbody></table>"


def _format_cell(text: str) -> str:
    return f"<td>{escape(text)}</td>"


def _width(text: str) -> int:
    """Return the printed width; the combining circumflex of p̂ has none."""
    return sum(not unicodedata.combining(character) for character in text)


def _format_number(value: float) -> str:
    return "–" if math.isnan(value) else f"{value:.3f}"
