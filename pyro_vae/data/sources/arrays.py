"""NumPy files of the user, and sparse matrices that SciPy saved."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from ...core.validation import as_path
from ..containers import RESIDENT_BYTES, Container, SparseRows, iter_blocks, keep_resident
from ..conversion import as_values
from ..labels import LabelColumn
from .base import ArrayNameError, RawData, SourceOptions, explain_read_errors, require_file
from .channels import put_channels_first
from .labels import encode_groups, to_labels

__all__ = ["array", "levels_of", "make_raw"]

#: Suffixes of the files of other sources.
_OTHERS = {
    "table": (".csv", ".tsv", ".tab", ".parquet", ".pq"),
    "h5ad": (".h5ad",),
}
#: Names in the file of a sparse matrix, as ``scipy.sparse.save_npz`` writes it.
_SPARSE_NAMES = {"format", "shape", "data"}


def array(options: SourceOptions) -> RawData:
    """A file of numbers ``(N, …)``: ``.npy``, ``.npz``, or a sparse matrix saved by SciPy.

    In a ``.npz`` file, ``key`` names the array, ``labels_key`` the labels and ``groups_key`` the
    groups. Bytes above 1 are image levels 0…255. For images whose channels are not where they are
    recognised, ``channels`` says where they are.
    """
    _check_suffix(options.path)
    file = require_file(options, "array", "a .npy or .npz file")
    with explain_read_errors(file, "be a .npy or .npz file of numbers"):
        stored = _read_arrays(file, options)
    tensor = _open_values(stored.values, options, file)
    labels = None if stored.labels is None else to_labels(stored.labels, len(tensor), file)
    groups = None if stored.groups is None else encode_groups(stored.groups, len(tensor), file)
    peak = levels_of(tensor)
    # bytes of a sparse matrix are counts
    if peak != 1 and not isinstance(stored.values, np.ndarray):
        peak = None
    return make_raw(tensor, peak, labels, groups)


def _check_suffix(path: str | None) -> None:
    """Raise if another source reads the file or folder that the user names."""
    if path is None:
        return
    file = as_path(path)
    names = (name for name, suffixes in _OTHERS.items() if set(file.suffixes) & set(suffixes))
    name = "images" if file.is_dir() else next(names, None)
    if name is not None:
        kind = "a folder" if file.is_dir() else "another file"
        raise ValueError(
            f"expected a .npy or .npz file for data set 'array'; got {kind}, {file}: set data.name "
            f"to {name}"
        )


def _open_values(values: Any, options: SourceOptions, file: Path) -> Tensor | Container:
    """Return the stored values as a tensor, or large ones as a container."""
    if not isinstance(values, np.ndarray):  # a sparse matrix
        return values
    if values.dtype.kind not in "biuf" or values.ndim < 1 or not values.size:
        raise ValueError(
            f"expected numbers of shape (N ≥ 1, …) in {file}; got {values.dtype} of shape "
            f"{values.shape}"
        )
    values = put_channels_first(values, options.channels, file)
    return as_values(values) if isinstance(values, np.memmap) else _to_tensor(values)


def make_raw(
    values: Tensor | Container,
    peak: float | None,
    labels: LabelColumn | None,
    groups: Tensor | None,
) -> RawData:
    """Return data with labels, the names of their classes, and groups."""
    numbers, classes = labels or (None, None)
    return RawData(values, numbers, peak, classes=classes, groups=groups)


def levels_of(values: Tensor | Container) -> float | None:
    """Return the level that becomes 1: 255 for bytes, 1 for grey values, ``None`` for others.

    Unobserved values (NaN) are left out.
    """
    for block in iter_blocks(values):
        if bool((block < 0).any() or (block > 1).any()):
            return 255 if block.dtype == torch.uint8 else None
    return 1  # values in [0, 1] are grey values and can be binarised


class _Stored(NamedTuple):
    """The arrays of a file."""

    values: Any
    labels: np.ndarray | None = None
    groups: np.ndarray | None = None


def _read_arrays(file: Path, options: SourceOptions) -> _Stored:
    """Read the array, and the labels and groups if their names are set."""
    names = {"labels_key": options.labels_key, "groups_key": options.groups_key}
    given = {option: name for option, name in names.items() if name is not None}
    if file.suffix == ".npy" and file.stat().st_size > RESIDENT_BYTES and not given:
        return _Stored(np.load(file, mmap_mode="r", allow_pickle=False))
    # opened here, because np.load leaves a damaged file open
    with file.open("rb") as stream, _explain_objects(str(file)):
        stored = np.load(stream, allow_pickle=False)
        is_archive = isinstance(stored, np.lib.npyio.NpzFile)
        if options.has_optional_labels:
            known = stored.files if is_archive else ()
            given = {option: name for option, name in given.items() if name in known}
        if not is_archive:
            for option in given:
                raise ArrayNameError(
                    f"expected a .npz file, in which data.{option} names an array; got {file}, "
                    f"which contains a single unnamed array"
                )
            return _Stored(stored)
        if set(stored.files) >= _SPARSE_NAMES:
            return _Stored(_read_sparse(file, stored, given, options.key))
        key, others = options.key, [n for n in stored.files if n not in given.values()]
        if key is None and len(others) == 1:
            key = others[0]
        values = _get_array(stored, "key", key, file)
        found = {o: _get_array(stored, o, name, file) for o, name in given.items()}
        return _Stored(values, found.get("labels_key"), found.get("groups_key"))


def _read_sparse(
    file: Path, stored: Any, given: dict[str, str], key: str | None
) -> Tensor | Container:
    """Read a sparse matrix; its stored parts are not data by themselves."""
    from scipy import sparse

    if key is not None or given:
        option = "key" if key is not None else next(iter(given))
        shape = tuple(map(int, stored["shape"]))
        raise ArrayNameError(
            f"expected no data.{option} for a sparse matrix saved by SciPy, which is a single "
            f"matrix of shape {shape}; got data.{option} for {file}: leave it "
            f"out, or store matrix and labels in a table or .h5ad file"
        )
    return keep_resident(SparseRows(sparse.load_npz(file)))


def _get_array(stored: Any, option: str, name: str | None, file: Path) -> np.ndarray:
    if name not in stored.files:
        raise ArrayNameError(
            f"expected data.{option} to name an array in {file}; got {name!r}, the file contains "
            f"{', '.join(stored.files)}"
        )
    with _explain_objects(f"array {name!r} of {file}"):
        return stored[name]


@contextmanager
def _explain_objects(source: str) -> Iterator[None]:
    """Raise the reason why an array of Python objects is not read."""
    try:
        yield
    except ValueError as error:
        if "Object arrays" not in str(error):
            raise
        raise ArrayNameError(
            f"expected numbers or strings in {source}; got Python objects, whose code would be "
            f"executed on loading: save it as strings by array.astype(str), or as numbers"
        ) from error


def _to_tensor(values: np.ndarray) -> Tensor:
    """Convert numbers of any type and byte order to a tensor of a type that torch can compare."""
    values = np.ascontiguousarray(values, values.dtype.newbyteorder("="))
    if values.dtype.kind == "u" and values.dtype != np.uint8:
        values = values.astype(np.float32)
    elif values.dtype == np.longdouble:
        values = values.astype(np.float64)
    return torch.from_numpy(values)
