"""Effect of bfloat16 networks on the bounds."""

from __future__ import annotations

import math
from contextlib import suppress
from typing import Any

import torch

from ..compiler.matmul import Precision
from ..core.random import Stream, seeded
from ..programs.arguments import ProgramInputs
from ..programs.importance_weights import audited_log_weights
from .bounds import Bounds
from .subsets import select_examples
from .table_parts import TablePart, register

__all__ = ["measure_precision_change"]

#: The maximum numbers of examples, and of samples per example, that the change is measured on.
_MAX_EXAMPLES, _MAX_SAMPLES = 64, 64


def measure_precision_change(
    inputs: ProgramInputs, precision: Precision, seed: int
) -> dict[str, Any]:
    """Return the change of the ELBO and L_k relative to float32 with the same samples.

    Uses up to 64 evenly spaced examples.

    Returns:
        ``name``, ``num_data``, ``num_samples`` and the mean changes ``elbo`` and ``iwae`` in nats
        per datum, positive if higher than in float32, with standard errors ``elbo_se`` and
        ``iwae_se`` over the examples if there is more than one.
    """
    size = len(inputs.x)
    rows = torch.arange(min(size, _MAX_EXAMPLES)) * size // min(size, _MAX_EXAMPLES)
    with suppress(ValueError):  # the program may only run on the full data set
        inputs = select_examples(inputs, rows)
    log_w = {}
    for name in ("float32", precision):
        with seeded(seed, Stream.PRECISION):
            log_w[name] = audited_log_weights(inputs, _MAX_SAMPLES, precision=name).double()
    reference, rounded = log_w["float32"], log_w[precision]
    changes = {
        "elbo": rounded.mean(0) - reference.mean(0),
        "iwae": rounded.logsumexp(0) - reference.logsumexp(0),
    }
    result: dict[str, Any] = {
        "name": precision,
        "num_data": len(inputs.x),
        "num_samples": _MAX_SAMPLES,
    }
    for name, change in changes.items():
        result[name] = float(change.mean())
        if len(inputs.x) > 1:
            result[f"{name}_se"] = float(change.std()) / math.sqrt(len(inputs.x))
    return result


def _describe(bounds: Bounds) -> str | None:
    if "precision" not in bounds.settings:
        return None
    change = bounds.settings["precision"]
    k = change["num_samples"]
    changes = ", ".join(
        f"{label} by {change[name]:+.4f} ± {change.get(f'{name}_se', math.nan):.4f}"
        for name, label in (("elbo", "the ELBO"), ("iwae", f"L_{k}"))
    )
    return (
        f"network layers in {change['name']} change {changes} nats per datum "
        f"(same {k} samples for {change['num_data']} examples)"
    )


register(TablePart(order=40, describe=_describe))
