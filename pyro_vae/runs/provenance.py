"""Provenance of a result: data, versions, device, and the units of its log-likelihoods."""

from __future__ import annotations

import math
import platform
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

from ..config.experiment import Experiment
from ..core import distributed, files
from ..core.components import Labels
from ..data import Dataset
from ..data.splits import checksum
from ..evaluation import Bounds
from ..evaluation.estimates import Estimate
from ..evaluation.results import Result
from ..models import Autoencoder
from ..programs.base import label_use
from .examples import describe_shapes

__all__ = [
    "collect_provenance",
    "describe_units",
    "device_name",
    "format_bits_per_dim",
    "labels_checksum",
    "process_count",
    "weights_checksum",
]

#: Estimates that are also given in bits per dimension.
_BITS_LABELS = {"elbo": "ELBO", "log_evidence": "log p̂"}


def collect_provenance(experiment: Experiment, data: Dataset) -> dict[str, Any]:
    """Return seed, data and versions; labels are included only if the program uses them."""
    labels = labels_checksum(experiment.program, data)
    labelled = {"labels": labels, "labelled": int(data.train.has_label.sum())} if labels else {}
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
            "peak": data.peak,
            **({} if data.scale is None else {"scale": data.scale.to_dict()}),
            **({} if data.classes is None else {"classes": data.classes}),
            **({} if data.columns is None else {"columns": [c.to_dict() for c in data.columns]}),
            **describe_shapes(experiment, data),
            **labelled,
        },
        "versions": {
            "python": platform.python_version(),
            **{name: metadata.version(name) for name in packages},
        },
        "started": datetime.now(UTC).isoformat(timespec="seconds"),
    }


def describe_units(result: Result, data: Dataset, model: Autoencoder) -> dict[str, Any]:
    """Return the measure of a result, and ELBO and log p̂ in bits per dimension if possible.

    ``measure`` states whether log p̂ is a log probability or density, and whether it is given
    labels: only results with the same measure can be compared. Bits per dimension are code
    lengths of the data: neither a density of integers nor a likelihood given the total of an
    example is one, and neither simulated data nor data with unobserved values have one.
    """
    condition = " given labels" if label_use(model) is Labels.CONDITION else ""
    likelihood = getattr(model, "likelihood", None)
    # a program without a likelihood does not state its measure
    measure = f"sites of {type(model).__name__}" if likelihood is None else likelihood.measure
    entries: dict[str, Any] = {"measure": f"{measure}{condition}"}
    is_code = data.values == "dequantized" or getattr(likelihood, "has_code_length", False)
    has_code_length = is_code and not data.has_missing
    if not has_code_length or not isinstance(result, Bounds) or "simulated" in result.settings:
        return entries
    if not {*_BITS_LABELS} <= {*result.labels}:
        return entries
    zero = data.bits_per_dim(0.0)
    entries["bits_per_dim"] = {}
    for name in _BITS_LABELS:
        value, *errors = result.estimates[name]
        # the map is affine: errors are scaled by its slope only
        row = Estimate(data.bits_per_dim(value), *(zero - data.bits_per_dim(e) for e in errors))
        entries["bits_per_dim"][name] = row.summary()
    return entries


def format_bits_per_dim(rows: dict[str, dict[str, float | None]]) -> str:
    """Format the bits per dimension in ``result.json`` as one line."""
    parts = []
    for name, row in rows.items():
        value, error = (math.nan if row[k] is None else row[k] for k in ("value", "se_data"))
        parts.append(f"{_BITS_LABELS[name]} {value:.4f} ± {error:.4f}")
    return f"bits per dimension (lower is better, ± data): {', '.join(parts)}"


def labels_checksum(program: object, data: Dataset) -> str | None:
    """Return the SHA-256 of the train, valid and test labels, if the program uses labels."""
    splits = (data.train, data.valid, data.test)
    labels = [split.labels for split in splits if split.labels is not None]
    return checksum(labels) if labels and label_use(program) is not Labels.UNUSED else None


def weights_checksum(file: Path) -> str:
    """Return the SHA-256 of a weights file."""
    return files.sha256(file.read_bytes())


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
