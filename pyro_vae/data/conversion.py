"""Conversion of what users hold (arrays, lists, frames, matrices, data sets) to examples."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset
from torch.utils.data import Dataset as TorchDataset

from ..core.validation import check_stored_type
from .containers import (
    Container,
    IndexedArray,
    MappedArray,
    SparseRows,
    StoredSparseRows,
    array_to_tensor,
    keep_resident,
)
from .frames import (
    column_to_array,
    find_column,
    find_matrix,
    frame_to_array,
    from_arrow,
    is_annotated,
    is_column,
    is_frame,
)
from .items import DatasetItems, SequentialItems, check_loader, find_tensors, is_hugging_face
from .labels import LabelColumn, encode_numbers, fill_unknown, find_names

__all__ = ["Examples", "as_labels", "as_values", "open_examples"]

_ACCEPTED = (
    "a tensor of shape (N ≥ 1, …), an array, a list of numbers, a data frame, a SciPy sparse "
    "matrix, an AnnData object, a torch Dataset or DataLoader, a Hugging Face data set, or a "
    "pv.data.Split"
)


class Examples(NamedTuple):
    """Stored values, their labels, and the names of classes that were strings."""

    values: Tensor | Container
    labels: Tensor | None = None
    classes: tuple[str, ...] | None = None


def open_examples(
    data: Any,
    name: str = "x",
    *,
    x: Any = None,
    labels: Any = None,
    read_labels: bool = True,
) -> Examples:
    """Return the stored values and the labels of anything that contains examples.

    Arguments:
        data: the object.
        name: the name of the argument, for messages.
        x, labels: which part to read, as in :func:`~pyro_vae.data.as_split`.
        read_labels: whether to read the labels of a torch ``Dataset``, which takes a pass over it.

    Raises:
        ValueError: if the object is of another type, or its values are not numbers.
    """
    workers = 0
    if isinstance(data, DataLoader):
        check_loader(data)
        data, workers = data.dataset, data.num_workers
    if isinstance(data, TorchDataset) or is_hugging_face(data):
        return _open_dataset(data, x, labels, read_labels, workers)
    values = data
    if isinstance(labels, str) or x is not None:
        values, labels = _select_parts(data, x, labels)
    return _with_labels(as_values(values, name), labels)


def _with_labels(values: Tensor | Container, labels: Any) -> Examples:
    return _with_column(values, None if labels is None else as_labels(labels))


def _with_column(values: Tensor | Container, labels: LabelColumn | None) -> Examples:
    return Examples(values) if labels is None else Examples(values, labels.values, labels.classes)


def as_values(data: Any, name: str = "x") -> Tensor | Container:
    """Return examples as a tensor, or as a container if they are large and not in memory.

    Raises:
        ValueError: if ``data`` are not examples, or their values are not numbers.
    """
    if isinstance(data, Tensor):
        return _open_tensor(data, name)
    if isinstance(data, Container):
        return data
    try:
        values = _open_array(data)
    except ValueError as error:
        raise ValueError(f"{name}: {error}") from None
    if values is None:
        raise ValueError(f"expected {name} to be {_ACCEPTED}; got {_describe(data)}")
    return values


def as_labels(labels: Any, name: str = "labels") -> LabelColumn:
    """Return labels as a tensor: int64 classes, or the numbers of an array.

    Strings and categories become classes, whose names are returned too.

    Raises:
        ValueError: if the labels are neither numbers nor strings.
    """
    if isinstance(labels, Tensor):
        check_stored_type(name, labels)
        return LabelColumn(labels)
    try:
        named = find_names(labels)
    except ValueError as error:
        raise ValueError(f"{name}: {error}") from None
    if named is not None:
        return named
    values = as_values(fill_unknown(labels), name)
    tensor = values if isinstance(values, Tensor) else values.gather(slice(None))
    if tensor.is_floating_point() and bool(tensor.isnan().any()):
        return LabelColumn(encode_numbers(tensor, name))
    # floating-point labels condition a program, whose networks have the default dtype
    dtype = torch.get_default_dtype() if tensor.is_floating_point() else torch.int64
    return LabelColumn(tensor.to(dtype))


def _open_tensor(data: Tensor, name: str) -> Tensor | Container:
    check_stored_type(name, data)
    if data.layout is torch.strided:
        return data
    from scipy import sparse

    entries = data.detach().cpu().to_sparse().coalesce()
    parts = (entries.values().numpy(), tuple(entries.indices().numpy()))
    return keep_resident(SparseRows(sparse.coo_array(parts, shape=tuple(data.shape))))


def _open_array(data: Any) -> Tensor | Container | None:
    """Return the values of anything like an array; ``None`` for other objects."""
    data = from_arrow(data)
    if isinstance(data, np.memmap) and _is_file_map(data):
        return keep_resident(MappedArray(data))
    if isinstance(data, np.ma.MaskedArray):
        return array_to_tensor(_fill_masked(data))
    if isinstance(data, np.ndarray):
        return array_to_tensor(np.asarray(data))
    if isinstance(data, TorchDataset | DataLoader) or is_hugging_face(data):
        return open_examples(data, read_labels=False).values
    if isinstance(data, list):
        return _stack(data)
    if hasattr(data, "tocsr") and hasattr(data, "nnz"):
        return keep_resident(SparseRows(data))
    if getattr(data, "format", None) in ("csr", "csc") and hasattr(data, "group"):
        return keep_resident(_open_stored_sparse(data))
    if is_annotated(data):
        return _open_array(find_matrix(data))
    if is_frame(data):
        return array_to_tensor(frame_to_array(data))
    # before objects that are read by index, since that of a pandas Series reads its labels
    if is_column(data):
        return array_to_tensor(column_to_array(data))
    if all(hasattr(data, name) for name in ("shape", "dtype", "__getitem__")) and data.shape:
        return keep_resident(IndexedArray(data))
    try:
        return array_to_tensor(np.asarray(data)) if hasattr(data, "__array__") else None
    except TypeError:  # e.g. a Dataset of xarray, which has several arrays
        return None


def _fill_masked(array: np.ma.MaskedArray) -> np.ndarray:
    """Return the values of a masked array, with NaN, which marks unobserved values, for masked."""
    if not np.ma.is_masked(array):
        return np.asarray(array)
    is_float = array.dtype.kind == "f"
    return np.ma.filled(array if is_float else array.astype(np.float64), np.nan)


def _stack(items: list[Any]) -> Tensor:
    """Convert a nested list of numbers, arrays or tensors."""
    try:
        if items and all(isinstance(item, Tensor) for item in items):
            return torch.stack(items)
        array = np.asarray(items)
    except (ValueError, RuntimeError, TypeError) as error:
        raise ValueError(
            f"expected a list of numbers, or of examples of the same shape; got a list that is "
            f"not an array ({error})"
        ) from None
    return array_to_tensor(array)


def _select_parts(data: Any, x: Any, labels: Any) -> tuple[Any, Any]:
    """Return the named parts of a frame or an AnnData object."""
    data = from_arrow(data)
    if is_annotated(data):
        if isinstance(labels, str):
            labels = find_column(data.obs, labels, "column of obs")
        return find_matrix(data, x), labels
    if not is_frame(data):
        raise ValueError(
            f"expected x and labels to name parts of a Dataset, a data frame or an AnnData object; "
            f"got {_describe(data)}: pass the arrays themselves"
        )
    name = labels if isinstance(labels, str) else None
    if name is not None:
        labels = find_column(data, name, "column")
    columns = [column for column in data.columns if name is None or column != name]
    if x is not None:
        columns = list(x) if isinstance(x, Sequence) and not isinstance(x, str) else [x]
    for column in columns:
        find_column(data, column, "column")
    return data[columns], labels


def _open_dataset(dataset: Any, x: Any, labels: Any, read_labels: bool, workers: int) -> Examples:
    key = labels if isinstance(labels, str) else None
    if isinstance(dataset, IterableDataset) or not hasattr(dataset, "__getitem__"):
        if labels is not None and key is None:
            raise ValueError(
                "expected the labels of an iterable data set in its items, (x, label) or mappings; "
                "got an array, whose order may differ from that of a pass: use a map-style Dataset"
            )
        stream = SequentialItems(dataset, x, key, read_labels)
        return _with_column(stream, stream.labels)
    tensors = find_tensors(dataset) if x is None and key is None else None
    if tensors is not None:
        values, *others = tensors
        labels = others[0] if labels is None and others else labels
        return _with_labels(as_values(values), labels)
    items = DatasetItems(dataset, x, key, workers)
    if labels is None or key is not None:
        found = items.read_labels() if items.has_labels and read_labels else None
        return _with_column(items, found)
    return _with_labels(items, labels)


def _open_stored_sparse(data: Any) -> Container:
    """Return the rows of a sparse matrix in a file, as a backed AnnData object has it."""
    if data.format == "csr":
        return StoredSparseRows(data.group, data.shape)
    from scipy import sparse

    parts = tuple(data.group[name][:] for name in ("data", "indices", "indptr"))
    return SparseRows(sparse.csc_matrix(parts, shape=tuple(data.shape)))


def _is_file_map(array: np.memmap) -> bool:
    """Whether the values of an array are those of a file, and not private to this process."""
    is_mapped = getattr(array, "_mmap", None) is not None and array.filename is not None
    return is_mapped and array.mode != "c" and array.ndim > 0 and len(array) > 0


def _describe(data: Any) -> str:
    if isinstance(data, tuple):
        return "a tuple: pass pv.data.Split(x, labels=y)"
    if isinstance(data, dict):
        parts = "splits" if any(map(is_hugging_face, data.values())) else "arrays"
        return f"a dict: pass one of its {parts}"
    if hasattr(data, "collect_schema"):
        return f"a {type(data).__name__}: call its method collect() first"
    if hasattr(data, "__next__"):
        return "a generator, which is read only once: pass a list, or a torch IterableDataset"
    return type(data).__name__
