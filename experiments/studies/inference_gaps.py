"""Approximation and amortisation gaps of a small and a large encoder.

Inference Suboptimality in Variational Autoencoders (Cremer, Li & Duvenaud, 2018), section 5:
the inference gap of MNIST models, split into approximation and amortisation.
https://arxiv.org/abs/1801.03558

The 50 latents and the decoder (two layers of 200 ELU) are those of the paper; its encoders have two
layers of 200 and more. Published findings are quoted qualitatively, as the paper's numbers were not
available.
"""

from __future__ import annotations

import sys
from functools import partial
from typing import Any

from pyro_vae.data import Dataset
from pyro_vae.evaluation.annealing.sampler import Annealing
from pyro_vae.evaluation.inference_gaps.estimator import gaps
from pyro_vae.models import Autoencoder

from ..command import main
from ..tables import ADAM, Table, budget, smoke

#: Annealing and fits of a smoke test.
SMOKE: dict[str, Any] = {
    "num_steps": 20,
    "num_samples": 50,
    "annealing": Annealing(num_chains=2, num_temperatures=10, num_steps=2),
}


def measure_inference_gap(
    model: Autoencoder, data: Dataset, num_data: int = 100, **options: Any
) -> dict[str, Any]:
    """Return the parts of log p̂ − ELBO of the first test and training examples."""
    train = data.train.head(num_data)
    result = gaps(model, data.test.head(num_data), train=train, **options)
    rows = result.estimates
    approximation, amortisation, total = (
        rows[name].value for name in ("approximation", "amortisation", "total")
    )
    return {
        "value": total,
        "se": rows["total"].se_data,
        "text": f"{approximation:.2f} + {amortisation:.2f} = {total:.2f}",
        **{key: value for key, value in result.summary().items() if key != "settings"},
    }


COLUMN = "approximation + amortisation"
TABLE = Table(
    name="inference_gaps",
    title=(
        "Approximation and amortisation gap, in nats, of a small and a large encoder with the same "
        "decoder, for the first 100 test digits; dynamically binarised MNIST"
    ),
    base="""
        --data.name mnist --data.binarize dynamic --data.valid 0 --model.latent_dim 50
        --model.encoder MLP --model.encoder.activation ELU
        --model.decoder MLP --model.decoder.activation ELU
        --model.decoder.hidden {decoder} --model.decoder.output_bias data --objective ELBO
    """,
    cells={
        "small encoder": "--model.encoder.hidden {small}",
        "large encoder": "--model.encoder.hidden {large}",
    },
    measures={COLUMN: measure_inference_gap},
    published={
        "small encoder": "amortisation is the larger part (abstract)",
        "large encoder": "smaller amortisation gap (unconfirmed)",
    },
    presets={
        "smoke": smoke(
            measures={COLUMN: partial(measure_inference_gap, num_data=10, **SMOKE)},
            small="[5]",
            large="[20,20]",
            decoder="[20]",
        ),
        "small": budget(
            f"--fit.epochs 20 {ADAM}",
            num_data=1000,
            small="[30]",
            large="[500,500]",
            decoder="[200,200]",
        ),
        "paper": budget(
            f"--fit.epochs 2000 {ADAM}", small="[30]", large="[500,500]", decoder="[200,200]"
        ),
    },
)

if __name__ == "__main__":
    sys.exit(main(TABLE))
