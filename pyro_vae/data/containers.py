"""Examples that are read by index when they are needed, and conversion of arrays to tensors."""

from __future__ import annotations

import math
import mmap
import os
import warnings
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

__all__ = [
    "RESIDENT_BYTES",
    "Container",
    "IndexedArray",
    "MappedArray",
    "SparseRows",
    "StoredSparseRows",
    "array_to_tensor",
    "block_slices",
    "concatenate",
    "gather",
    "iter_blocks",
    "keep_resident",
]

#: Containers of at most this size, as a dense array, are loaded into memory as a tensor.
RESIDENT_BYTES = 2**28
#: Size of a block of consecutive examples, when all examples are read in order.
_BLOCK_BYTES = 2**24


class Container(ABC):
    """Examples outside of memory, read by index.

    It has the shape, dtype and length of a tensor ``(N, *event_shape)``. Indexing returns another
    container without reading anything; :meth:`gather` reads.

    A subclass sets ``shape`` and ``dtype`` and defines ``_read(rows)``, which returns the examples
    at int64 rows in [0, N) as a tensor on the CPU.

    Attributes:
        shape: ``(N, *event_shape)``.
        dtype: the type of the values.
        reads_ahead: whether a thread may read minibatches ahead. Reading must then depend on
            nothing but the index, in particular not on random numbers.
    """

    shape: tuple[int, ...]
    dtype: torch.dtype
    reads_ahead: bool = True

    @abstractmethod
    def _read(self, rows: Tensor) -> Tensor: ...

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, index: slice | Tensor) -> Container:
        return _Selection(self, _as_rows(index, len(self)))

    @property
    def ndim(self) -> int:
        """Number of dimensions, including that of the examples."""
        return len(self.shape)

    @property
    def device(self) -> torch.device:
        """The CPU, where examples are read."""
        return torch.device("cpu")

    @property
    def nbytes(self) -> int:
        """Size of all examples as a dense array, in bytes."""
        return math.prod(self.shape) * self.dtype.itemsize

    def gather(self, index: slice | Tensor) -> Tensor:
        """Read the examples at ``index``, ``(len(index), *event_shape)``, to the CPU."""
        return self._read(_as_rows(index, len(self)))


class _Selection(Container):
    """A subset of the examples of a container, in any order."""

    def __init__(self, base: Container, rows: Tensor) -> None:
        self._base, self._rows = base, rows
        self.shape, self.dtype = (len(rows), *base.shape[1:]), base.dtype
        self.reads_ahead = base.reads_ahead

    def __getitem__(self, index: slice | Tensor) -> Container:
        return _Selection(self._base, self._rows[_as_rows(index, len(self))])

    def _read(self, rows: Tensor) -> Tensor:
        return self._base.gather(self._rows[rows])


class MappedArray(Container):
    """A NumPy memory map.

    The file is mapped again for every read, so that the pages read do not count as memory of the
    process for longer. It stays open: another file of the same name does not take its place.

    Arguments:
        array: a memory map of a file, in a mode other than copy-on-write.

    Raises:
        ValueError: if the file of the map has been replaced, or its values are not numbers.
    """

    def __init__(self, array: np.memmap) -> None:
        _check_numbers(array)
        # NumPy has no public name for the map
        buffer: Any = vars(array)["_mmap"]
        granularity, first = mmap.ALLOCATIONGRANULARITY, array.offset
        # a view has the offset of the whole map
        start = np.frombuffer(buffer, np.uint8).ctypes.data
        position = first - first % granularity + array.ctypes.data - start
        low = position + sum(min(0, (n - 1) * s) for n, s in _axes(array))
        high = position + array.itemsize + sum(max(0, (n - 1) * s) for n, s in _axes(array))
        self._begin = low - low % granularity
        self._length, self._offset = high - self._begin, position - self._begin
        self._layout: Any = (array.shape, array.dtype, array.strides)
        self._file = os.open(str(array.filename), os.O_RDONLY)
        self.shape = array.shape
        self.dtype = array_to_tensor(array[:0]).dtype
        ends = [0, len(array) - 1]
        if os.fstat(self._file).st_size < high or not _same(self._map()[ends], array[ends]):
            raise ValueError(
                f"expected {array.filename} to contain the memory-mapped values; it has been "
                f"replaced or is not written yet: flush the array, or map the file again"
            )

    def __del__(self) -> None:
        if hasattr(self, "_file"):
            os.close(self._file)

    def _map(self) -> np.ndarray:
        shape, dtype, strides = self._layout
        pages = mmap.mmap(self._file, self._length, access=mmap.ACCESS_READ, offset=self._begin)
        return np.ndarray(shape, dtype, pages, self._offset, strides)

    def _read(self, rows: Tensor) -> Tensor:
        index = rows.numpy()
        # a slice of consecutive rows is copied faster, and its order is that of the file
        consecutive = len(index) > 0 and bool((np.diff(index) == 1).all())
        part: Any = slice(int(index[0]), int(index[-1]) + 1) if consecutive else index
        return array_to_tensor(np.array(self._map()[part]))


class SparseRows(Container):
    """The rows of a sparse matrix, each read as a dense vector.

    Arguments:
        matrix: a SciPy sparse matrix or array of two dimensions.

    Raises:
        ValueError: if it has another number of dimensions, or its values are not numbers.
    """

    def __init__(self, matrix: Any) -> None:
        if len(matrix.shape) != 2:
            raise ValueError(
                f"expected a sparse matrix of shape (N, D); got shape {tuple(matrix.shape)}"
            )
        self._rows = matrix.tocsr()
        _check_numbers(self._rows.data)
        self.shape, self.dtype = matrix.shape, array_to_tensor(self._rows.data[:0]).dtype

    def _read(self, rows: Tensor) -> Tensor:
        return array_to_tensor(self._rows[rows.numpy()].toarray())


class StoredSparseRows(Container):
    """The rows of a sparse matrix in a file, each read as a dense vector.

    Arguments:
        group: a mapping from ``data``, ``indices`` and ``indptr`` of the compressed rows (CSR) to
            arrays, e.g. an HDF5 group. The first two stay in the file.
        shape: ``(N, D)``.

    Raises:
        ValueError: if the values are not numbers.
    """

    def __init__(self, group: Any, shape: Sequence[int]) -> None:
        self._data, self._columns = group["data"], group["indices"]
        self._bounds = np.asarray(group["indptr"][:])
        _check_numbers(self._data)
        self.shape = (int(shape[0]), int(shape[1]))
        self.dtype = array_to_tensor(np.empty(0, self._data.dtype)).dtype

    def _read(self, rows: Tensor) -> Tensor:
        from scipy import sparse

        different, position = np.unique(rows.numpy(), return_inverse=True)
        # consecutive rows are one part of the file
        runs = np.split(different, np.flatnonzero(np.diff(different) != 1) + 1)
        slices = [slice(self._bounds[r[0]], self._bounds[r[-1] + 1]) for r in runs if len(r)]
        values, columns = (
            np.concatenate([stored[:0], *(stored[part] for part in slices)])
            for stored in (self._data, self._columns)
        )
        sizes = self._bounds[different + 1] - self._bounds[different]
        bounds = np.concatenate([[0], np.cumsum(sizes)])
        shape = (len(different), self.shape[1])
        dense = sparse.csr_matrix((values, columns, bounds), shape=shape).toarray()
        return array_to_tensor(dense[position])


class IndexedArray(Container):
    """An array-like object that is read by index: an HDF5 data set, a Zarr array, …

    Arguments:
        array: an object with ``shape`` and ``dtype``, whose ``array[rows]`` accepts a sorted list
            of different rows and returns an array, or a sparse matrix.

    Raises:
        ValueError: if the values are not numbers.
    """

    def __init__(self, array: Any) -> None:
        _check_numbers(array)
        self._array, self.shape = array, tuple(array.shape)
        self.dtype = array_to_tensor(np.empty(0, array.dtype)).dtype

    def _read(self, rows: Tensor) -> Tensor:
        different, position = np.unique(rows.numpy(), return_inverse=True)
        part = self._array[different]
        dense = part.toarray() if hasattr(part, "toarray") else np.asarray(part)
        return array_to_tensor(dense[position])


class _Concatenated(Container):
    """Examples of several tensors or containers, one after the other."""

    def __init__(self, parts: Sequence[Tensor | Container]) -> None:
        self._parts = tuple(parts)
        self._ends = torch.tensor([len(part) for part in parts]).cumsum(0)
        self.shape, self.dtype = (int(self._ends[-1]), *parts[0].shape[1:]), parts[0].dtype
        self.reads_ahead = all(getattr(part, "reads_ahead", True) for part in parts)

    def _read(self, rows: Tensor) -> Tensor:
        values = torch.empty(len(rows), *self.shape[1:], dtype=self.dtype)
        owner = torch.bucketize(rows, self._ends, right=True)
        for index, (part, end) in enumerate(zip(self._parts, self._ends, strict=True)):
            mine = owner == index
            if bool(mine.any()):
                values[mine] = gather(part, rows[mine] - (end - len(part)))
        return values


def concatenate(parts: Sequence[Tensor | Container]) -> Tensor | Container:
    """Return the examples of several tensors or containers, one after the other."""
    tensors = [part for part in parts if isinstance(part, Tensor)]
    return torch.cat(tensors) if len(tensors) == len(parts) else _Concatenated(parts)


def keep_resident(values: Container) -> Tensor | Container:
    """Return the values as a tensor in memory if they take at most 256 MiB."""
    return values.gather(slice(None)) if values.nbytes <= RESIDENT_BYTES else values


def gather(values: Tensor | Container, index: slice | Tensor) -> Tensor:
    """Return the examples at ``index`` of a tensor or a container."""
    return values[index] if isinstance(values, Tensor) else values.gather(index)


def block_slices(values: Tensor | Container) -> Iterator[slice]:
    """Yield the slices of consecutive blocks of at most 16 MiB as float32, or a single example."""
    size = len(values)
    step = max(1, _BLOCK_BYTES // max(1, 4 * math.prod(values.shape[1:])))
    count = -(-size // step)
    for i in range(count):
        # of nearly equal sizes, so that no block is too small for several processes
        yield slice(i * size // count, (i + 1) * size // count)


def iter_blocks(values: Tensor | Container) -> Iterator[Tensor]:
    """Yield all examples in order, in blocks of at most 16 MiB."""
    for rows in block_slices(values):
        yield gather(values, rows)


def array_to_tensor(array: np.ndarray) -> Tensor:
    """Convert numbers of any type and byte order to a tensor of a type that torch computes with.

    The tensor shares the memory of the array where possible.

    Raises:
        ValueError: if the values are not real numbers.
    """
    _check_numbers(array)
    wider = _WIDER.get(array.dtype.newbyteorder("=").str[1:])
    if wider == "i8" and array.size and array.max() >= 2**63:
        raise ValueError(
            f"expected integers below 2⁶³; got {array.max()}: convert the array to float64"
        )
    dtype = np.dtype(wider) if wider else array.dtype.newbyteorder("=")
    array = np.asarray(array, dtype)
    if any(stride < 0 for stride in array.strides):
        array = np.ascontiguousarray(array)
    with warnings.catch_warnings():
        # an array that cannot be written is not written by this package either
        warnings.filterwarnings("ignore", message=".*not writable")
        return torch.from_numpy(array)


#: Types that torch lacks or does not compare, and those that contain their values.
_WIDER = {"u2": "i4", "u4": "i8", "u8": "i8", np.dtype(np.longdouble).str[1:]: "f8"}


def _check_numbers(array: Any) -> None:
    dtype = np.dtype(array.dtype)
    if dtype.kind not in "biuf":
        kind = {"O": "objects", "U": "strings", "S": "strings", "T": "strings", "c": "complex"}
        raise ValueError(
            f"expected real numbers; got an array of {kind.get(dtype.kind, dtype.name)}: convert "
            f"it to numbers first, strings for example to integer classes"
        )


def _as_rows(index: slice | Tensor, size: int) -> Tensor:
    if isinstance(index, slice):
        return torch.arange(size)[index]
    index = index.cpu()
    if index.dtype == torch.bool:
        return index.nonzero()[:, 0]
    outside = (index < -size) | (index >= size)
    if bool(outside.any()):
        raise IndexError(f"expected rows below {size}; got {int(index[outside][0])}")
    return torch.where(index < 0, index + size, index)


def _axes(array: np.ndarray) -> zip[tuple[int, int]]:
    return zip(array.shape, array.strides, strict=True)


def _same(a: np.ndarray, b: np.ndarray) -> bool:
    return a.tobytes() == b.tobytes()
