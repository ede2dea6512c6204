"""Random samples of MNIST for 2, 5, 10 and 20 latents.

Auto-Encoding Variational Bayes (Kingma & Welling, 2013), figure 5: latents from N(0, I), shown as
the mean of p(x|z). Programs of :mod:`experiments.aevb_figure2` and its follower.
https://arxiv.org/abs/1312.6114
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

from matplotlib.figure import Figure

from pyro_vae import queries

from . import aevb_figure2, aevb_figure4, table
from .gallery import Gallery, SharedCell, all_rows, show

LATENTS = (2, 5, 10, 20)
TABLE = Gallery(
    name="aevb_figure5",
    title="AEVB on MNIST with few and more latents, whose samples are drawn",
    base=aevb_figure2.BASE,
    cells={
        aevb_figure2.row("MNIST", n, "AEVB"): aevb_figure2.recipe("MNIST", n, "AEVB")
        for n in LATENTS
    },
    presets=all_rows(aevb_figure2.TABLE.presets),
    lenders=[aevb_figure2.TABLE, aevb_figure4.TABLE],
)
#: Images in a row, and rows.
SIDE = 10


def draw(results: Mapping[str, Any], cells: Sequence[SharedCell]) -> Figure:
    """A panel for each number of latents, of the first seed."""
    figure = Figure(figsize=(14, 4), layout="constrained")
    panels = dict(zip(TABLE.cells, figure.subplots(1, len(LATENTS)), strict=True))
    for cell in reversed(cells):
        made = queries.sample(cell.run.open()[2], SIDE**2)
        assert made.mean is not None
        show(panels[cell.row], made.mean, SIDE, cell.row)
    return figure


main = partial(table.main, TABLE, draw=draw)

if __name__ == "__main__":
    sys.exit(main())
