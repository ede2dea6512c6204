"""Examples of data sets that return items: torch and Hugging Face data sets, data loaders."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from itertools import islice, pairwise
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import (
    DataLoader,
    IterableDataset,
    RandomSampler,
    SequentialSampler,
    Subset,
    TensorDataset,
    default_collate,
)

from ..core.random import seeded
from .containers import Container, array_to_tensor

__all__ = ["DatasetItems", "SequentialItems", "check_loader", "find_tensors", "loader_options"]

#: Keys of x and of the labels in an item that is a mapping, unless they are named.
_X_KEY, _LABEL_KEYS = "x", ("y", "label", "labels")


class DatasetItems(Container):
    """The items of a map-style data set, read on every use.

    An item is x, a pair (x, label), or a mapping. A data set may transform its items at random.
    They are therefore read in the process of training, in the order of use, unless there are
    worker processes, which have separate random streams.

    Arguments:
        dataset: an object with ``len(dataset)`` and ``dataset[i]``.
        x, labels: the keys of x and of the labels, if items are mappings.
        num_workers: number of worker processes that read minibatches.

    Attributes:
        has_labels: whether the items have labels.

    Raises:
        ValueError: if the data set is empty, or its items have another form.
    """

    reads_ahead = False

    def __init__(self, dataset: Any, x: Any = None, labels: Any = None, num_workers: int = 0):
        self.num_workers = num_workers
        self._dataset, self._keys = dataset, (x, labels)
        try:
            size = len(dataset)
        except TypeError:
            raise ValueError(
                f"expected a data set of known length; got {type(dataset).__name__} without "
                f"__len__: define it, or make it an IterableDataset"
            ) from None
        if not size:
            raise ValueError("expected at least one example; got an empty data set")
        with seeded(0):
            first, label = _split_item(dataset[0], *self._keys)
        self.has_labels = label is not None
        self.shape, self.dtype = (size, *first.shape), first.dtype

    def _read(self, rows: Tensor) -> Tensor:
        items = self._fetch(rows.tolist())
        parts = [_split_item(item, *self._keys)[0] for item in items]
        return _stack(parts, rows.tolist(), self.shape[1:], self.dtype)

    def read_labels(self) -> Tensor:
        """Read the labels of all items: int64 classes, or numbers of the default dtype."""
        labels = []
        with seeded(0):
            for row in range(len(self)):
                label = _split_item(self._dataset[row], *self._keys)[1]
                if label is None:
                    raise ValueError(f"expected a label in every item; got none in item {row}")
                labels.append(label)
        stacked = _stack(labels, range(len(self)), labels[0].shape, labels[0].dtype)
        is_float = stacked.is_floating_point()
        return stacked.to(torch.get_default_dtype() if is_float else torch.int64)

    def _fetch(self, rows: list[int]) -> list[Any]:
        if hasattr(self._dataset, "__getitems__") and not hasattr(self._dataset, "column_names"):
            return self._dataset.__getitems__(rows)
        return [self._dataset[row] for row in rows]


class SequentialItems(Container):
    """The items of an iterable data set, read in its order, one pass at a time.

    Rows number the items of a pass. Reading continues from the last row, skips items, or starts
    another pass. The length of a data set without ``len`` is counted in a first pass, which must
    end.

    Arguments:
        dataset: a torch ``IterableDataset`` or another iterable of items.
        x: the key of x, if items are mappings.
    """

    reads_ahead = False

    def __init__(self, dataset: Any, x: Any = None) -> None:
        self._dataset, self._key = dataset, x
        try:
            size = len(dataset)
        except TypeError:
            with seeded(0):
                size = sum(1 for _ in dataset)
        with seeded(0):
            first = next(iter(dataset), None)
        if first is None or not size:
            raise ValueError("expected at least one example; got an empty data set")
        item, _ = _split_item(first, x, None)
        self.shape, self.dtype = (size, *item.shape), item.dtype
        self._iterator: Iterator[Any] = iter(())
        self._position = size

    def _read(self, rows: Tensor) -> Tensor:
        wanted = rows.tolist()
        if any(b <= a for a, b in pairwise(wanted)):
            raise ValueError(
                "expected an iterable data set to be read in its order; got a read of shuffled "
                "rows: use a map-style Dataset"
            )
        parts = []
        for row in wanted:
            if row == 0 or row < self._position:
                self._iterator, self._position = iter(self._dataset), 0
            item = next(islice(self._iterator, row - self._position, None), None)
            if item is None:
                raise ValueError(
                    f"expected {len(self)} items in every pass over the data set; got at most "
                    f"{row} in this one: it must start again from the first item"
                )
            self._position = row + 1
            parts.append(_split_item(item, self._key, None)[0])
        return _stack(parts, wanted, self.shape[1:], self.dtype)


def check_loader(loader: DataLoader) -> None:
    """Raise a ``ValueError`` if a loader does more than to order, batch and stack its items."""
    reason = None
    if loader.batch_size is None or type(loader.batch_sampler).__name__ != "BatchSampler":
        reason = "another way of batching (batch_sampler, or batch_size=None)"
    elif loader.collate_fn is not default_collate:
        reason = "a collate_fn, which is not applied here"
    elif not isinstance(loader.dataset, IterableDataset):
        sampler = loader.sampler
        if isinstance(sampler, RandomSampler):
            if sampler.replacement or sampler.num_samples != len(loader.dataset):  # type: ignore[arg-type]
                reason = "a sampler with replacement or a number of samples"
        elif not isinstance(sampler, SequentialSampler):
            reason = f"a {type(sampler).__name__}, whose order is not used here"
    if reason:
        raise ValueError(
            f"expected a DataLoader that shuffles, batches and stacks the items of its dataset; "
            f"got one with {reason}: pass its dataset, transformed and selected as needed"
        )


class LoaderOptions(NamedTuple):
    """How minibatches are made, as in a torch ``DataLoader``."""

    batch_size: int
    shuffle: bool = True
    drop_last: bool = False


def loader_options(data: Any, batch_size: int, default: int) -> LoaderOptions:
    """Return the options of a ``DataLoader``, or those of other data.

    Raises:
        ValueError: if ``batch_size`` is neither the default nor that of the loader, or if the
            loader does more than to order, batch and stack its items.
    """
    if not isinstance(data, DataLoader):
        return LoaderOptions(batch_size)
    check_loader(data)
    assert data.batch_size is not None
    if batch_size not in (default, data.batch_size):
        raise ValueError(
            f"expected batch_size only once; got {batch_size} and a DataLoader with batch_size "
            f"{data.batch_size}: leave one out"
        )
    is_shuffled = isinstance(data.sampler, RandomSampler)
    return LoaderOptions(data.batch_size, is_shuffled, data.drop_last)


def find_tensors(dataset: Any) -> tuple[Tensor, ...] | None:
    """Return the tensors of a ``TensorDataset`` or of a ``Subset`` of one; else ``None``."""
    if type(dataset) is TensorDataset and len(dataset.tensors) <= 2:
        return dataset.tensors
    if type(dataset) is Subset:
        tensors = find_tensors(dataset.dataset)
        if tensors is not None:
            rows = torch.as_tensor(list(dataset.indices))
            return tuple(tensor[rows] for tensor in tensors)
    return None


def _split_item(item: Any, x_key: Any, label_key: Any) -> tuple[Tensor, Tensor | None]:
    """Return x and the label, if any, of an item."""
    if isinstance(item, Mapping):
        x, label = _select_keys(item, x_key, label_key)
    elif x_key is not None or label_key is not None:
        raise ValueError(
            f"expected items that are mappings, from which x and labels name entries; got "
            f"{type(item).__name__}: leave x and labels out"
        )
    elif isinstance(item, tuple | list):
        if len(item) not in (1, 2):
            raise ValueError(
                f"expected items x or (x, label); got {len(item)} parts: select two in the data set"
            )
        x, label = item if len(item) == 2 else (item[0], None)
    else:
        x, label = item, None
    return _to_tensor(x, "x"), None if label is None else _to_tensor(label, "the label")


def _select_keys(item: Mapping[str, Any], x_key: Any, label_key: Any) -> tuple[Any, Any]:
    keys = list(item)
    if x_key is None:
        x_key = keys[0] if len(keys) == 1 else _X_KEY
    if label_key is None:
        label_key = next((key for key in _LABEL_KEYS if key in item and key != x_key), None)
    for key in (x_key, label_key):
        if key is not None and key not in item:
            raise ValueError(
                f"expected items with an entry {key!r}; got {', '.join(map(repr, keys))}: name the "
                f"entries by pv.data.as_split(dataset, x=…, labels=…)"
            )
    return item[x_key], None if label_key is None else item[label_key]


def _to_tensor(value: Any, name: str) -> Tensor:
    """Convert an array, a number or a PIL picture, whose channels become the first axis."""
    if isinstance(value, Tensor):
        return value
    try:
        if hasattr(value, "getbands") and hasattr(value, "mode"):
            if value.mode not in ("L", "RGB"):
                raise ValueError(
                    f"expected grey (L) or colour (RGB) pictures; got mode {value.mode}: convert "
                    f"them in the data set"
                )
            pixels = np.array(value)
            return array_to_tensor(pixels[None] if pixels.ndim == 2 else pixels.transpose(2, 0, 1))
        return array_to_tensor(np.asarray(value))
    except ValueError as error:
        raise ValueError(f"{name} of an item: {error}") from None


def _stack(parts: list[Tensor], rows: Any, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    for row, part in zip(rows, parts, strict=True):
        if tuple(part.shape) != tuple(shape) or part.dtype != dtype:
            raise ValueError(
                f"expected items of the same shape and type, {tuple(shape)} of {dtype}; got "
                f"{tuple(part.shape)} of {part.dtype} in item {row}: resize, crop or convert the "
                f"items in the data set"
            )
    return torch.stack(parts) if parts else torch.empty((0, *shape), dtype=dtype)
