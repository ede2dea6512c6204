"""Conditioning on the class: log p(x | c) of a conditional VAE and log p(x) of a plain VAE.

Learning Structured Output Representation using Deep Conditional Generative Models (Sohn et
al., 2015). https://papers.nips.cc/paper/5775
"""

from __future__ import annotations

import sys
from typing import Any

import numpy as np
import torch

import pyro_vae as pv
from pyro_vae.data import Dataset
from pyro_vae.models import Autoencoder

from ..command import main
from ..tables import ADAM, Table, budget, smoke

BASE = """
    --data.name mnist --data.binarize dynamic --data.valid 0
    --model.encoder MLP --model.encoder.hidden {hidden}
    --model.decoder MLP --model.decoder.hidden {hidden} --model.decoder.output_bias data
"""


def measure_accuracy_by_bayes(model: Autoencoder, data: Dataset) -> dict[str, Any]:
    """Return the accuracy of the classifier argmax p̂(x | c) on 200 test examples.

    Class probabilities are equal, and each class has 100 samples. The value is ``None`` for an
    unconditional model.
    """
    if model.labels is not pv.models.ConditionalVAE.labels:
        return {"value": None, "text": "–"}
    subset = data.test.head(200)
    assert subset.labels is not None
    x = subset.materialize(0)
    scores = [
        pv.evaluate(model, x, torch.full_like(subset.labels, c), num_samples=100)
        for c in range(data.num_classes)
    ]
    log_evidence = np.stack([bounds.per_datum["log_evidence"] for bounds in scores])
    value = float((log_evidence.argmax(0) == subset.labels.numpy()).mean())
    return {"value": value, "se": (value * (1 - value) / len(x)) ** 0.5, "num_data": len(x)}


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
        "smoke": smoke(hidden="[20]"),
        "small": budget(f"--fit.epochs 15 {ADAM}", num_data=1000, hidden="[200,200]"),
        "paper": budget(f"--fit.epochs 500 {ADAM}", hidden="[500,500]"),
    },
)

if __name__ == "__main__":
    sys.exit(main(TABLE))
