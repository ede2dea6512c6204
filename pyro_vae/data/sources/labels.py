"""Labels and groups of a user's file: integer classes, names of classes, numbers."""

from __future__ import annotations

import logging
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ..labels import LabelColumn, encode_names, number_by_names
from .base import RawData

__all__ = ["align_classes", "encode_groups", "to_labels"]

_log = logging.getLogger("pyro_vae")


def to_labels(labels: np.ndarray, size: int, file: Path) -> LabelColumn:
    """Convert labels to int64 classes, or to floats of the default dtype.

    Strings become classes in alphabetical order; an empty one is unknown.

    Raises:
        ValueError: if they are not one label per example, or not labels.
    """
    if labels.dtype.kind not in "biufUS" or labels.shape[:1] != (size,) or not labels.size:
        raise ValueError(
            f"expected labels of shape ({size}, …) in {file}, one for each example; got "
            f"{labels.dtype} of shape {labels.shape}"
        )
    if labels.dtype.kind in "US":
        return _encode_names(labels, file)
    if labels.ndim > 1 or labels.dtype.kind == "f":
        floats = labels.astype(np.float64 if labels.dtype.itemsize > 8 else labels.dtype)
        native = np.ascontiguousarray(floats, floats.dtype.newbyteorder("="))
        tensor = torch.from_numpy(native.astype(np.float64)).to(torch.get_default_dtype())
        if not bool(tensor.isfinite().all()):
            raise ValueError(f"expected finite labels in {file}; got NaN or infinite values")
        return LabelColumn(tensor)
    classes = labels.astype(np.int64)
    # an unsigned type has no −1, and a class of 2⁶³ or more becomes negative
    if classes.min() < -1 or (labels.dtype.kind == "u" and classes.min() < 0):
        raise ValueError(
            f"expected classes 0, 1, 2, … as labels in {file}, or −1 for unknown; got "
            f"{labels.min()} to {labels.max()}"
        )
    return LabelColumn(torch.from_numpy(classes))


def _encode_names(labels: np.ndarray, file: Path) -> LabelColumn:
    if labels.ndim != 1:
        raise ValueError(
            f"expected one string per example as labels in {file}; got shape {labels.shape}"
        )
    text = labels.astype(str) if labels.dtype.kind == "U" else np.char.decode(labels, "utf-8")
    return encode_names(text)


def encode_groups(groups: np.ndarray, size: int, file: Path) -> Tensor:
    """Return the number of the group of each example, ``(N,)``.

    Raises:
        ValueError: if there is not one group per example.
    """
    if groups.shape != (size,) or groups.dtype.kind not in "biufUS":
        raise ValueError(
            f"expected one group for each of {size} examples at data.groups_key of {file}; got "
            f"{groups.dtype} of shape {groups.shape}"
        )
    return torch.from_numpy(np.unique(groups, return_inverse=True)[1].astype(np.int64))


def align_classes(
    raw: RawData, classes: tuple[str, ...] | None, source: str, *, drop_unknown: bool = False
) -> RawData:
    """Return data whose classes have the numbers of the same names in the training data.

    Arguments:
        raw: the data.
        classes: the names of the classes of the training data.
        source: the file of the data, for messages.
        drop_unknown: whether a class that is not in the training data becomes −1, unknown, with a
            warning.

    Raises:
        ValueError: if a class is not in the training data, or if only one of them has names.
    """
    own = {
        n: None if p is None else align_classes(p, classes, source, drop_unknown=drop_unknown)
        for n, p in raw.own_parts.items()
    }
    raw = replace(raw, **own)
    if raw.classes == classes or raw.labels is None:
        return replace(raw, classes=classes)
    if raw.classes is None or classes is None:
        got = "numbers" if raw.classes is None else "names"
        raise ValueError(
            f"expected classes like those of the training data in {source}; got {got}: use the "
            f"same kind of labels in all files"
        )
    numbers = number_by_names((*raw.classes, None), classes)
    labels = numbers[raw.labels]
    unknown = [name for name in raw.classes if name not in classes]
    if unknown and not drop_unknown:
        raise ValueError(
            f"expected classes of the training data ({', '.join(classes)}) in {source}; got "
            f"{', '.join(unknown)}: use the same classes in all files"
        )
    if unknown:
        _log.warning(
            "%s: classes that the training data do not have: %s; the labels of their %d examples "
            "are unknown (−1)",
            source,
            ", ".join(unknown),
            int((labels < 0).sum() - (raw.labels < 0).sum()),
        )
    return replace(raw, labels=labels, classes=classes)
