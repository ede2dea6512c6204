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
from typing import Any

from pyro_vae.data import Dataset
from pyro_vae.evaluation.annealing.sampler import Annealing
from pyro_vae.evaluation.inference_gaps.estimator import gaps
from pyro_vae.models import Autoencoder

from ..table import Preset, Table, main

#: Number of test and of training examples whose q is refitted.
_NUM_DATA = 100
#: With fewer training examples than this, as in the smoke test, ``_SMOKE_OPTIONS`` apply.
_MIN_TRAIN = 1000
_SMOKE_OPTIONS: dict[str, Any] = {
    "num_steps": 20,
    "num_samples": 50,
    "annealing": Annealing(num_chains=2, num_temperatures=10, num_steps=2),
}


def measure_inference_gap(model: Autoencoder, data: Dataset) -> dict[str, Any]:
    """Return the parts of log p̂ − ELBO of 100 test and 100 training examples."""
    smoke = len(data.train) < _MIN_TRAIN
    size = 10 if smoke else _NUM_DATA
    options = _SMOKE_OPTIONS if smoke else {}
    result = gaps(model, data.test.head(size), train=data.train.head(size), **options)
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
    measures={"approximation + amortisation": measure_inference_gap},
    published={
        "small encoder": "amortisation is the larger part (abstract)",
        "large encoder": "smaller amortisation gap (unconfirmed)",
    },
    presets={
        "smoke": Preset(
            fit="--data.name mnist5k --data.test 4850 --fit.epochs 1 --fit.batch_size 50",
            num_samples=50,
            num_data=20,
            values={"small": "[5]", "large": "[20,20]", "decoder": "[20]"},
        ),
        "small": Preset(
            fit="""
                --fit.epochs 20 --fit.batch_size 100 --fit.optimizer Adam --fit.optimizer.lr 0.001
            """,
            num_data=1000,
            values={"small": "[30]", "large": "[500,500]", "decoder": "[200,200]"},
        ),
        "paper": Preset(
            fit="""
                --fit.epochs 2000 --fit.batch_size 100
                --fit.optimizer Adam --fit.optimizer.lr 0.001
            """,
            values={"small": "[30]", "large": "[500,500]", "decoder": "[200,200]"},
        ),
    },
)

if __name__ == "__main__":
    sys.exit(main(TABLE))
