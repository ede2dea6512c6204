"""Atomic file writes."""

from __future__ import annotations

import glob
import os
import tempfile
from collections.abc import Callable
from pathlib import Path

from safetensors import SafetensorError

__all__ = ["atomic_write", "atomic_write_text", "stale_temporary_files"]


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
    os.close(handle)
    temporary = Path(name)
    try:
        writer(temporary)
        with temporary.open("rb+") as file:
            os.fsync(file.fileno())
        # mkstemp creates private files; use the default permissions instead
        umask = os.umask(0)
        os.umask(umask)
        temporary.chmod(0o666 & ~umask)
        temporary.replace(path)
    except (OSError, RuntimeError, SafetensorError) as error:
        # torch and h5py report a full disk as a RuntimeError, safetensors as its own error
        reason = error.strerror if isinstance(error, OSError) and error.strerror else error
        raise OSError(f"could not write {path}, the previous file is kept: {reason}") from error
    finally:
        temporary.unlink(missing_ok=True)


def stale_temporary_files(path: Path) -> list[Path]:
    """Temporary files left behind by a killed :func:`atomic_write` to ``path``."""
    prefix, suffix = _temporary_affixes(path)
    return list(path.parent.glob(f"{glob.escape(prefix)}*{glob.escape(suffix)}"))


def atomic_write_text(path: Path, text: str) -> None:
    """Write a string atomically, see :func:`atomic_write`."""
    atomic_write(path, lambda temporary: temporary.write_text(text, encoding="utf-8"))


def _temporary_affixes(path: Path) -> tuple[str, str]:
    """Prefix and suffix of the temporary file names for ``path``."""
    # keep the suffix, as some writers choose the format by it; torch rejects names whose only
    # dot is the first character
    return f".{path.stem}-", path.suffix or ".part"
