"""Base class of the results of evaluations."""

from __future__ import annotations

import copy
import io
import json
from abc import ABC, abstractmethod
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, ClassVar, Self

from ..core import files

if TYPE_CHECKING:
    import xarray

__all__ = ["Result"]


class Result(ABC):
    """The result of an evaluation, per example, with its text and its file.

    A subclass defines :attr:`contents`, ``len()`` (the number of examples), ``str()`` (the text
    that the command prints), :meth:`summary`, :meth:`to_datatree` and :meth:`from_datatree`.

    Attributes:
        contents: the contents of a file, for error messages.
        provenance: of a result read from the file of a run, its entry in ``result.json``, with
            the SHA-256 of the weights that it is a result of.
    """

    contents: ClassVar[str]
    provenance: Mapping[str, Any] = MappingProxyType({})

    @abstractmethod
    def __len__(self) -> int: ...

    @abstractmethod
    def __str__(self) -> str: ...

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
            provenance = json.loads(tree.attrs.get("provenance", "{}"))
        except (FileNotFoundError, PermissionError):
            raise
        except Exception as error:  # any error of the parsers means a damaged file
            raise ValueError(
                f"expected {path} to contain {cls.contents} saved by pyro_vae; {error}"
            ) from error
        return result.with_provenance(provenance)

    def with_provenance(self, provenance: Mapping[str, Any]) -> Self:
        """Return this result with another :attr:`provenance`."""
        result = copy.copy(self)
        # subclasses may be frozen dataclasses
        object.__setattr__(result, "provenance", MappingProxyType(dict(provenance)))
        return result
