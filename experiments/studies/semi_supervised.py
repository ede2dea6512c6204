"""M2 on MNIST: classification accuracy with few labels.

Semi-Supervised Learning with Deep Generative Models (Kingma et al., 2014), table 1. The
published accuracies are those of Pyro's own M2 example, whose networks these are.
https://arxiv.org/abs/1406.5298
"""

from __future__ import annotations

import sys
from typing import Any

import pyro_vae as pv
from pyro_vae.data import Dataset
from pyro_vae.models import Autoencoder

from ..command import main
from ..tables import Table, budget

PUBLISHED = {100: 0.932, 600: 0.944, 1000: 0.949, 3000: 0.958}


def measure_accuracy(model: Autoencoder, data: Dataset) -> dict[str, Any]:
    """Return the classification accuracy on the test examples with its binomial error."""
    assert isinstance(model, pv.models.SemiSupervisedVAE) and data.test.labels is not None
    value = model.accuracy(data.test.materialize(0), data.test.labels)
    size = len(data.test)
    return {"value": value, "se": (value * (1 - value) / size) ** 0.5, "num_data": size}


TABLE = Table(
    name="semi_supervised",
    title="M2 with 50 latents on binarised MNIST; published: the accuracies of Pyro's example",
    base="""
        --data.name mnist --data.binarize dynamic --data.valid 0
        --model SemiSupervisedVAE --model.latent_dim 50
        --model.classifier MLP --model.classifier.hidden {classifier}
        --model.classifier.activation {activation}
        --model.encoder MLP --model.encoder.hidden {hidden} --model.encoder.activation {activation}
        --model.decoder MLP --model.decoder.hidden {hidden} --model.decoder.activation {activation}
        --model.decoder.output_bias data
        --objective EnumeratedELBO --objective.classification_weight {weight}
        --fit.labelled_every {every} --fit.optimizer Adam
    """,
    cells={f"{count} labels": f"--data.labelled {count}" for count in PUBLISHED},
    measures={"accuracy": measure_accuracy},
    published={f"{count} labels": f"{value:.3f}" for count, value in PUBLISHED.items()},
    presets={
        "smoke": budget(
            "--data.name mnist5k --data.test 500 --fit.epochs 1 --fit.batch_size 100",
            num_samples=50,
            num_data=20,
            exclude=["3000 labels"],
            classifier="[20]",
            hidden="[20]",
            activation="ReLU",
            weight=100,
            every=4,
        ),
        # the classifier may be large: it runs once per example, the decoder ten times
        "small": budget(
            "--fit.epochs 12 --fit.batch_size 100 --fit.optimizer.lr 0.001",
            num_samples=100,
            num_data=1000,
            classifier="[500,500]",
            hidden="[128]",
            activation="ReLU",
            weight=300,
            every=1,
        ),
        # as in Pyro's example
        "paper": budget(
            "--fit.epochs 200 --fit.batch_size 200 --fit.optimizer.lr 0.00042",
            num_samples=1000,
            classifier="[256,128]",
            hidden="[256,128]",
            activation="Softplus",
            weight=46,
            every=10,
        ),
    },
)

if __name__ == "__main__":
    sys.exit(main(TABLE))
