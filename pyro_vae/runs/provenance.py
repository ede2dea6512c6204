"""Provenance of a result: data, versions, device, and the units of its log-likelihoods."""

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
    "bounds_in_bits",
    "collect_provenance",
    "device_name",
    "labels_checksum",
    "likelihood_measure",
    "process_count",
    "weights_checksum",
]


def collect_provenance(experiment: Experiment, data: Dataset) -> dict[str, Any]:
    """Return seed, data and versions; labels are included only if the program uses them."""
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
            **_label_entries(experiment.program, data),
        },
        "versions": {
            "python": platform.python_version(),
            **{name: metadata.version(name) for name in packages},
        },
        "started": datetime.now(UTC).isoformat(timespec="seconds"),
    }


def bounds_in_bits(bounds: Bounds, data: Dataset, model: Autoencoder) -> dict[str, Any] | None:
    """Return ELBO and log p̂ in bits per dimension with standard errors, if they are code lengths.

    Otherwise return ``None``: neither a density of integers nor a likelihood given the total of
    an example is a code for the data.
    """
    if data.values != "dequantized" and not model.likelihood.has_code_length:
        return None
    zero = data.bits_per_dim(0.0)
    rows = {}
    for name in ("elbo", "log_evidence"):
        row = bounds.estimates[name]
        # the map is affine: errors are scaled by its slope only
        errors = [zero - data.bits_per_dim(error) for error in row[1:]]
        values = zip(row._fields, [data.bits_per_dim(row.value), *errors], strict=True)
        rows[name] = {key: x if math.isfinite(x) else None for key, x in values}
    return rows


def labels_checksum(program: object, data: Dataset) -> str | None:
    """Return the SHA-256 of the train, valid and test labels, if the program uses labels."""
    splits = (data.train, data.valid, data.test)
    labels = [split.labels for split in splits if split.labels is not None]
    return checksum(labels) if labels and label_use(program) is not Labels.UNUSED else None


def weights_checksum(file: Path) -> str:
    """Return the SHA-256 of a weights file."""
    return hashlib.sha256(file.read_bytes()).hexdigest()


def likelihood_measure(model: Autoencoder) -> str:
    """Return whether log p̂ is a log probability or density, and whether it is given labels.

    Only results with the same measure can be compared.
    """
    condition = " given labels" if label_use(model) is Labels.CONDITION else ""
    return f"{model.likelihood.measure}{condition}"


def device_name(model: torch.nn.Module) -> str:
    """Return the name of the GPU, or the number of CPU threads."""
    device = next(model.parameters()).device
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"cpu, {torch.get_num_threads()} threads"


def process_count() -> dict[str, int]:
    """Return the number of processes if there are several, as it affects the random numbers."""
    count = distributed.world_size()
    return {"processes": count} if count > 1 else {}


def _label_entries(program: object, data: Dataset) -> dict[str, Any]:
    digest = labels_checksum(program, data)
    return {} if digest is None else {"labels": digest, "labelled": int(data.train.has_label.sum())}
