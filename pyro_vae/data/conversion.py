"""Conversion of what users hold (arrays, lists, frames, matrices, data sets) to examples."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

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
    array_to_tensor,
    keep_resident,
)
from .items import DatasetItems, SequentialItems, check_loader, find_tensors

__all__ = ["as_labels", "as_values", "open_examples"]

_ACCEPTED = (
    "a tensor of shape (N ≥ 1, …), an array, a list of numbers, a data frame, a SciPy sparse "
    "matrix, an AnnData object, a torch Dataset or DataLoader, or a pv.data.Split"
)


def open_examples(
    data: Any,
    name: str = "x",
    *,
    x: Any = None,
    labels: Any = None,
    read_labels: bool = True,
) -> tuple[Tensor | Container, Tensor | None]:
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
    if isinstance(data, TorchDataset) or _is_hugging_face(data):
        return _open_dataset(data, x, labels, read_labels, workers)
    if isinstance(labels, str) or x is not None:
        values, labels = _select_parts(data, x, labels)
        return as_values(values, name), None if labels is None else as_labels(labels)
    return as_values(data, name), None if labels is None else as_labels(labels)


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


def as_labels(labels: Any, name: str = "labels") -> Tensor:
    """Return labels as a tensor: int64 classes, or the numbers of an array.

    Raises:
        ValueError: if the labels are not numbers.
    """
    if isinstance(labels, Tensor):
        check_stored_type(name, labels)
        return labels
    values = as_values(labels, name)
    tensor = values if isinstance(values, Tensor) else values.gather(slice(None))
    # floating-point labels condition a program, whose networks have the default dtype
    return tensor.to(torch.get_default_dtype() if tensor.is_floating_point() else torch.int64)


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
    if isinstance(data, np.memmap) and _is_file_map(data):
        return keep_resident(MappedArray(data))
    if isinstance(data, np.ndarray):
        return array_to_tensor(np.asarray(data))
    if isinstance(data, TorchDataset | DataLoader) or _is_hugging_face(data):
        return open_examples(data, read_labels=False)[0]
    if isinstance(data, list):
        return _stack(data)
    if hasattr(data, "tocsr") and hasattr(data, "nnz"):
        return keep_resident(SparseRows(data))
    if _is_anndata(data):
        return _open_array(data.X)
    if hasattr(data, "to_numpy") and hasattr(data, "columns"):
        return array_to_tensor(_frame_to_array(data))
    if all(hasattr(data, name) for name in ("shape", "dtype", "__getitem__")) and data.shape:
        return keep_resident(IndexedArray(data))
    return array_to_tensor(np.asarray(data)) if hasattr(data, "__array__") else None


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


def _frame_to_array(frame: Any) -> np.ndarray:
    """Return the columns of a pandas or polars frame as one array.

    Missing values of pandas' nullable types become NaN.
    """
    array = frame.to_numpy()
    if array.dtype.kind in "biuf":
        return array
    if hasattr(frame, "iloc"):
        kinds = {str(name): getattr(dtype, "kind", "O") for name, dtype in frame.dtypes.items()}
        others = [name for name, kind in kinds.items() if kind not in "biuf"]
        if not others:
            return frame.to_numpy(dtype=np.float64, na_value=np.nan)
        listed = ", ".join(map(repr, others[:5]))
        raise ValueError(
            f"expected columns of numbers; got other values in {listed}: drop these columns, or "
            f"convert them to numbers"
        )
    return array


def _select_parts(data: Any, x: Any, labels: Any) -> tuple[Any, Any]:
    """Return the named parts of a frame or an AnnData object."""
    if _is_anndata(data):
        values = data.X if x is None else _look_up(data.layers, "layer", x)
        if isinstance(labels, str):
            labels = _encode_classes(_look_up(data.obs, "column of obs", labels))
        return values, labels
    if not (hasattr(data, "iloc") and hasattr(data, "columns")):
        raise ValueError(
            f"expected x and labels to name parts of a Dataset, a data frame or an AnnData object; "
            f"got {_describe(data)}: pass the arrays themselves"
        )
    names = [labels] if isinstance(labels, str) else []
    columns = [c for c in data.columns if c not in names] if x is None else [x]
    columns = list(x) if isinstance(x, Sequence) and not isinstance(x, str) else columns
    for column in (*columns, *names):
        _look_up(data, "column", column)
    return data[columns], _encode_classes(data[labels]) if names else labels


def _look_up(table: Any, kind: str, name: Any) -> Any:
    try:
        return table[name]
    except KeyError:
        listed = ", ".join(map(repr, list(table.keys())[:10]))
        raise ValueError(f"expected a {kind} named {name!r}; found {listed}") from None


def _encode_classes(column: Any) -> Any:
    """Return the codes of a categorical or text column, −1 where missing, or its numbers."""
    kind = getattr(column.dtype, "kind", "O")
    if kind in "biuf":
        return column.to_numpy()
    # sorted, unless the column has its own categories
    return column.astype("category").cat.codes.to_numpy().astype(np.int64)


def _open_dataset(
    dataset: Any, x: Any, labels: Any, read_labels: bool, workers: int
) -> tuple[Tensor | Container, Tensor | None]:
    if isinstance(dataset, IterableDataset) or not hasattr(dataset, "__getitem__"):
        if labels is not None:
            raise ValueError(
                "expected a data set that is read by index, for labels; got an iterable one, whose "
                "order may differ between passes: use a map-style Dataset"
            )
        return SequentialItems(dataset, x), None
    tensors = find_tensors(dataset) if x is None and not isinstance(labels, str) else None
    if tensors is not None:
        values, *others = tensors
        labels = others[0] if labels is None and others else labels
        return as_values(values), None if labels is None else as_labels(labels)
    key = labels if isinstance(labels, str) else None
    items = DatasetItems(dataset, x, key, workers)
    if labels is not None and key is None:
        return items, as_labels(labels)
    return items, items.read_labels() if items.has_labels and read_labels else None


def _is_hugging_face(data: Any) -> bool:
    return hasattr(data, "features") and hasattr(data, "column_names")


def _is_anndata(data: Any) -> bool:
    return all(hasattr(data, name) for name in ("X", "obs", "layers"))


def _is_file_map(array: np.memmap) -> bool:
    """Whether the values of an array are those of a file, and not private to this process."""
    is_mapped = getattr(array, "_mmap", None) is not None and array.filename is not None
    return is_mapped and array.mode != "c" and array.ndim > 0 and len(array) > 0


def _describe(data: Any) -> str:
    if isinstance(data, tuple):
        return "a tuple: pass pv.data.Split(x, labels=y)"
    if isinstance(data, dict):
        return "a dict: pass one of its arrays"
    if hasattr(data, "__next__"):
        return "a generator, which is read only once: pass a list, or a torch IterableDataset"
    return type(data).__name__
