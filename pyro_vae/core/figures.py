"""Matplotlib figures without pyplot: nothing is displayed and no global style changes.

Matplotlib is imported when a figure is made, so that training and evaluation run without it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["MUTED", "WARNING", "get_axes", "make_figure", "rasterize_many", "use_integer_ticks"]

#: Colours of reference lines and of values to be careful with, for light and dark pages.
MUTED, WARNING = "0.55", "C3"
#: Width and height of a figure in inches. At the width of a phone its text is still legible.
_WIDTH, _HEIGHT = 4.8, 3.1
#: Above this number, points become one bitmap: a vector file would have megabytes.
_MAX_VECTOR_POINTS = 1500


def make_figure(
    width: float = _WIDTH, height: float = _HEIGHT, panels: int = 1
) -> tuple[Figure, Sequence[Any]]:
    """Return a figure of the given size in inches and the axes of its panels, one below another."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    column = figure.subplots(panels, 1, squeeze=False)[:, 0]
    for axes in column:
        axes.spines[["top", "right"]].set_visible(False)
    return figure, list(column)


def get_axes(ax: Axes | None, width: float = _WIDTH, height: float = _HEIGHT) -> Axes:
    """Return the given axes, or those of a new figure."""
    return make_figure(width, height)[1][0] if ax is None else ax


def use_integer_ticks(axes: Axes) -> None:
    """Let the x axis, which counts something, have ticks at integers only."""
    from matplotlib.ticker import MaxNLocator

    axes.xaxis.set_major_locator(MaxNLocator(integer=True))


def rasterize_many(values: np.ndarray) -> bool:
    """Whether the markers of these values should be drawn as a bitmap in vector files."""
    return len(values) > _MAX_VECTOR_POINTS
