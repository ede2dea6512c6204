"""Sections of the report: tables and pictures of a result."""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from ..core import files
from ..core.figures import make_figure
from .tables import Table, TextTable

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["Picture", "Section", "make_figure"]


@dataclass(frozen=True)
class Picture:
    """A figure with its file name, title and caption.

    Attributes:
        name: the file name without suffix.
        title: the heading.
        caption: text below the figure; may be empty.
        drawing: the figure, or axes of it.
        alt: what the figure shows, for readers who do not see it; title and caption by default.
        is_bitmap: whether the figure consists of pixels, without any text.
    """

    name: str
    title: str
    caption: str
    drawing: Figure | Axes
    alt: str = ""
    is_bitmap: bool = False

    @property
    def figure(self) -> Figure:
        """The figure."""
        figure = self.drawing.get_figure(root=True)
        assert figure is not None
        return figure

    @property
    def description(self) -> str:
        """The text for readers who do not see the figure."""
        return self.alt or f"{self.title}. {self.caption}".strip()

    def png(self) -> bytes:
        """Return the figure as PNG."""
        buffer = io.BytesIO()
        self.figure.savefig(buffer, format="png", dpi=130)
        # laid out once, for further formats too
        self.figure.set_layout_engine("none")
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
        caution: a sentence that limits what the numbers mean, highlighted.
    """

    tables: Sequence[Table | TextTable] = ()
    pictures: Sequence[Picture] = ()
    about: str = ""
    caution: str = ""
