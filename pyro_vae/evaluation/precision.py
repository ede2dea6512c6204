"""What networks in bfloat16 change in the bounds."""

from __future__ import annotations

import math
from typing import Any

import torch

from ..compile.matmul import Precision, check_precision
from ..core.random import seeded
from ..programs.importance_weights import log_weights
from ..programs.inputs import ProgramInputs
from .importance import adaptive

__all__ = ["check_supported", "precision_change"]

#: The data and the draws for each that the change is measured on, at most.
_DATA, _DRAWS = 64, 64


def check_supported(precision: str, corrected: bool, defensive: bool) -> None:
    """Refuses what is no precision, and estimators that would be told apart by its errors.

    Raises:
        ValueError: for another word, or for bfloat16 together with such an estimator.
    """
    if check_precision(precision) != "float32" and (corrected or defensive):
        asked = "corrected" if corrected else "defensive"
        raise ValueError(
            f"expected {asked} estimates with precision float32; got {precision}, whose errors "
            f"are larger than what they correct: leave one of the two out"
        )


def precision_change(given: ProgramInputs, precision: Precision, seed: int) -> dict[str, Any]:
    """The change of the ELBO and of L_k on the same draws, beside float32.

    Arguments:
        given: the program and the data, of which up to 64 are taken, evenly spread.
        precision: of the layers of the networks.
        seed: of the draws.

    Returns:
        ``name``, ``num_data``, ``num_samples`` and, in nats per datum, ``elbo`` and ``iwae``,
        how much higher the mean is than in float32, with standard errors ``elbo_se`` and
        ``iwae_se`` over the data if there are several.
    """
    size = len(given.x)
    rows = torch.arange(min(size, _DATA)) * size // min(size, _DATA)
    try:
        model, guide, x, args, kwargs = adaptive.some(given, rows)
    except ValueError:  # a program that knows its data as a whole alone
        model, guide, x, args, kwargs = given
    found = {}
    for name in ("float32", precision):
        with seeded(seed, 6):
            found[name] = log_weights(
                model, guide, x, *args, num_samples=_DRAWS, precision=name, **kwargs
            ).double()
    reference, rounded = found["float32"], found[precision]
    changes = {
        "elbo": rounded.mean(0) - reference.mean(0),
        "iwae": rounded.logsumexp(0) - reference.logsumexp(0),
    }
    told: dict[str, Any] = {"name": precision, "num_data": len(x), "num_samples": _DRAWS}
    for name, change in changes.items():
        told[name] = float(change.mean())
        if len(x) > 1:
            told[f"{name}_se"] = float(change.std()) / math.sqrt(len(x))
    return told
