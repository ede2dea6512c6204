"""VAE and IWAE on MNIST: the gain of k samples in L_5000 and active units.

Importance Weighted Autoencoders (Burda et al., 2015), table 1. https://arxiv.org/abs/1509.00519
"""

from __future__ import annotations

import sys

from ..command import main
from ..papers.iwae_paper import ONE_LAYER, TABLE_1, measure_active_units
from ..tables import ADAM, Table, budget, smoke

DATA = "--data.name mnist --data.binarize dynamic --data.valid 0"
OBJECTIVES = {
    "VAE, k = 1": "--objective ELBO",
    "VAE, k = 50": "--objective ELBO --objective.num_particles {k}",
    "IWAE, k = 5": "--objective IWAE --objective.k 5",
    "IWAE, k = 50": "--objective IWAE --objective.k {k}",
}

TABLE = Table(
    name="iwae",
    title="VAE and IWAE with 50 latents on binarised MNIST; published: after 3280 epochs",
    base=DATA + ONE_LAYER,
    cells=OBJECTIVES,
    measures={"active units": measure_active_units},
    # as text, not compared: ``iwae_table1`` has the recipe of the paper
    published={row: str(TABLE_1["mnist"][f"1 layer: {row}"]) for row in OBJECTIVES},
    presets={
        "smoke": smoke(hidden="[20]", k=4, bias="data"),
        "small": budget(f"--fit.epochs 12 {ADAM}", hidden="[200,200]", k=50, bias="data"),
        "paper": budget(
            """
                --fit.epochs 3280 --fit.batch_size 20
                --fit.optimizer Adam --fit.optimizer.lr 0.001 --fit.optimizer.eps 0.0001
                --fit.schedule MultiStepLR --fit.schedule.gamma 0.7196856730011519
                --fit.schedule.milestones [1,4,13,40,121,364,1093]
            """,
            hidden="[200,200]",
            k=50,
            bias="data",
        ),
    },
)

if __name__ == "__main__":
    sys.exit(main(TABLE))
