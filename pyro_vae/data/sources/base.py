"""Raw data that sources return, their options, and the lookup of their files."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from ...core.validation import as_path
from ..columns import Column
from ..containers import Container

__all__ = [
    "ArrayNameError",
    "RawData",
    "SourceOptions",
    "explain_read_errors",
    "find_file",
    "require_file",
    "root_folder",
]


@dataclass(frozen=True)
class RawData:
    """Data set as provided by its source, before splitting and binarisation.

    Attributes:
        values: ``(N, *event_shape)``.
        labels: optional labels, ``(N, …)``, as in :class:`~pyro_vae.data.Split`.
        peak: the level that maps to 1 (255 for most images); ``None`` for values that are not
            image levels (counts, real numbers).
        test: the source's own test set, if any.
        block: number of consecutive examples that stay on one side of a split, because
            neighbours are near duplicates.
        rows: the row of each example in its file, ``(N,)``; set by :func:`~pyro_vae.data.load`.
        classes: the names of the classes, if the labels were strings.
        groups: the number of the group of each example, ``(N,)``; a group is not split.
        valid: the source's own validation set, if any.
        columns: the columns of a table.
    """

    values: Tensor | Container
    labels: Tensor | None
    peak: float | None
    test: RawData | None = None
    block: int = 1
    rows: Tensor | None = None
    classes: tuple[str, ...] | None = None
    groups: Tensor | None = None
    valid: RawData | None = None
    columns: tuple[Column, ...] | None = None

    @property
    def own_parts(self) -> dict[str, RawData | None]:
        """The validation and test sets of the source, by name."""
        return {"valid": self.valid, "test": self.test}


@dataclass(frozen=True)
class SourceOptions:
    """Options of a source, as in :func:`~pyro_vae.data.load`."""

    root: Path
    path: str | None = None
    key: str | None = None
    labels_key: str | None = None
    groups_key: str | None = None
    channels: str | None = None
    types: Sequence[str] | None = None
    drop: Sequence[str] | None = None
    size: int | Sequence[int] | None = None
    colour: bool | None = None
    layer: str | None = None
    photographs: Sequence[str] | None = None
    #: The columns of the training data, which another table must have.
    columns: tuple[Column, ...] | None = None
    #: Whether a file without the labels that ``labels_key`` names has none.
    has_optional_labels: bool = False


def root_folder(root: str | Path | None) -> Path:
    """Return the data folder: ``root``, else ``$PYRO_VAE_DATA``, else the user's cache folder."""
    if root is not None:
        return as_path(root)
    from_environment = os.environ.get("PYRO_VAE_DATA")
    if from_environment:
        return as_path(from_environment)
    cache = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return as_path(cache) / "pyro_vae"


class ArrayNameError(ValueError):
    """A file of arrays does not contain the one that an option names."""


@contextmanager
def explain_read_errors(file: Path, contents: str, source: str | None = None) -> Iterator[None]:
    """Raise a ``ValueError`` with the expected contents if a file is damaged or unrelated."""
    try:
        yield
    except (ArrayNameError, ModuleNotFoundError, MemoryError, PermissionError):
        raise
    except Exception as error:  # a damaged file may raise anything, e.g. a zlib.error
        remedy = f": download it again from {source}" if source else ""
        raise ValueError(
            f"expected {file} to {contents}; the file is damaged or has other contents{remedy}"
        ) from error


def require_file(options: SourceOptions, name: str, contents: str) -> Path:
    """Return the path of the file that the user names.

    Raises:
        ValueError: if none is named.
        FileNotFoundError: if it does not exist.
    """
    if options.path is None:
        raise ValueError(f"data set {name!r} needs data.path, the path of {contents}")
    file = as_path(options.path)
    if not file.is_file():
        raise FileNotFoundError(f"expected {contents} at data.path; found none at {file}")
    return file


def find_file(
    options: SourceOptions, name: str, folder: str, description: str, source: str
) -> Path:
    """Return the path of a local file: ``options.path``, or ``name`` in the data folder."""
    candidates = [options.root / name, options.root / folder / name]
    candidates = [as_path(options.path)] if options.path else candidates
    file = next((path for path in candidates if path.is_file()), None)
    if file is None:
        raise FileNotFoundError(
            f"expected {description} at {' or '.join(map(str, candidates))}; found none: download "
            f"it from {source} and set data.path to the file, or data.root or PYRO_VAE_DATA to its "
            f"folder"
        )
    return file
