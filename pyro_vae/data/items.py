"""Examples of data sets that return items: torch and Hugging Face data sets, data loaders."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import islice, pairwise
from typing import Any, NamedTuple, cast

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
from .labels import LabelColumn, find_names, number_by_names

__all__ = [
    "DatasetItems",
    "SequentialItems",
    "check_loader",
    "find_tensors",
    "is_hugging_face",
    "loader_options",
]

#: Keys of x and of the labels in an item that is a mapping, unless they are named.
_X_KEY, _LABEL_KEYS = "x", ("y", "label", "labels")


class DatasetItems(Container):
    """The items of a map-style data set, read on every use.

    An item is x, a pair (x, label), or a mapping. A data set may transform its items at random.
    They are therefore read in the process of training, in the order of use, unless there are
    worker processes, which have separate random streams.

    Arguments:
        dataset: an object with ``len(dataset)`` and ``dataset[i]``.
        x, labels: the keys of x, or a list of keys of numbers, and of the labels, if items are
            mappings.
        num_workers: number of worker processes that read minibatches.

    Attributes:
        has_labels: whether the items have labels.

    Raises:
        ValueError: if the data set is empty, or its items have another form.
    """

    reads_ahead = False

    def __init__(self, dataset: Any, x: Any = None, labels: Any = None, num_workers: int = 0):
        self.num_workers = num_workers
        self._dataset, self._keys = _with_readable_items(dataset), (x, labels)
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
            first = _split_item(self._dataset[0], *self._keys)
        self.has_labels, self._label_key = first.has_label, first.label_key
        example = _to_tensor(first.x, "x")
        self.shape, self.dtype = (size, *example.shape), example.dtype

    def _read(self, rows: Tensor) -> Tensor:
        items = self._fetch(rows.tolist())
        parts = [_to_tensor(_split_item(item, *self._keys).x, "x") for item in items]
        return _stack(parts, rows.tolist(), self.shape[1:], self.dtype)

    def read_labels(self) -> LabelColumn | None:
        """Read the labels of all items: classes, or numbers of the default dtype, if any."""
        dataset, key = self._dataset, self._label_key
        with seeded(0):
            # without the other columns, unless a transform reads them
            if is_hugging_face(dataset) and dataset.format["type"] != "custom":
                labels = list(dataset.select_columns([key]).with_format(None)[:][key])
            else:
                labels = [_split_item(dataset[i], *self._keys).label for i in range(len(self))]
        return _encode_labels(labels, _class_names(dataset, key))

    def _fetch(self, rows: list[int]) -> list[Any]:
        if hasattr(self._dataset, "__getitems__"):
            return self._dataset.__getitems__(rows)
        return [self._dataset[row] for row in rows]


class SequentialItems(Container):
    """The items of an iterable data set, read in its order, one pass at a time.

    Rows number the items of a pass. Reading continues from the last row, skips items, or starts
    another pass. The length of a data set without ``len`` is counted in a first pass, which must
    end. So are labels read, and those of later passes must be the same.

    Arguments:
        dataset: a torch ``IterableDataset`` or another iterable of items.
        x, labels: the keys of x and of the labels, if items are mappings.
        read_labels: whether to read the labels, which takes a pass.

    Attributes:
        labels: the labels, if they are read and the items have some.

    Raises:
        ValueError: if the data set is empty, or its items have another form.
    """

    reads_ahead = False

    def __init__(
        self, dataset: Any, x: Any = None, labels: Any = None, read_labels: bool = False
    ) -> None:
        self._dataset, self._keys = dataset, (x, labels)
        with seeded(0):
            first = next(iter(dataset), None)
        if first is None:
            raise ValueError("expected at least one example; got an empty data set")
        item = _split_item(first, *self._keys)
        self.labels: LabelColumn | None = None
        if read_labels and item.has_label:
            with seeded(0):
                found = [_split_item(each, *self._keys).label for each in dataset]
            size, names = len(found), _class_names(dataset, item.label_key)
            self.labels = _encode_labels(found, names)
        else:
            size = _count(dataset)
        example = _to_tensor(item.x, "x")
        self.shape, self.dtype = (size, *example.shape), example.dtype
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
            x, label, *_ = _split_item(item, *self._keys)
            if self.labels is not None:
                self._check_label(label, row, self.labels)
            parts.append(_to_tensor(x, "x"))
        return _stack(parts, wanted, self.shape[1:], self.dtype)

    @staticmethod
    def _check_label(label: Any, row: int, labels: LabelColumn) -> None:
        """Raise if an item has another label than in the pass that read the labels."""
        expected = labels.values[row]
        if label is None or isinstance(label, str):
            number = number_by_names([label or None], labels.classes or ())[0]
        else:
            number = _to_tensor(label, "the label").to(expected.dtype)
        if not torch.equal(number, expected):
            raise ValueError(
                f"expected the items of an iterable data set in the same order in every pass, "
                f"because their labels are read in a separate pass; got another label for item "
                f"{row}: do not shuffle them, or use a map-style Dataset"
            )


def _count(dataset: Any) -> int:
    try:
        return len(dataset)
    except TypeError:
        with seeded(0):
            return sum(1 for _ in dataset)


def is_hugging_face(data: Any) -> bool:
    """Whether an object is a data set of the package ``datasets``."""
    return hasattr(data, "features") and hasattr(data, "column_names")


def _with_readable_items(dataset: Any) -> Any:
    """Return a Hugging Face data set with items of numbers, arrays and pictures."""
    # an iterable one has no public format
    has_format = is_hugging_face(dataset) and hasattr(dataset, "format")
    kind = dataset.format["type"] if has_format else None
    has_pictures = kind == "numpy" and any(
        type(feature).__name__ == "Image" for feature in dataset.features.values()
    )
    # items as frames and tables; arrays of pictures, whose channels are last
    if kind in ("arrow", "pandas", "polars") or has_pictures:
        return dataset.with_format(None, columns=dataset.format["columns"])
    return dataset


def _class_names(dataset: Any, key: Any) -> Sequence[str] | None:
    """Return the names of classes that a data set states, as torchvision and ``datasets`` do."""
    while isinstance(dataset, Subset):
        dataset = dataset.dataset
    features = getattr(dataset, "features", None)
    if isinstance(features, Mapping):
        return getattr(features.get(key), "names", None)
    names = getattr(dataset, "classes", None)
    is_list = isinstance(names, list | tuple) and all(isinstance(name, str) for name in names)
    return names if is_list else None


def _encode_labels(labels: list[Any], names: Sequence[str] | None) -> LabelColumn | None:
    """Return the labels of items as a tensor; −1 for a class that is ``None``."""
    known = [label for label in labels if label is not None]
    if not known:
        return None
    named = find_names(labels)
    if named is not None:
        return named
    example = _to_tensor(known[0], "the label")
    if len(known) < len(labels) and (example.ndim or example.is_floating_point()):
        row = next(i for i, label in enumerate(labels) if label is None)
        raise ValueError(f"expected a label in every item; got none in item {row}")
    unknown = torch.full_like(example, -1) if len(known) < len(labels) else example
    tensors = [unknown if label is None else _to_tensor(label, "the label") for label in labels]
    values = _stack(tensors, range(len(labels)), example.shape, example.dtype)
    if values.is_floating_point():
        return LabelColumn(values.to(torch.get_default_dtype()))
    values = values.to(torch.int64)
    has_names = names is not None and values.ndim == 1 and int(values.max()) < len(names)
    return LabelColumn(values, tuple(names) if names is not None and has_names else None)


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


class _Item(NamedTuple):
    """x and the label of an item, as they are, and the key of the label in a mapping."""

    x: Any
    label: Any = None
    has_label: bool = False
    label_key: Any = None


def _split_item(item: Any, x_key: Any, label_key: Any) -> _Item:
    if isinstance(item, Mapping):
        return _select_keys(item, x_key, label_key)
    if x_key is not None or label_key is not None:
        raise ValueError(
            f"expected items that are mappings, from which x and labels name entries; got "
            f"{type(item).__name__}: leave x and labels out"
        )
    if not isinstance(item, tuple | list):
        return _Item(item)
    if len(item) not in (1, 2):
        raise ValueError(
            f"expected items x or (x, label); got {len(item)} parts: select two in the data set"
        )
    return _Item(*item, has_label=len(item) == 2)


def _select_keys(item: Mapping[str, Any], x_key: Any, label_key: Any) -> _Item:
    keys = list(item)
    columns = x_key if isinstance(x_key, list | tuple) else None
    if label_key is None:
        given = columns or [x_key]
        label_key = next((k for k in _LABEL_KEYS if k in item and k not in given), None)
    if x_key is None:
        others = [key for key in keys if key != label_key] if len(keys) > 1 else keys
        x_key = others[0] if len(others) == 1 else _X_KEY
        label_key = None if label_key == x_key else label_key
    for key in (*(columns or [x_key]), label_key):
        if key is not None and key not in item:
            raise ValueError(
                f"expected items with an entry {key!r}; got {', '.join(map(repr, keys))}: name the "
                f"entries by pv.data.as_split(dataset, x=…, labels=…)"
            )
    x = item[cast(str, x_key)] if columns is None else [item[key] for key in columns]
    if label_key is None:
        return _Item(x)
    return _Item(x, item[label_key], has_label=True, label_key=label_key)


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
