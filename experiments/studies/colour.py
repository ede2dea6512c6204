"""Likelihoods of colour pictures: patches of photographs, with and without coupled channels.

PixelCNN++: Improving the PixelCNN with Discretized Logistic Mixture Likelihood and Other
Modifications (Salimans et al., 2017), section 2.2, for the coupling. The paper has an
autoregressive decoder; here pixels are independent given z. https://arxiv.org/abs/1701.05517
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from functools import partial

import torch
from matplotlib.figure import Figure

from pyro_vae import queries
from pyro_vae.report.pictures import to_pixels
from pyro_vae.report.plots import plot_image_grid

from ..cells import Cell
from ..command import main as run
from ..reporting import Results
from ..tables import Table, budget

MIXTURE = "--model.likelihood MixtureOfDiscretizedLogistics"
TABLE = Table(
    name="colour",
    title=(
        "Likelihoods of colour patches, 16 × 16 pixels from six photographs: bits per dimension of "
        "patches from regions without training patches"
    ),
    base="""
        --data.name patches --data.photographs [china,flower,astronaut,chelsea,coffee,rocket]
        --data.binarize none --data.values integer --data.valid 0.1
        --model.latent_dim 32
        --model.encoder MLP --model.encoder.hidden {hidden} --model.encoder.standardize true
        --model.decoder MLP --model.decoder.hidden {hidden} --model.decoder.output_bias data
        --fit.batch_size 50
    """,
    cells={
        "Mixture": MIXTURE,
        "Mixture, coupled": f"{MIXTURE} --model.likelihood.coupling true",
        "DiscretizedLogistic": "--model.likelihood DiscretizedLogistic",
    },
    presets={
        "smoke": budget(
            "--data.train 100 --fit.epochs 1", num_samples=20, num_data=10, hidden="[5]"
        ),
        "small": budget(
            "--fit.epochs 25 --fit.patience 6", num_samples=100, num_data=1387, hidden="[100]"
        ),
        "paper": budget(
            "--fit.epochs 1000 --fit.patience 50 --fit.optimizer Adam --fit.optimizer.lr 0.0003",
            hidden="[500,500]",
        ),
    },
    bits=True,
)
#: Number of patches in the picture.
COLUMNS = 16


def draw(results: Results, cells: Sequence[Cell]) -> Figure:
    """Draw held-out patches, and below them one sample of p(x|z) for z from q(z|x) of each row."""
    rows: list[torch.Tensor] = []
    for cell in cells:
        if cell.seed != min(c.seed for c in cells):
            continue
        _, data, model = cell.run.open()
        x = data.test.materialize(0)
        x = x[:: len(x) // COLUMNS][:COLUMNS]
        rows += [] if rows else [x]
        rows.append(queries.reconstruct(model, x, mean=False, seed=0).x)
    return plot_image_grid(to_pixels(torch.cat(rows)), columns=COLUMNS)


main = partial(run, TABLE, draw=draw)

if __name__ == "__main__":
    sys.exit(main())
