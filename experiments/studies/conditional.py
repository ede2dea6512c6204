"""Conditioning on the class: log p(x | c) of a conditional VAE and log p(x) of a plain VAE.

Learning Structured Output Representation using Deep Conditional Generative Models (Sohn et
al., 2015). https://papers.nips.cc/paper/5775
"""

from __future__ import annotations

import sys

from ..measures import measure_accuracy_by_bayes
from ..table import Preset, Table, main

BASE = """
    --data.name mnist --data.binarize dynamic --data.valid 0
    --model.encoder MLP --model.encoder.hidden {hidden}
    --model.decoder MLP --model.decoder.hidden {hidden} --model.decoder.output_bias data
"""

TABLE = Table(
    name="conditional",
    title="VAE, log p(x), and ConditionalVAE, log p(x | class), on binarised MNIST, test digits",
    base=BASE,
    cells={
        "ConditionalVAE": "--model ConditionalVAE --model.latent_dim 20",
        "VAE": "--model.latent_dim 20",
    },
    measures={"accuracy by Bayes": measure_accuracy_by_bayes},
    presets={
        "smoke": Preset(
            fit="--data.name mnist5k --data.test 4850 --fit.epochs 1 --fit.batch_size 50",
            num_samples=50,
            num_data=20,
            values={"hidden": "[20]"},
        ),
        "small": Preset(
            fit="""
                --fit.epochs 15 --fit.batch_size 100 --fit.optimizer Adam --fit.optimizer.lr 0.001
            """,
            num_data=1000,
            values={"hidden": "[200,200]"},
        ),
        "paper": Preset(
            fit="""
                --fit.epochs 500 --fit.batch_size 100 --fit.optimizer Adam --fit.optimizer.lr 0.001
            """,
            values={"hidden": "[500,500]"},
        ),
    },
)

if __name__ == "__main__":
    sys.exit(main(TABLE))
