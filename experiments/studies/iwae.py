"""VAE and IWAE on MNIST: the gain of k samples in L_5000 and active units.

Importance Weighted Autoencoders (Burda et al., 2015), table 1. https://arxiv.org/abs/1509.00519
"""

from __future__ import annotations

import sys

from ..measures import measure_active_units
from ..published import IWAE_TABLE_1
from ..table import Preset, Table, main

DATA = "--data.name mnist --data.binarize dynamic --data.valid 0"
# initial weights as in the text, output bias as in the authors' code
ONE_LAYER = """
    --model.latent_dim 50
    --model.encoder MLP --model.encoder.hidden {hidden} --model.encoder.init glorot
    --model.decoder MLP --model.decoder.hidden {hidden} --model.decoder.init glorot
    --model.decoder.output_bias {bias}
"""
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
    published={row: str(IWAE_TABLE_1["mnist"][f"1 layer: {row}"]) for row in OBJECTIVES},
    presets={
        "smoke": Preset(
            fit="--data.name mnist5k --data.test 4850 --fit.epochs 1 --fit.batch_size 50",
            num_samples=50,
            num_data=20,
            values={"hidden": "[20]", "k": 4, "bias": "data"},
        ),
        "small": Preset(
            fit="""
                --fit.epochs 12 --fit.batch_size 100 --fit.optimizer Adam --fit.optimizer.lr 0.001
            """,
            values={"hidden": "[200,200]", "k": 50, "bias": "data"},
        ),
        "paper": Preset(
            fit="""
                --fit.epochs 3280 --fit.batch_size 20
                --fit.optimizer Adam --fit.optimizer.lr 0.001 --fit.optimizer.eps 0.0001
                --fit.schedule MultiStepLR --fit.schedule.gamma 0.7196856730011519
                --fit.schedule.milestones [1,4,13,40,121,364,1093]
            """,
            values={"hidden": "[200,200]", "k": 50, "bias": "data"},
        ),
    },
)

if __name__ == "__main__":
    sys.exit(main(TABLE))
