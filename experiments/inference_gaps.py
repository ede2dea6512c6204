"""Where the bound of a VAE is lost: by the family of q, or by a small or a large encoder.

Inference Suboptimality in Variational Autoencoders (Cremer, Li & Duvenaud, 2018), section 5:
the gap of MNIST models as approximation and amortisation. https://arxiv.org/abs/1801.03558

Of the paper are 50 latents and a decoder of two layers of 200 ELU; its encoders are two layers of
200, and larger ones. What it found is told in words, of its abstract and of memory: none of its
figures is at hand.
"""

from __future__ import annotations

import sys
from typing import Any

from pyro_vae.data import Dataset
from pyro_vae.evaluation.annealing.sampler import Annealing
from pyro_vae.evaluation.inference_gaps.estimator import gaps
from pyro_vae.models import Autoencoder

from .table import Preset, Table, main

#: Data whose q is refitted, of the test and of the training data.
_DATA = 100
#: Fewer training data than these are those of a test of this script, which is to be short.
_REAL = 1000
_SHORT: dict[str, Any] = {
    "num_steps": 20,
    "num_samples": 50,
    "annealing": Annealing(num_chains=2, num_temperatures=10, num_steps=2),
}


def inference_gap(model: Autoencoder, data: Dataset) -> dict[str, Any]:
    """log p̂ − ELBO of 100 test data, taken apart, and beside it that of 100 training data."""
    real = len(data.train) >= _REAL
    size = _DATA if real else 10
    options = {} if real else _SHORT
    found = gaps(model, data.test.head(size), train=data.train.head(size), **options)
    rows = found.estimates
    approximation, amortisation, total = (
        rows[name].value for name in ("approximation", "amortisation", "total")
    )
    return {
        "value": total,
        "se": rows["total"].se_data,
        "text": f"{approximation:.2f} + {amortisation:.2f} = {total:.2f}",
        **{key: value for key, value in found.summary().items() if key != "settings"},
    }


TABLE = Table(
    name="inference_gaps",
    title=(
        "Approximation and amortisation gap, in nats, of a small and a large encoder with the same "
        "decoder, of the first 100 test data; dynamically binarised MNIST"
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
    measures={"approximation + amortisation": inference_gap},
    published={
        "small encoder": "amortisation is the larger part (abstract)",
        "large encoder": "amortisation shrinks (memory)",
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
