"""NumPy files of the user."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ...core.validation import as_path
from .base import ArrayNameError, RawData, SourceOptions, explain_read_errors

__all__ = ["array"]


def array(options: SourceOptions) -> RawData:
    """A user-supplied ``.npy`` or ``.npz`` file of shape ``(N, …)``.

    In a ``.npz`` file, ``key`` names the array and ``labels_key`` the labels.
    """
    if options.path is None:
        raise ValueError("data set 'array' needs data.path, the path of a .npy or .npz file")
    file = as_path(options.path)
    if not file.is_file():
        raise FileNotFoundError(f"expected a .npy or .npz file at data.path; found none at {file}")
    with explain_read_errors(file, "be a .npy or .npz file of numbers"):
        values, labels = _read_arrays(file, options)
    if values.dtype.kind not in "biuf" or values.ndim < 1 or not values.size:
        raise ValueError(
            f"expected numbers of shape (N ≥ 1, …) in {file}; got {values.dtype} of shape "
            f"{values.shape}"
        )
    tensor = _to_tensor(values)
    label_tensor = None if labels is None else _to_labels(labels, len(values), file)
    if values.dtype == np.uint8 and tensor.max() > 1:
        return RawData(tensor, label_tensor, peak=255)
    # values in [0, 1] are grey values and can be binarised
    is_unit = bool((tensor >= 0).all() and (tensor <= 1).all())
    return RawData(tensor, label_tensor, peak=1 if is_unit else None)


def _read_arrays(file: Path, options: SourceOptions) -> tuple[np.ndarray, np.ndarray | None]:
    """Read the array, and the labels if ``labels_key`` is set."""
    # opened here, because np.load leaves a damaged file open
    with file.open("rb") as stream:
        stored = np.load(stream, allow_pickle=False)
        if not isinstance(stored, np.lib.npyio.NpzFile):
            if options.labels_key is not None:
                raise ArrayNameError(
                    f"expected a .npz file, in which data.labels_key names an array; got {file}, "
                    f"which contains a single unnamed array"
                )
            return stored, None
        key, others = options.key, [name for name in stored.files if name != options.labels_key]
        if key is None and len(others) == 1:
            key = others[0]
        values = _get_array(stored, "key", key, file)
        if options.labels_key is None:
            return values, None
        return values, _get_array(stored, "labels_key", options.labels_key, file)


def _get_array(stored: Any, option: str, name: str | None, file: Path) -> np.ndarray:
    if name not in stored.files:
        raise ArrayNameError(
            f"expected data.{option} to name an array in {file}; got {name!r}, the file contains "
            f"{', '.join(stored.files)}"
        )
    return stored[name]


def _to_tensor(values: np.ndarray) -> Tensor:
    """Convert numbers of any type and byte order to a tensor of a type that torch can compare."""
    values = np.ascontiguousarray(values, values.dtype.newbyteorder("="))
    if values.dtype.kind == "u" and values.dtype != np.uint8:
        values = values.astype(np.float32)
    elif values.dtype == np.longdouble:
        values = values.astype(np.float64)
    return torch.from_numpy(values)


def _to_labels(labels: np.ndarray, size: int, file: Path) -> Tensor:
    """Convert labels to int64 classes, or to floats of the default dtype."""
    if labels.dtype.kind not in "biuf" or labels.shape[:1] != (size,) or not labels.size:
        raise ValueError(
            f"expected labels of shape ({size}, …) in {file}, one for each example; got "
            f"{labels.dtype} of shape {labels.shape}"
        )
    if labels.ndim > 1 or labels.dtype.kind == "f":
        tensor = _to_tensor(labels).to(torch.get_default_dtype())
        if not bool(tensor.isfinite().all()):
            raise ValueError(f"expected finite labels in {file}; got NaN or infinite values")
        return tensor
    classes = labels.astype(np.int64)
    # an unsigned type has no −1, and a class of 2⁶³ or more becomes negative
    if classes.min() < -1 or (labels.dtype.kind == "u" and classes.min() < 0):
        raise ValueError(
            f"expected classes 0, 1, 2, … as labels in {file}, or −1 for unknown; got "
            f"{labels.min()} to {labels.max()}"
        )
    return torch.from_numpy(classes)
