"""Likelihoods of sparse counts: simulated cells, whose true log p(x) is known.

Deep generative modeling for single-cell transcriptomics (Lopez et al., 2018) has the negative
binomial with and without zero inflation, and the library size as a factor of the rates. The
simulation has no zero inflation. https://doi.org/10.1038/s41592-018-0229-2
"""

from __future__ import annotations

import sys
from functools import partial
from typing import Any

import pyro_vae as pv
from pyro_vae.data import Dataset
from pyro_vae.data.sources import cells_log_prob
from pyro_vae.models import Autoencoder

from ..command import main
from ..tables import Table, budget


def measure_distance(
    model: Autoencoder, data: Dataset, num_data: int = 400, num_samples: int = 500
) -> dict[str, Any]:
    """Return the mean of true log p(x) − log p̂(x) over test cells, an estimate of KL(p ‖ model).

    ``se`` is over paired cells; ``true`` is the mean of the true log p(x).
    """
    test = data.test.head(num_data)
    bounds = pv.evaluate(model, test, num_samples=num_samples)
    true = cells_log_prob(test.values).numpy()
    difference = true - bounds.per_datum["log_evidence"]
    return {
        "value": float(difference.mean()),
        "se": float(difference.std(ddof=1) / len(true) ** 0.5),
        "true": float(true.mean()),
        "num_data": len(true),
        "num_samples": num_samples,
    }


LIBRARY = "--model.likelihood.library decoded"
TABLE = Table(
    name="cells",
    title=(
        "Likelihoods of sparse counts: 200 genes of simulated cells, negative binomial without "
        "zero inflation; nats per cell, and how far the true log p(x) is above"
    ),
    base="""
        --data.name cells --data.binarize none --data.values integer --data.valid 0.1
        --model.latent_dim 8
        --model.encoder MLP --model.encoder.hidden {hidden} --model.encoder.standardize true
        --model.decoder MLP --model.decoder.hidden {hidden} --model.decoder.output_bias data
        --fit.batch_size 100
    """,
    cells={
        "NegativeBinomial with library": f"--model.likelihood NegativeBinomial {LIBRARY}",
        "NegativeBinomial": "--model.likelihood NegativeBinomial",
        "ZeroInflatedNegativeBinomial with library": (
            f"--model.likelihood ZeroInflatedNegativeBinomial {LIBRARY}"
        ),
        "Poisson with library": f"--model.likelihood Poisson {LIBRARY}",
    },
    measures={"truth above": measure_distance},
    presets={
        "smoke": budget(
            "--data.train 200 --fit.epochs 1",
            num_samples=50,
            num_data=20,
            measures={"truth above": partial(measure_distance, num_data=20, num_samples=50)},
            hidden="[5]",
        ),
        "small": budget("--fit.epochs 60 --fit.patience 8", num_samples=500, hidden="[64]"),
        "paper": budget(
            "--fit.epochs 1000 --fit.patience 50 --fit.optimizer Adam --fit.optimizer.lr 0.0003",
            hidden="[128]",
        ),
    },
)

if __name__ == "__main__":
    sys.exit(main(TABLE))
