"""Annotated matrices in ``.h5ad`` files, e.g. counts of genes in cells."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..containers import Container, IndexedArray, SparseRows, keep_resident
from ..labels import LabelColumn
from .arrays import levels_of
from .base import ArrayNameError, RawData, SourceOptions, explain_read_errors, require_file
from .labels import encode_groups, to_labels

__all__ = ["h5ad"]


def h5ad(options: SourceOptions) -> RawData:
    """An ``.h5ad`` file of AnnData: X or a ``layer``, dense or sparse, with columns of obs.

    ``labels_key`` and ``groups_key`` name columns of obs. Sparse matrices stay sparse in memory if
    they are large.

    References:
        The on-disk format of AnnData.
        https://anndata.readthedocs.io/en/stable/fileformat-prose.html
    """
    file = require_file(options, "h5ad", "an .h5ad file")
    with explain_read_errors(file, "be an .h5ad file of AnnData 0.7 or later"):
        stored = _open(file)
        values = _read_matrix(_find_matrix(stored, options.layer, file))
    labels = groups = None
    if options.labels_key is not None:
        column = _find_column(stored, options.labels_key, "labels_key", file)
        if column is not None or not options.has_optional_labels:
            labels = _read_labels(column, len(values), options.labels_key, file)
    if options.groups_key is not None:
        column = _find_column(stored, options.groups_key, "groups_key", file)
        groups = _read_groups(column, len(values), options.groups_key, file)
    numbers, classes = labels or (None, None)
    # bytes are counts here, not levels of images
    peak = 1 if levels_of(values) == 1 else None
    return RawData(values, numbers, peak, classes=classes, groups=groups)


def _find_matrix(stored: Any, layer: str | None, file: Path) -> Any:
    if layer is None:
        return stored["X"]
    layers = stored.get("layers", {})
    if layer not in layers:
        raise ArrayNameError(
            f"expected data.layer to name a layer of {file}; got {layer!r}, the file contains "
            f"{', '.join(layers) or 'none'}"
        )
    return layers[layer]


def _read_matrix(node: Any) -> Tensor | Container:
    if _is_array(node):
        return keep_resident(IndexedArray(node))
    from scipy import sparse

    kind = {"csr_matrix": sparse.csr_matrix, "csc_matrix": sparse.csc_matrix}
    make = kind[node.attrs["encoding-type"]]
    parts = tuple(node[name][:] for name in ("data", "indices", "indptr"))
    return keep_resident(SparseRows(make(parts, shape=tuple(node.attrs["shape"]))))


def _find_column(stored: Any, name: str, option: str, file: Path) -> Any:
    """Return a column of obs; ``None`` if labels are missing."""
    obs = stored["obs"]
    if _is_group(obs) and name in obs:
        return obs[name]
    if option == "labels_key":
        return None
    raise ArrayNameError(_describe_unknown(obs, name, option, file))


def _describe_unknown(obs: Any, name: str, option: str, file: Path) -> str:
    known = ", ".join(obs) if _is_group(obs) else "a table of an older version"
    return f"expected data.{option} to name a column of obs in {file}; got {name!r}, it has {known}"


def _read_labels(column: Any, size: int, name: str, file: Path) -> LabelColumn:
    if column is None:
        with _open(file) as stored:
            raise ArrayNameError(_describe_unknown(stored["obs"], name, "labels_key", file))
    if _is_categorical(column):
        names = tuple(map(str, _read_values(column["categories"])))
        return LabelColumn(torch.from_numpy(column["codes"][:].astype(np.int64)), names)
    return to_labels(_read_values(column), size, file)


def _read_groups(column: Any, size: int, name: str, file: Path) -> Tensor:
    is_categorical = _is_categorical(column)
    groups = column["codes"][:] if is_categorical else _read_values(column)
    is_missing = groups < 0 if is_categorical else _read_mask(column, len(groups))
    if is_missing.any():
        raise ValueError(
            f"expected a group for every example in column {name!r} of {file}; got none for "
            f"{int(is_missing.sum())}"
        )
    return encode_groups(groups, size, file)


def _is_categorical(column: Any) -> bool:
    return _is_group(column) and "codes" in column


def _read_values(column: Any) -> np.ndarray:
    """Return a column of numbers, booleans or strings, −1 or "" where missing."""
    values = column[:] if _is_array(column) else column["values"][:]
    is_missing = _read_mask(column, len(values))
    if values.dtype.kind == "O":
        return np.where(is_missing, "", _as_strings(values))
    return np.where(is_missing, -1, values.astype(np.int64)) if is_missing.any() else values


def _read_mask(column: Any, size: int) -> np.ndarray:
    """Return where a nullable column has no value."""
    is_nullable = not _is_array(column)
    return column["mask"][:] if is_nullable else np.zeros(size, bool)


def _as_strings(values: np.ndarray) -> np.ndarray:
    return np.array([v.decode() if isinstance(v, bytes) else str(v) for v in values])


def _open(file: Path) -> Any:
    import h5py  # slow to import, and no other data need it

    return h5py.File(file, "r")


def _is_array(node: Any) -> bool:
    import h5py

    return isinstance(node, h5py.Dataset)


def _is_group(node: Any) -> bool:
    import h5py

    return isinstance(node, h5py.Group)
