"""Report section of the calibration checks."""

from __future__ import annotations

from ..sections import Picture, Section
from .predictive_checks import PREDICTIVES
from .rank_plots import plot_ranks
from .result import Calibration

__all__ = ["make_section"]


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
