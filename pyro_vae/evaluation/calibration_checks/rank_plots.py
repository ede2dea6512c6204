"""Plot of the ranks of calibration checks."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from ...core.figures import MUTED, get_axes
from .uniformity import Band, measure_shape

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["plot_ranks"]

#: Maximum number of curves with a colour of their own.
_MAX_NAMED = 7


def plot_ranks(columns: Mapping[str, np.ndarray], band: Band, ax: Axes | None = None) -> Axes:
    """Plot the ECDF of ranks minus that of uniform ones, and their simultaneous band.

    Arguments:
        columns: ranks in [0, 1] by label, ``(N,)`` each. Those that leave the band have a colour
            and a label; with more than seven, those that deviate most.
        band: their band.
        ax: the axes; those of a new figure by default.
    """
    axes = get_axes(ax)
    limits = (band.lower - band.points, band.upper - band.points)
    axes.fill_between(
        band.points, *limits, color=MUTED, alpha=0.3, lw=0, label="band of uniform ranks"
    )
    outside = {name: values for name, values in columns.items() if band.excludes(values)}
    named = _most_deviating(outside, _MAX_NAMED)
    for name, values in sorted(columns.items(), key=lambda item: item[0] in named):
        steps = np.concatenate([[0.0], np.sort(values), [1.0]])
        ecdf = np.concatenate([np.arange(len(values) + 1) / len(values), [1.0]])
        style: dict[str, Any] = {"label": name} if name in named else {"color": MUTED, "lw": 0.8}
        axes.plot(steps, ecdf - steps, **style)
    axes.axhline(0, color=MUTED, lw=0.8, ls=":")
    axes.set_xlabel("rank")
    axes.set_ylabel("ECDF − uniform")
    # above the axes: curves may be anywhere
    place: dict[str, Any] = {"loc": "lower left", "bbox_to_anchor": (0, 1), "ncols": 2}
    axes.legend(frameon=False, fontsize=8, borderaxespad=0.2, **place)
    return axes


def _most_deviating(columns: Mapping[str, np.ndarray], count: int) -> list[str]:
    """Return the labels of at most ``count`` columns, in their order."""
    deviations = {
        name: abs(shape.shift) + abs(math.log(max(shape.spread, 1e-3)))
        for name, shape in ((name, measure_shape(values)) for name, values in columns.items())
    }
    kept = sorted(columns, key=lambda name: -deviations[name])[:count]
    return [name for name in columns if name in kept]
