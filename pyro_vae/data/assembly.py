"""Data sets from the raw data of a source: values as requested, known labels, scaling."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch

from ..core.validation import check_choice, positive_int
from .containers import gather
from .datasets import Dataset
from .kinds import Kind
from .pixel_values import Binarize, Values, binarize
from .scaling import SCALE_CHOICES, Scale, fit_scale
from .sources import RawData
from .splits import Split, checksum, contains_nan

__all__ = ["assemble", "keep_labels", "scale_values"]


def assemble(
    name: str,
    parts: tuple[RawData, RawData, RawData],
    binarize: Binarize,
    values: Values,
    seed: int,
) -> Dataset:
    """Return the data set of the training, validation and test data of a source."""
    splits = [_make_split(part, binarize, values, seed, i) for i, part in enumerate(parts)]
    first = next(split for split in splits if len(split))
    return Dataset(
        name,
        *splits,
        kind=Kind.BINARY if binarize != "none" else first.find_kind(seed),
        binarize=binarize,
        checksum=checksum(split.values for split in splits),
        values=values if binarize == "none" else "unit",
        peak=parts[0].peak,
        classes=parts[0].classes,
        columns=parts[0].columns,
    )


def _make_split(raw: RawData, how: Binarize, values: str, seed: int, part: int) -> Split:
    stored, peak = raw.values, raw.peak or 1
    if how in ("static", "threshold"):
        if contains_nan(stored):
            raise ValueError(
                f"expected complete values for data.binarize {how}; got NaN (unobserved): set "
                f"data.binarize to dynamic or none"
            )
        grey = gather(stored, slice(None)).to(torch.float64) / peak
        binary = binarize(grey, how, seed, part)
        return Split(binary, labels=raw.labels, rows=raw.rows, classes=raw.classes)
    keeps_levels = how == "none" and values == "integer"
    return Split(
        stored,
        1.0 if keeps_levels else peak,
        dynamic=how == "dynamic",
        labels=raw.labels,
        noisy=values == "dequantized",
        rows=raw.rows,
        classes=raw.classes,
    )


def keep_labels(data: Dataset, count: int, seed: int) -> Dataset:
    """Return the data with all but ``count`` training labels set to −1 (unknown)."""
    classes, labels = data.num_classes, data.train.labels
    per_class, remainder = divmod(positive_int("data.labelled", count), classes)
    if remainder:
        raise ValueError(
            f"expected data.labelled to be a multiple of the number of classes, {classes}; got "
            f"{count}"
        )
    assert labels is not None  # num_classes has raised otherwise
    # prefixes of one order, so that a smaller labelled set is a subset of a larger one
    order = torch.from_numpy(np.random.default_rng([seed, len(labels), 1]).permutation(len(labels)))
    rows = [order[labels[order] == c] for c in range(classes)]
    rarest = min(range(classes), key=lambda c: len(rows[c]))
    if len(rows[rarest]) < per_class:
        raise ValueError(
            f"expected data.labelled to be at most {classes * len(rows[rarest])}, because class "
            f"{rarest} has {len(rows[rarest])} training examples; got {count}"
        )
    kept = torch.cat([class_rows[:per_class] for class_rows in rows])
    known = torch.full_like(labels, -1).index_copy(0, kept, labels[kept])
    return replace(data, train=replace(data.train, labels=known))


def scale_values(data: Dataset, scale: Scale | str) -> Dataset:
    """Return data with a scale, or with one that is computed from the training data."""
    if isinstance(scale, str):
        check_choice("scale", scale, SCALE_CHOICES)
        if data.binarize != "none" or data.values != "unit":
            raise ValueError(
                f"expected data.scale to be none for data.binarize {data.binarize} and data.values "
                f"{data.values}; got {scale}: 0/1 values and levels are not rescaled"
            )
        blocks = (x for _, x in data.train.iter_materialized(0, torch.float64))
        scale = fit_scale(scale, blocks, data.columns)
    splits = {n: replace(getattr(data, n), scale=scale) for n in ("train", "valid", "test")}
    first = next(split for split in splits.values() if len(split))
    return replace(data, **splits, scale=scale, kind=first.find_kind())
