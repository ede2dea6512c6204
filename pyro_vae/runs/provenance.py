"""What a result says of where it comes from, and in which units it may be read."""

from __future__ import annotations

import hashlib
import math
import platform
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

from ..config.experiment import Experiment
from ..core import distributed
from ..core.components import Labels
from ..data import Dataset
from ..data.splits import checksum
from ..evaluation import Bounds
from ..models import Autoencoder
from ..programs.base import label_use

__all__ = [
    "bits_per_dim",
    "describe",
    "device_name",
    "labels_checksum",
    "measure",
    "processes",
    "weights_checksum",
]


def describe(experiment: Experiment, data: Dataset) -> dict[str, Any]:
    """Seed, data and versions; of the labels only where the program looks at them."""
    packages = ("pyro-vae", "torch", "pyro-ppl", "numpy", "arviz-stats")
    return {
        "seed": experiment.seed,
        "data": {
            "name": data.name,
            "binarize": data.binarize,
            "values": data.values,
            "kind": str(data.kind),
            "sizes": {s: len(getattr(data, s)) for s in ("train", "valid", "test")},
            "checksum": data.checksum,
            **_labels(experiment.program, data),
        },
        "versions": {
            "python": platform.python_version(),
            **{name: metadata.version(name) for name in packages},
        },
        "started": datetime.now(UTC).isoformat(timespec="seconds"),
    }


def bits_per_dim(bounds: Bounds, data: Dataset, model: Autoencoder) -> dict[str, Any] | None:
    """ELBO and log p̂ in bits per dimension, with standard errors, where there is such a thing.

    A density is no code for integers, and what is told the total of the data does not code it.
    """
    if data.values != "dequantized" and not model.likelihood.codes:
        return None
    zero = data.bits_per_dim(0.0)
    rows = {}
    for name in ("elbo", "log_evidence"):
        row = bounds.estimates[name]
        # a value goes through all of the map, an error through its slope
        errors = [zero - data.bits_per_dim(error) for error in row[1:]]
        figures = zip(row._fields, [data.bits_per_dim(row.value), *errors], strict=True)
        rows[name] = {key: x if math.isfinite(x) else None for key, x in figures}
    return rows


def labels_checksum(program: object, data: Dataset) -> str | None:
    """SHA-256 of the train, valid and test labels, if the program looks at any."""
    splits = (data.train, data.valid, data.test)
    labels = [split.labels for split in splits if split.labels is not None]
    return checksum(labels) if labels and label_use(program) is not Labels.UNUSED else None


def weights_checksum(file: Path) -> str:
    """SHA-256 of a file of weights."""
    return hashlib.sha256(file.read_bytes()).hexdigest()


def measure(model: Autoencoder) -> str:
    """What a run's log p̂ is the logarithm of: only like is compared with like."""
    given = " given labels" if label_use(model) is Labels.CONDITION else ""
    return f"{model.likelihood.measure}{given}"


def device_name(model: torch.nn.Module) -> str:
    """The graphics card's name, or how many threads of the CPU."""
    device = next(model.parameters()).device
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"cpu, {torch.get_num_threads()} threads"


def processes() -> dict[str, int]:
    """How many processes did it together, if there were several: their random numbers differ."""
    count = distributed.world_size()
    return {"processes": count} if count > 1 else {}


def _labels(program: object, data: Dataset) -> dict[str, Any]:
    found = labels_checksum(program, data)
    return {} if found is None else {"labels": found, "labelled": int(data.train.known.sum())}
