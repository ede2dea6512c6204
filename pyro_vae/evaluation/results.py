"""Base class of the results of evaluations."""

from __future__ import annotations

import copy
import io
import json
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, ClassVar, Self

import numpy as np

from ..core import files
from .tables import Table, TextTable, to_html

if TYPE_CHECKING:
    import xarray
    from torch import Tensor

__all__ = ["Result", "assign_rows"]


class Result(ABC):
    """The result of an evaluation, per example, with its text and its file.

    A subclass defines :attr:`contents`, ``len()`` (the number of examples), ``str()`` (the text
    that the command prints), :meth:`summary`, :meth:`to_datatree` and :meth:`from_datatree`.
    A dataclass does so with ``repr=False``, to keep the short ``repr()``. :meth:`parts` is the text
    by sentences and tables; notebooks show it with real tables.

    Attributes:
        contents: the contents of a file, for error messages.
        provenance: of a result read from the file of a run, its entry in ``result.json``, with
            the SHA-256 of the weights that it is a result of.
        rows: the row of each example in the file of the data, ``(N,)``, if known; in NetCDF files
            the coordinate ``row`` beside ``datum``.
    """

    contents: ClassVar[str]
    provenance: Mapping[str, Any] = MappingProxyType({})
    rows: np.ndarray | None = None

    @abstractmethod
    def __len__(self) -> int: ...

    @abstractmethod
    def __str__(self) -> str: ...

    def parts(self) -> Iterable[str | Table | TextTable]:
        """Return the sentences and tables that ``str()`` consists of."""
        return [str(self)]

    def __repr__(self) -> str:
        return str(self)

    def _repr_html_(self) -> str:
        return f"<div>{''.join(map(to_html, self.parts()))}</div>"

    @abstractmethod
    def summary(self) -> dict[str, Any]:
        """Return the numbers for JSON; non-finite ones become null."""

    @abstractmethod
    def to_datatree(self) -> xarray.DataTree:
        """Return the results per example as an ``xarray.DataTree``."""

    @classmethod
    @abstractmethod
    def from_datatree(cls, tree: xarray.DataTree) -> Self:
        """Return the result in a tree made by :meth:`to_datatree`."""

    def to_netcdf(self, path: str | Path, provenance: Mapping[str, Any] | None = None) -> None:
        """Write :meth:`to_datatree` atomically to a NetCDF file, which ArviZ can read.

        Arguments:
            path: the file.
            provenance: JSON values to store as :attr:`provenance`.

        Raises:
            OSError: if the file cannot be written; the previous file is kept.
        """
        tree = self.to_datatree()
        if self.rows is not None:
            _add_rows(tree, self.rows)
        if provenance is not None:
            tree.attrs["provenance"] = json.dumps(provenance, ensure_ascii=False)
        # in memory: HDF5 crashes the process if the disk is full
        with io.BytesIO() as buffer:
            tree.to_netcdf(buffer, engine="h5netcdf")
            files.write_with_checksum(Path(path), buffer)

    @classmethod
    def from_netcdf(cls, path: str | Path) -> Self:
        """Read a file written by :meth:`to_netcdf`.

        Raises:
            FileNotFoundError: if the file does not exist.
            ValueError: if the file is damaged or not in this format.
        """
        import xarray

        try:
            content = files.read_with_checksum(Path(path))
            size = content.getbuffer().nbytes
            with xarray.open_datatree(content, engine="h5netcdf") as tree:
                if tree.nbytes > size:  # HDF5 invents values that a file declares but lacks
                    raise ValueError(f"its {size} bytes declare {tree.nbytes} bytes of values")
                tree.load()
            result = cls.from_datatree(tree)
            result = result.with_rows(_find_rows(tree))
            provenance = json.loads(tree.attrs.get("provenance", "{}"))
        except (FileNotFoundError, PermissionError):
            raise
        except Exception as error:  # any error of the parsers means a damaged file
            raise ValueError(
                f"expected {path} to contain {cls.contents} saved by pyro_vae; {error}"
            ) from error
        return result.with_provenance(provenance)

    def with_rows(self, rows: np.ndarray | Tensor | None) -> Self:
        """Return this result with other :attr:`rows`."""
        result = copy.copy(self)
        object.__setattr__(result, "rows", None if rows is None else np.asarray(rows))
        return result

    def with_provenance(self, provenance: Mapping[str, Any]) -> Self:
        """Return this result with another :attr:`provenance`."""
        result = copy.copy(self)
        # subclasses may be frozen dataclasses
        object.__setattr__(result, "provenance", MappingProxyType(dict(provenance)))
        return result


#: The dimension of the examples and their coordinate with the rows of the file.
_EXAMPLE, _ROW = "datum", "row"


def assign_rows(group: xarray.Dataset, rows: np.ndarray) -> xarray.Dataset:
    """Return a group with the coordinate ``row`` beside ``datum``."""
    # a group may have some of the examples only
    return group.assign_coords({_ROW: (_EXAMPLE, rows[group[_EXAMPLE].to_numpy()])})


def _add_rows(tree: xarray.DataTree, rows: np.ndarray) -> None:
    """Add the coordinate ``row`` to every group with examples of the split."""
    for node in tree.subtree:
        # training examples beside those of the split have their own rows
        if _EXAMPLE in node.sizes and not node.path.startswith("/train"):
            node.dataset = assign_rows(node.to_dataset(), rows)


def _find_rows(tree: xarray.DataTree) -> np.ndarray | None:
    """Return the rows of the first group that has all examples."""
    for node in tree.subtree:
        group = node.to_dataset()
        if _ROW in group.coords and (group[_EXAMPLE] == np.arange(group.sizes[_EXAMPLE])).all():
            return group[_ROW].to_numpy()
    return None
