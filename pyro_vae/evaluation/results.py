"""Base class of the results of evaluations."""

from __future__ import annotations

from abc import ABC, abstractmethod
from pathlib import Path
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
    """

    contents: ClassVar[str]

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

    def to_netcdf(self, path: str | Path) -> None:
        """Write :meth:`to_datatree` atomically to a NetCDF file, which ArviZ can read."""
        tree = self.to_datatree()
        files.atomic_write(Path(path), lambda file: tree.to_netcdf(file, engine="h5netcdf"))

    @classmethod
    def from_netcdf(cls, path: str | Path) -> Self:
        """Read a file written by :meth:`to_netcdf`.

        Raises:
            ValueError: if the file is not in this format.
        """
        import xarray

        try:
            with xarray.open_datatree(path, engine="h5netcdf") as tree:
                tree.load()
            return cls.from_datatree(tree)
        except FileNotFoundError:
            raise
        except (OSError, KeyError, IndexError, ValueError) as error:
            raise ValueError(
                f"expected {path} to contain {cls.contents} saved by pyro_vae; {error}"
            ) from error
