"""Report section of the calibration checks."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from ...core.figures import MUTED, get_axes
from ..sections import Picture, Section
from .predictive_checks import PREDICTIVES
from .result import Calibration
from .uniformity import Band, measure_shape

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["make_section", "plot_ranks"]

#: Maximum number of curves with a colour of their own.
_MAX_NAMED = 7


def make_section(result: Calibration) -> Section:
    """Return the tables, and the ECDFs of the ranks beside their bands."""
    tables, pictures, about = [], [], []
    if result.posteriors:
        tables += [result.make_rank_table(), result.make_coverage_table()]
        about += [result.rank_head, *result.notes]
        for name in result.posteriors:
            columns = result.label_columns(name)
            outside = sum(map(result.bands["posteriors"].excludes, columns.values()))
            pictures.append(
                Picture(
                    f"ranks-{name}",
                    f"Ranks of simulated latents: {name}",
                    f"ECDF of the ranks minus that of uniform ones; {outside} of {len(columns)} "
                    f"leave the band. Rising first: too narrow; falling first: too wide; all "
                    f"above: too high; all below: too low.",
                    plot_ranks(columns, result.bands["posteriors"]),
                )
            )
    if result.predictive is not None:
        tables.append(result.make_predictive_table())
        about.append(result.predictive_head)
        titles = ("left out", "posterior predictive")
        for name, title in zip(PREDICTIVES, titles, strict=True):
            columns = result.label_columns(name)
            if not columns:
                continue
            pictures.append(
                Picture(
                    f"predictive-{name}",
                    f"PIT of statistics: {title}",
                    "ECDF of the PIT of each statistic of the data minus that of uniform ones.",
                    plot_ranks(columns, result.bands["predictive"]),
                )
            )
    return Section(tables, pictures, ". ".join(about) + ".")


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
