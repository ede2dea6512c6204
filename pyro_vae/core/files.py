"""Atomic file writes, and checksums of files."""

from __future__ import annotations

import hashlib
import io
import os
import re
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np

from .locks import try_lock

__all__ = [
    "atomic_write",
    "atomic_write_bytes",
    "atomic_write_npz",
    "atomic_write_text",
    "read_with_checksum",
    "remove_stale_temporary_files",
    "sha256",
    "temporary_files",
    "write_with_checksum",
]

#: The last bytes of a file written by :func:`write_with_checksum`. HDF5 and zip ignore them.
_TRAILER = b"\npyro_vae sha256 %s\n"
_TRAILER_SIZE = len(_TRAILER % bytes(64))


def atomic_write(path: Path, writer: Callable[[Path], object]) -> None:
    """Write a file atomically.

    ``writer`` fills a temporary file in the same folder, which is then renamed to ``path``. A
    reader, or a run that is killed, sees either the old file or the new one, never a partial
    one.

    Raises:
        OSError: if the file cannot be written, e.g. because the disk is full; the old file is
            kept.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    prefix, suffix = _temporary_affixes(path)
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=prefix, suffix=suffix)
    temporary = Path(name)
    try:
        # locked until it is renamed, so that no other process takes it for a leftover
        try_lock(handle)
        writer(temporary)
        os.fsync(handle)
        # mkstemp creates private files; use the default permissions instead
        umask = os.umask(0)
        os.umask(umask)
        temporary.chmod(0o666 & ~umask)
        temporary.replace(path)
    except (OSError, RuntimeError) as error:
        # torch reports a full disk as a RuntimeError
        reason = error.strerror if isinstance(error, OSError) and error.strerror else error
        raise OSError(f"could not write {path}, the previous file is kept: {reason}") from error
    finally:
        os.close(handle)
        temporary.unlink(missing_ok=True)


def remove_stale_temporary_files(path: Path) -> None:
    """Remove what killed processes left of an :func:`atomic_write` to ``path``.

    The temporary files of running processes are kept.

    Arguments:
        path: the file; ``*`` in its name stands for any characters.
    """
    for temporary in temporary_files(path):
        try:
            handle = os.open(temporary, os.O_RDWR)
        except OSError:  # written or removed in the meantime
            continue
        try:
            if try_lock(handle):
                temporary.unlink(missing_ok=True)
        finally:
            os.close(handle)


def temporary_files(path: Path) -> list[Path]:
    """Return the temporary files of every :func:`atomic_write` to ``path``, running or killed."""
    prefix, suffix = (re.escape(s).replace(r"\*", ".*") for s in _temporary_affixes(path))
    pattern = re.compile(f"{prefix}[a-z0-9_]+{suffix}")
    found = path.parent.glob(".*")
    return [file for file in found if pattern.fullmatch(file.name) and file.is_file()]


def atomic_write_text(path: Path, text: str) -> None:
    """Write a string atomically, see :func:`atomic_write`."""
    atomic_write_bytes(path, text.encode())


def atomic_write_bytes(path: Path, content: bytes) -> None:
    """Write bytes atomically, see :func:`atomic_write`."""
    atomic_write(path, lambda temporary: temporary.write_bytes(content))


def atomic_write_npz(path: Path, arrays: Mapping[str, np.ndarray]) -> None:
    """Write arrays atomically to an ``.npz`` file, which ``numpy.load`` reads without pickle."""

    def writer(temporary: Path) -> None:
        # given a name, NumPy would append .npz
        with temporary.open("wb") as stream:
            np.savez_compressed(stream, allow_pickle=False, **arrays)  # type: ignore[arg-type]

    atomic_write(path, writer)


def sha256(content: bytes | memoryview) -> str:
    """Return the SHA-256 of the content of a file."""
    return hashlib.sha256(content).hexdigest()


def write_with_checksum(path: Path, content: io.BytesIO) -> None:
    """Write an HDF5 or zip file atomically, with its SHA-256 in a trailer."""

    def writer(temporary: Path) -> None:
        with content.getbuffer() as body, temporary.open("wb") as file:
            file.write(body)
            file.write(_TRAILER % sha256(body).encode())

    atomic_write(path, writer)


def read_with_checksum(path: Path) -> io.BytesIO:
    """Return the content written by :func:`write_with_checksum`.

    The content is checked before a parser sees it, as some crash on damaged files. Files of
    other programs, and of versions without the trailer, are not checked.

    Raises:
        ValueError: if the content does not have the checksum.
    """
    content = path.read_bytes()
    body, trailer = memoryview(content)[:-_TRAILER_SIZE], content[-_TRAILER_SIZE:]
    is_checked = trailer.startswith(_TRAILER.partition(b"%s")[0])
    if is_checked and trailer != _TRAILER % sha256(body).encode():
        raise ValueError("its content does not have the SHA-256 with which it was written")
    return io.BytesIO(content)


def _temporary_affixes(path: Path) -> tuple[str, str]:
    """Prefix and suffix of the temporary file names for ``path``."""
    # keep the suffix, as some writers choose the format by it; torch rejects names whose only
    # dot is the first character
    return f".{path.stem}-", path.suffix or ".part"
