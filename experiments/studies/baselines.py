"""AEVB and its baselines on 1000 digits: wake-sleep, Monte Carlo EM and full VB.

Auto-Encoding Variational Bayes (Kingma & Welling, 2013), figure 3 with 1000 training digits
and appendices C, E and F: one layer of 100 tanh units in encoder and decoder, 3 latents,
initial weights from N(0, 0.01) (0.01 read as the variance), Adagrad, a prior N(0, I) on the
decoder's weights. https://arxiv.org/abs/1312.6114
"""

from __future__ import annotations

import sys
from functools import partial
from typing import Any

import pyro_vae as pv
from pyro_vae.data import Dataset
from pyro_vae.models import Autoencoder

from ..command import main
from ..tables import Table, budget


def measure_training_log_evidence(
    model: Autoencoder, data: Dataset, num_data: int = 1000, num_samples: int = 1000
) -> dict[str, Any]:
    """Return log p̂ of the first training examples."""
    bounds = pv.evaluate(model, data.train.head(num_data), num_samples=num_samples)
    row = bounds.estimates["log_evidence"]
    return {"value": row.value, "se": row.se_data, "se_monte_carlo": row.se_monte_carlo}


FEW = partial(measure_training_log_evidence, num_data=20, num_samples=50)
TABLE = Table(
    name="baselines",
    title="Marginal likelihood with 3 latents, trained on 1000 binarised MNIST digits",
    base="""
        --data.name mnist5k --data.test 4000 --data.valid 0 --data.binarize dynamic
        --model.latent_dim 3
        --model.encoder MLP --model.encoder.hidden {hidden} --model.encoder.init 0.1
        --model.decoder MLP --model.decoder.hidden {hidden} --model.decoder.init 0.1
        --fit.batch_size 100 --fit.optimizer Adagrad --fit.optimizer.lr 0.02
    """,
    cells={
        "AEVB": "--objective ELBO --objective.map_weights true",
        "wake-sleep": "--objective WakeSleep",
        "Monte Carlo EM": "--objective MonteCarloEM",
        "full VB": "--model BayesianVAE",
    },
    measures={"training L_1000": measure_training_log_evidence},
    presets={
        "smoke": budget(
            "--fit.epochs 1",
            num_samples=50,
            num_data=20,
            measures={"training L_1000": FEW},
            hidden="[20]",
        ),
        "small": budget("--fit.epochs 1000", num_data=1000, hidden="[100]"),
        "paper": budget("--fit.epochs 60000", num_data=1000, hidden="[100]"),
    },
)

if __name__ == "__main__":
    sys.exit(main(TABLE))
