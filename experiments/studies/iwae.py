"""VAE and IWAE on MNIST: the gain of k samples in L_5000 and active units.

Importance Weighted Autoencoders (Burda et al., 2015), table 1. https://arxiv.org/abs/1509.00519
"""

from __future__ import annotations

import sys

from ..command import main
from ..papers.iwae_paper import ONE_LAYER, SAMPLED_KL, TABLE_1, TEXT, measure_active_units
from ..tables import ADAM, Table, budget, smoke

DATA = "--data.name mnist --data.binarize dynamic --data.valid 0"
OBJECTIVES = {
    "VAE, k = 1": "--objective ELBO {kl}",
    "VAE, k = 50": "--objective ELBO {kl} --objective.num_particles {k}",
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
        "smoke": smoke(hidden="[20]", k=4, kl="", **TEXT.values),
        "small": budget(f"--fit.epochs 12 {ADAM}", hidden="[200,200]", k=50, kl="", **TEXT.values),
        # as in ``iwae_table1``
        "paper": budget(
            TEXT.fit(7), hidden="[200,200]", k=50, lr=0.001, kl=SAMPLED_KL, **TEXT.values
        ),
    },
)

if __name__ == "__main__":
    sys.exit(main(TABLE))
