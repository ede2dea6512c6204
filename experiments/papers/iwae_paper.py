"""Networks, measure and published results of Importance Weighted Autoencoders.

Burda, Grosse & Salakhutdinov, 2015. https://arxiv.org/abs/1509.00519
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from scipy.stats import norm

import pyro_vae as pv
from pyro_vae.data import Dataset
from pyro_vae.models import Autoencoder

from ..tables import Published

__all__ = [
    "ONE_LAYER",
    "TABLE_1",
    "TABLE_2",
    "TABLE_3",
    "TWO_LAYERS",
    "measure_active_units",
    "row_name",
]

_PAPER = "Burda, Grosse & Salakhutdinov 2015, arXiv 1509.00519"
# initial weights as in the text, output bias as in the authors' code
ONE_LAYER = """
    --model.latent_dim 50
    --model.encoder MLP --model.encoder.hidden {hidden} --model.encoder.init glorot
    --model.decoder MLP --model.decoder.hidden {hidden} --model.decoder.init glorot
    --model.decoder.output_bias {bias}
"""
# x – 200 – 200 – z1 (100) – 100 – 100 – z2 (50), and back
TWO_LAYERS = """
    --model HierarchicalVAE --model.latent_dims [100,50]
    --model.encoders '[
        {{class_path: MLP, init_args: {{hidden: {hidden}, init: glorot}}}},
        {{class_path: MLP, init_args: {{hidden: {half}, init: glorot}}}}
    ]'
    --model.decoders '[
        {{class_path: MLP, init_args: {{hidden: {hidden}, init: glorot, output_bias: {bias}}}}},
        {{class_path: MLP, init_args: {{hidden: {half}, init: glorot}}}}
    ]'
"""


def measure_active_units(model: Autoencoder, data: Dataset) -> dict[str, Any]:
    """Return the active units on the test examples, by layer and bottom up (e.g. 26+7).

    References:
        Importance Weighted Autoencoders (Burda et al., 2015), section 5.2.
        https://arxiv.org/abs/1509.00519
    """
    units = pv.active_units(model, data.test)
    counts = dict(sorted(units.counts.items()))
    probabilities = [
        norm.cdf((v - units.threshold) / np.maximum(units.se[site], 1e-12))
        for site, v in units.variance.items()
    ]
    return {
        "value": sum(counts.values()),
        # uncertainty of the units near the threshold, treated as independent
        "se": float(sum((p * (1 - p)).sum() for p in probabilities)) ** 0.5,
        "text": "+".join(map(str, counts.values())),
        "variance": {site: v.round(5).tolist() for site, v in units.variance.items()},
        "num_samples": units.num_samples,
    }


def _parse_published(text: str, source: str) -> Published:
    """Parse "NLL / active units", the format of the paper's tables."""
    nll, _, units = text.partition(" / ")
    return Published(-float(nll), source, tuple(int(n) for n in units.split("+")) if units else ())


def row_name(layers: int, objective: str, k: int) -> str:
    """Return the name of a row of the IWAE paper's tables."""
    return f"{layers} layer{'s' if layers > 1 else ''}: {objective}, k = {k}"


def _parse_rows(
    source: str, printed: Mapping[tuple[int, int], tuple[str, str]]
) -> dict[str, Published]:
    return {
        row_name(layers, objective, k): _parse_published(text, source)
        for (layers, k), pair in printed.items()
        for objective, text in zip(("VAE", "IWAE"), pair, strict=True)
    }


#: By data set, then by row. The VAE averages its k samples.
TABLE_1 = {
    "mnist": _parse_rows(
        f"{_PAPER}, table 1",
        {
            (1, 1): ("86.76 / 19", "86.76 / 19"),
            (1, 5): ("86.47 / 20", "85.54 / 22"),
            (1, 50): ("86.35 / 20", "84.78 / 25"),
            (2, 1): ("85.33 / 16+5", "85.33 / 16+5"),
            (2, 5): ("85.01 / 17+5", "83.89 / 21+5"),
            (2, 50): ("84.78 / 17+5", "82.90 / 26+7"),
        },
    ),
    "omniglot": _parse_rows(
        f"{_PAPER}, table 1",
        {
            (1, 1): ("108.11 / 28", "108.11 / 28"),
            (1, 5): ("107.62 / 28", "106.12 / 34"),
            (1, 50): ("107.80 / 28", "104.67 / 41"),
            (2, 1): ("107.58 / 28+4", "107.56 / 30+5"),
            (2, 5): ("106.31 / 30+5", "104.79 / 38+6"),
            (2, 50): ("106.30 / 30+5", "103.38 / 44+7"),
        },
    ),
}
TABLE_2 = {
    "VAE, then IWAE, k = 50": _parse_published("84.88 / 22", f"{_PAPER}, table 2"),
    "IWAE, k = 50, then VAE": _parse_published("86.02 / 23", f"{_PAPER}, table 2"),
}
TABLE_3 = _parse_rows(
    f"{_PAPER}, table 3 (Larochelle's binarisation)",
    {
        (1, 1): ("88.71", "88.71"),
        (1, 5): ("88.83", "87.63"),
        (1, 50): ("89.05", "87.10"),
        (2, 1): ("88.08", "88.08"),
        (2, 5): ("87.63", "86.17"),
        (2, 50): ("87.86", "85.32"),
    },
)
