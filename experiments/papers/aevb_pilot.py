"""Choice of the step sizes of :mod:`experiments.papers.aevb_figure2` after 10⁵ training examples.

Auto-Encoding Variational Bayes (Kingma & Welling, 2013), section 5: Adagrad's step size is one of
0.01, 0.02 and 0.1, chosen by the performance on the training set in the first few iterations.
https://arxiv.org/abs/1312.6114
"""

from __future__ import annotations

import sys
from dataclasses import replace
from itertools import product
from typing import Any

import pyro_vae as pv
from pyro_vae.data import Dataset
from pyro_vae.models import Autoencoder

from ..command import main
from ..tables import Preset, Table
from . import aevb_figure2

STEP_SIZES = (0.01, 0.02, 0.1)
FEW_EPOCHS = {"mnist_epochs": 2, "frey_epochs": 62}


def measure_training_bound(model: Autoencoder, data: Dataset) -> dict[str, Any]:
    """Return the lower bound of the first 1000 training examples."""
    row = pv.evaluate(model, data.train.head(1000), num_samples=10).estimates["elbo"]
    return {"value": row.value, "se": row.se_data, "se_monte_carlo": row.se_monte_carlo}


def make_preset(name: str) -> Preset:
    """Return a preset of figure 2 with few epochs; those of ``smoke`` are few already."""
    preset = aevb_figure2.TABLE.presets[name]
    values = {**preset.values, **({} if name == "smoke" else FEW_EPOCHS)}
    return replace(preset, num_samples=50, exclude=(), values=values)


TABLE = Table(
    name="aevb_pilot",
    title="Adagrad step sizes for AEVB and wake-sleep with ten latents: early training bounds",
    base=aevb_figure2.BASE,
    cells={
        f"{data}, {method}: {step_size}": aevb_figure2.recipe_args(data, 10, method, step_size)
        for data, method, step_size in product(aevb_figure2.DATA, aevb_figure2.METHODS, STEP_SIZES)
    },
    measures={"training bound": measure_training_bound},
    presets={name: make_preset(name) for name in aevb_figure2.TABLE.presets},
)

if __name__ == "__main__":
    sys.exit(main(TABLE))
