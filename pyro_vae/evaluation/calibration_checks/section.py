"""Report section of the calibration checks."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np

from ..sections import Picture, Section
from .predictive_checks import PREDICTIVES
from .result import Calibration
from .uniformity import Band, measure_shape

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["make_section", "plot_ranks"]

#: Maximum number of panels of a figure, and their number in a row.
_MAX_PANELS, _COLUMNS = 12, 4


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


def plot_ranks(columns: Mapping[str, np.ndarray], band: Band) -> Figure:
    """Plot the ECDF of ranks minus that of uniform ones with ArviZ, and their band.

    Arguments:
        columns: ranks in [0, 1] by label, ``(N,)`` each; with more than 12, the first and those
            that deviate most.
        band: their band.
    """
    import matplotlib.pyplot as plt
    import xarray
    from arviz_plots import plot_ecdf_pit

    shown = _most_deviating(columns, _MAX_PANELS)
    # ArviZ facets over the variables; a draw is an example
    ranks = xarray.Dataset(
        {name: (("chain", "draw"), _end_at_one(columns[name])[None]) for name in shown}
    )
    width, height = min(len(shown), _COLUMNS), math.ceil(len(shown) / _COLUMNS)
    plot = plot_ecdf_pit(
        xarray.DataTree.from_dict({"ranks": ranks}),
        group="ranks",
        backend="matplotlib",
        col_wrap=_COLUMNS,
        # its band is for a single quantity
        visuals={"credible_interval": False, "remove_axis": False},
        stats={"ecdf_pit": {"n_simulations": 1}},
        figure_kwargs={
            "figsize": (2.4 * width + 0.8, 2.2 * height),
            "figsize_units": "inches",
            "layout": "constrained",
        },
    )
    figure = plot.viz["figure"].item()
    limits = (band.lower - band.points, band.upper - band.points)
    for name in shown:
        plot.get_target(name, {}).fill_between(band.points, *limits, color="0.5", alpha=0.25, lw=0)
    # out of the list of open figures, which pyplot keeps alive
    plt.close(figure)
    return figure


def _end_at_one(ranks: np.ndarray) -> np.ndarray:
    """Return the ranks with 1 in place of the largest.

    ArviZ 0.8.0 divides the values by their maximum before it compares them with uniform ones.
    """
    ended = ranks.copy()
    ended[ranks.argmax()] = 1.0
    return ended


def _most_deviating(columns: Mapping[str, np.ndarray], count: int) -> list[str]:
    """Return the labels of at most ``count`` columns, in their order."""
    deviations = {
        name: abs(shape.shift) + abs(math.log(max(shape.spread, 1e-3)))
        for name, shape in ((name, measure_shape(values)) for name, values in columns.items())
    }
    kept = sorted(columns, key=lambda name: -deviations[name])[:count]
    return [name for name in columns if name in kept]
