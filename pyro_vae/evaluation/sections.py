"""Sections of the report: tables and pictures of a result.

Functions that make figures import matplotlib when they are called, so that evaluations can run
without it.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..core import files
from .tables import Table, TextTable

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["Picture", "Section", "make_figure"]


@dataclass(frozen=True)
class Picture:
    """A figure with its file name, title and caption."""

    name: str
    title: str
    caption: str
    figure: Figure

    def png(self) -> bytes:
        """Return the figure as PNG."""
        buffer = io.BytesIO()
        self.figure.savefig(buffer, format="png", dpi=130)
        return buffer.getvalue()

    def write(self, folder: Path) -> Path:
        """Write ``NAME.png`` to a folder atomically and return its path."""
        path = folder / f"{self.name}.png"
        png = self.png()
        files.atomic_write(path, lambda file: file.write_bytes(png))
        return path


@dataclass(frozen=True)
class Section:
    """The content of a section of the report.

    Attributes:
        tables, pictures: the results.
        about: text below the heading.
    """

    tables: Sequence[Table | TextTable] = ()
    pictures: Sequence[Picture] = ()
    about: str = ""


def make_figure(
    width: float = 6.4, height: float = 3.6, panels: int = 1
) -> tuple[Figure, Sequence[Any]]:
    """Return a figure of the given size in inches and the axes of its panels, side by side."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    axes_row = figure.subplots(1, panels, squeeze=False)[0]
    for axes in axes_row:
        axes.spines[["top", "right"]].set_visible(False)
    return figure, axes_row
