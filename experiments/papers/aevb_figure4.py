"""Learned manifolds of MNIST and Frey Face with two latents.

Auto-Encoding Variational Bayes (Kingma & Welling, 2013), figure 4 and appendix A: a grid on the
unit square is mapped to latents by the inverse CDF of the normal, and each latent is shown as the
mean of p(x|z). The programs are those of :mod:`experiments.papers.aevb_figure2` with N_z = 2.
https://arxiv.org/abs/1312.6114
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import torch
from matplotlib.figure import Figure

import pyro_vae as pv

from .. import table
from ..gallery import Gallery, SharedCell, include_all_rows, latent_grid, show_images
from . import aevb_figure2

DATA = ("Frey Face", "MNIST")
TABLE = Gallery(
    name="aevb_figure4",
    title="AEVB with two latents: learned manifolds",
    base=aevb_figure2.BASE,
    cells={
        aevb_figure2.row_name(d, 2, "AEVB"): aevb_figure2.recipe_args(d, 2, "AEVB") for d in DATA
    },
    presets=include_all_rows(aevb_figure2.TABLE.presets),
    sources=[aevb_figure2.TABLE],
)
#: Number of images on each side.
SIDE = 20


def draw(results: Mapping[str, Any], cells: Sequence[SharedCell]) -> Figure:
    """Draw a panel for each data set, with the first seed."""
    figure = Figure(figsize=(12, 7.4), layout="constrained")
    panels = dict(zip(TABLE.cells, figure.subplots(1, 2), strict=True))
    for cell in reversed(cells):
        _, _, vae = cell.run.open()
        assert isinstance(vae, pv.VAE)
        with torch.no_grad():
            show_images(panels[cell.row], vae.likelihood(latent_grid(SIDE)).mean, SIDE, cell.row)
    return figure


main = partial(table.main, TABLE, draw=draw)

if __name__ == "__main__":
    sys.exit(main())
