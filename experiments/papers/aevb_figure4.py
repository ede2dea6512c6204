"""Learned manifolds of MNIST and Frey Face with two latents.

Auto-Encoding Variational Bayes (Kingma & Welling, 2013), figure 4 and appendix A: a grid on the
unit square is mapped to latents by the inverse CDF of the normal, and each latent is shown as the
mean of p(x|z). The programs are those of :mod:`experiments.papers.aevb_figure2` with N_z = 2.
https://arxiv.org/abs/1312.6114
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import replace
from functools import partial

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor

import pyro_vae as pv
from pyro_vae.report.pictures import to_pixels

from ..cells import Cell
from ..command import main as run
from ..reporting import Results
from . import aevb_figure2
from .pilot import PilotCell, PilotTable

DATA = ("Frey Face", "MNIST")
TABLE = PilotTable(
    name="aevb_figure4",
    title="AEVB with two latents: learned manifolds",
    base=aevb_figure2.BASE,
    cells={
        aevb_figure2.row_name(d, 2, "AEVB"): aevb_figure2.recipe_args(d, 2, "AEVB") for d in DATA
    },
    presets={name: replace(p, exclude=()) for name, p in aevb_figure2.TABLE.presets.items()},
    shares=[aevb_figure2.TABLE],
)
#: Number of images on each side.
SIDE = 20


def latent_grid(side: int) -> Tensor:
    """Return latents ``(side², 2)``: a regular grid on the unit square, mapped through Φ⁻¹.

    The first coordinate increases to the right, the second upwards.
    """
    quantiles = torch.special.ndtri((torch.arange(side) + 0.5) / side)
    up, right = torch.meshgrid(quantiles.flip(0), quantiles, indexing="ij")
    return torch.stack([right, up], -1).flatten(0, 1)


def show_images(axes: Axes, images: Tensor, columns: int, title: str) -> None:
    """Draw images ``(rows · columns, *event)`` edge to edge."""
    pixels = to_pixels(images)
    rows = pixels.reshape(-1, columns, *pixels.shape[1:])
    axes.imshow(np.block([[*row] for row in rows]), cmap="gray", vmin=0, vmax=1)
    axes.set_title(title, fontsize=10)
    axes.axis("off")


def draw(results: Results, cells: Sequence[Cell]) -> Figure:
    """Draw a panel for each data set, with the first seed."""
    figure = Figure(figsize=(12, 7.4), layout="constrained")
    panels = dict(zip(TABLE.cells, figure.subplots(1, 2), strict=True))
    for cell in reversed(cells):
        _, _, vae = cell.run.open()
        assert isinstance(vae, pv.VAE)
        with torch.no_grad():
            show_images(panels[cell.row], vae.likelihood(latent_grid(SIDE)).mean, SIDE, cell.row)
    return figure


main = partial(run, TABLE, draw=draw, cell=PilotCell)

if __name__ == "__main__":
    sys.exit(main())
