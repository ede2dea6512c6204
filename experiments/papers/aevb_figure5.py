"""Random samples of MNIST with 2, 5, 10 and 20 latents.

Auto-Encoding Variational Bayes (Kingma & Welling, 2013), figure 5: latents from N(0, I), shown as
the mean of p(x|z). The programs are those of :mod:`experiments.papers.aevb_figure2` and
:mod:`experiments.papers.aevb_figure4`.
https://arxiv.org/abs/1312.6114
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import replace
from functools import partial

from matplotlib.figure import Figure

from pyro_vae import queries

from ..cells import Cell
from ..command import main as run
from ..reporting import Results
from . import aevb_figure2, aevb_figure4
from .pilot import PilotCell

LATENTS = (2, 5, 10, 20)
TABLE = replace(
    aevb_figure4.TABLE,
    name="aevb_figure5",
    title="AEVB on MNIST with 2 to 20 latents: random samples",
    cells={
        aevb_figure2.row_name("MNIST", n, "AEVB"): aevb_figure2.recipe_args("MNIST", n, "AEVB")
        for n in LATENTS
    },
    shares=[aevb_figure2.TABLE, aevb_figure4.TABLE],
)
#: Number of images on each side.
SIDE = 10


def draw(results: Results, cells: Sequence[Cell]) -> Figure:
    """Draw a panel for each number of latents, with the first seed."""
    figure = Figure(figsize=(14, 4), layout="constrained")
    panels = dict(zip(TABLE.cells, figure.subplots(1, len(LATENTS)), strict=True))
    for cell in reversed(cells):
        samples = queries.sample(cell.run.open()[2], SIDE**2)
        assert samples.mean is not None
        aevb_figure4.show_images(panels[cell.row], samples.mean, SIDE, cell.row)
    return figure


main = partial(run, TABLE, draw=draw, cell=PilotCell)

if __name__ == "__main__":
    sys.exit(main())
