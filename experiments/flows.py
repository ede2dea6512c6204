"""Flow posteriors beside a diagonal normal, by the recipe of the Sylvester flows' authors.

Sylvester Normalizing Flows for Variational Inference (van den Berg et al., 2018), table 1, MNIST.
https://arxiv.org/abs/1803.05649

64 latents, four steps of each flow, 50,000 digits binarised once (ours, drawn with a seed),
Adamax at 5e-4, minibatches of 100, the KL warmed up over 100 epochs, at most 2000 and no more than
100 without a better validation ELBO. The authors' networks are gated convolutions, six deep; these
are two convolutions of stride 2 and a layer of 256. ``experiments.posteriors`` compares all
posteriors in small.
"""

from __future__ import annotations

import sys
from dataclasses import replace

from .claims import higher
from .posteriors import TABLE as POSTERIORS
from .priors import BASE, PRESETS, warmed
from .published import SYLVESTER
from .table import Preset, Table, main
from .vampprior import STATIC

FOUR = "--model.posterior.flows 4"
ROWS = {
    "DiagonalNormal": "",
    "PlanarFlow": FOUR,
    "InverseAutoregressiveFlow": f"{FOUR} --model.posterior.hidden [320]",
    "SylvesterFlow": FOUR,
}
CONVOLUTIONS = " --model.encoder.kernel 5 --model.decoder.kernel 5"


def preset(epochs: int, warm_up: int, num_data: int | None) -> Preset:
    """So many epochs of the authors' recipe."""
    values = {"network": "ConvNet", "hidden": "[256]", "valid": 10_000}
    fit = f"--fit.epochs {epochs}{CONVOLUTIONS}"
    return warmed(Preset(fit=fit, num_data=num_data, values=values), warm_up)


TABLE = Table(
    name="flows",
    title=(
        "Flow posteriors of four steps on 50,000 digits binarised once (ours, drawn with a seed): "
        "convolutions, 64 latents, test digits"
    ),
    base=BASE
    + STATIC
    + """
        --model.latent_dim 64 --fit.patience 100
        --fit.optimizer Adamax --fit.optimizer.lr 0.0005 --fit.optimizer.eps 1e-7
    """,
    cells={row: f"{POSTERIORS.cells[row]} {words}" for row, words in ROWS.items()},
    published=SYLVESTER,
    claims={
        row: higher(f"{row} is better than a diagonal normal", row, "DiagonalNormal")
        for row in ROWS
        if row != "DiagonalNormal"
    }
    | {
        "best": higher(
            "the Sylvester flow is better than the planar", "SylvesterFlow", "PlanarFlow"
        )
    },
    causes={"": "other networks than the authors' gated convolutions; the binarisation is ours"},
    train_size=50_000,
    presets={
        "smoke": replace(
            warmed(PRESETS["smoke"], 1), values={**PRESETS["smoke"].values, "valid": 10}
        ),
        # 0.75 % of the most epochs that the paper allows
        "small": preset(15, 5, 500),
        "paper": preset(2000, 100, None),
    },
)

if __name__ == "__main__":
    sys.exit(main(TABLE))
