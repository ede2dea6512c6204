"""Flow posteriors and a diagonal normal, with the recipe of the Sylvester flow's authors.

Sylvester Normalizing Flows for Variational Inference (van den Berg et al., 2018), table 1, MNIST.
https://arxiv.org/abs/1803.05649

64 latents, four steps of each flow, 50,000 digits binarised once (ours, drawn with a seed), Adamax
with step size 5e-4, minibatches of 100, KL warm-up over 100 epochs, at most 2000 epochs, early
stopping after 100 epochs without a better validation ELBO. The authors' networks are six gated
convolutions; these are two convolutions of stride 2 and a layer of 256.
``experiments.studies.posteriors`` compares all posteriors on a smaller scale.
"""

from __future__ import annotations

import sys

from ..command import main
from ..studies.posteriors import TABLE as POSTERIORS
from ..studies.priors import BASE, add_warm_up
from ..tables import Preset, Published, Table, budget, ordering
from . import vampprior

SOURCE = "van den Berg et al. 2018, arXiv 1803.05649, table 1"
PUBLISHED = {
    "DiagonalNormal": Published(-82.14, SOURCE, confirmed=False),
    "PlanarFlow": Published(-81.91, SOURCE, confirmed=False),
    "InverseAutoregressiveFlow": Published(-80.79, SOURCE, confirmed=False),
    # the paper's orthogonal variant (O-SNF); ours uses Householder reflections (H-SNF)
    "SylvesterFlow": Published(-80.22, SOURCE, confirmed=False),
}
FOUR_STEPS = "--model.posterior.flows 4"
ROWS = {
    "DiagonalNormal": "",
    "PlanarFlow": FOUR_STEPS,
    "InverseAutoregressiveFlow": f"{FOUR_STEPS} --model.posterior.hidden [320]",
    "SylvesterFlow": FOUR_STEPS,
}
CONVOLUTIONS = " --model.encoder.kernel 5 --model.decoder.kernel 5"


def make_preset(epochs: int, warm_up: int, num_data: int | None) -> Preset:
    """Return the authors' recipe for a number of epochs."""
    values = {"network": "ConvNet", "hidden": "[256]", "valid": 10_000}
    fit = f"--fit.epochs {epochs}{CONVOLUTIONS}"
    return add_warm_up(budget(fit, num_data=num_data, **values), warm_up)


TABLE = Table(
    name="flows",
    title=(
        "Flow posteriors of four steps on 50,000 digits binarised once (ours, drawn with a seed): "
        "convolutions, 64 latents, test digits"
    ),
    base=BASE
    + vampprior.STATIC
    + """
        --model.latent_dim 64 --fit.patience 100
        --fit.optimizer Adamax --fit.optimizer.lr 0.0005 --fit.optimizer.eps 1e-7
    """,
    cells={row: f"{POSTERIORS.cells[row]} {args}" for row, args in ROWS.items()},
    published=PUBLISHED,
    claims={
        row: ordering(f"{row} is better than a diagonal normal", row, "DiagonalNormal")
        for row in ROWS
        if row != "DiagonalNormal"
    }
    | {
        "best": ordering(
            "the Sylvester flow is better than the planar flow", "SylvesterFlow", "PlanarFlow"
        )
    },
    causes={"": "networks differ from the authors' gated convolutions; the binarisation is ours"},
    train_size=50_000,
    presets={
        "smoke": vampprior.make_preset("smoke", 1, valid=10),
        # 0.75 % of the paper's maximum number of epochs
        "small": make_preset(15, 5, 500),
        "paper": make_preset(2000, 100, None),
    },
)

if __name__ == "__main__":
    sys.exit(main(TABLE))
