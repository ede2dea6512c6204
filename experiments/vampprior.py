"""The VampPrior beside N(0, I), by the recipe of its authors' code.

VAE with a VampPrior (Tomczak & Welling, 2018), table 1, static MNIST, one layer of latents.
https://arxiv.org/abs/1705.07120

Gated networks 300–300, 40 latents, 500 pseudo-inputs, 50,000 digits binarised once, minibatches of
100, Adam of normalised gradients at 5e-4, the KL warmed up over 100 epochs, at most 2000 and no
more than 50 without a better validation ELBO. The binarisation is ours, drawn with a seed, and
pseudo-inputs begin uniform in [0, 1], or as digits, where the authors' begin near black.
``experiments.priors`` compares all priors in small.
"""

from __future__ import annotations

import sys
from dataclasses import replace

from .claims import higher
from .priors import BASE, PRESETS, warmed
from .priors import TABLE as PRIORS
from .published import VAMPPRIOR
from .table import Table, main

STATIC = " --data.binarize static --data.valid {valid} "
OPTIMIZER = """
    --plugin {here}/paper_optimizers.py
    --fit.optimizer paper_optimizers.AdamNormGrad --fit.optimizer.lr 0.0005 --fit.patience 50
"""
PAPER = PRESETS["paper"].values

TABLE = Table(
    name="vampprior",
    title=(
        "VampPrior and N(0, I) on 50,000 digits binarised once (ours, drawn with a seed): gated "
        "networks, 40 latents, test digits"
    ),
    base=BASE + STATIC + OPTIMIZER,
    cells={row: PRIORS.cells[row] for row in (*VAMPPRIOR, "VampPrior from data")},
    published=VAMPPRIOR,
    claims={
        "VampPrior": higher("the VampPrior is better than N(0, I)", "VampPrior", "StandardNormal")
    },
    causes={
        "": "the binarisation is ours, and others than the authors published the figure",
        "VampPrior": "the binarisation is ours, pseudo-inputs begin elsewhere, and others than "
        "the authors published the figure",
    },
    train_size=50_000,
    presets={
        "smoke": replace(
            warmed(PRESETS["smoke"], 1), values={**PRESETS["smoke"].values, "valid": 10}
        ),
        # 3 % of the most epochs that the paper allows, and the same part of them warmed up
        "small": warmed(
            replace(
                PRESETS["paper"],
                fit="--fit.epochs 60",
                num_data=1000,
                values={**PAPER, "valid": 10_000},
            ),
            20,
        ),
        "paper": warmed(
            replace(PRESETS["paper"], fit="--fit.epochs 2000", values={**PAPER, "valid": 10_000}),
            100,
        ),
    },
)

if __name__ == "__main__":
    sys.exit(main(TABLE))
