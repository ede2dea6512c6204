"""Files that are written whole or not at all."""

from __future__ import annotations

import glob
import os
import tempfile
from collections.abc import Callable
from pathlib import Path

from safetensors import SafetensorError

__all__ = ["leftovers", "write", "write_text"]


def write(path: Path, writer: Callable[[Path], object]) -> None:
    """Lets ``writer`` fill a temporary file beside ``path``, then renames it to ``path``.

    A reader, or a run that is killed, sees the old file or the new one, never a part.

    Raises:
        OSError: if it cannot be written (a full disk, say); the old file is untouched.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    prefix, suffix = _temporary(path)
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=prefix, suffix=suffix)
    os.close(handle)
    temporary = Path(name)
    try:
        writer(temporary)
        with temporary.open("rb+") as file:
            os.fsync(file.fileno())
        # mkstemp makes private files; these are meant to be read like any other
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


def leftovers(path: Path) -> list[Path]:
    """The temporary files of a :func:`write` to ``path`` that was killed."""
    prefix, suffix = _temporary(path)
    return list(path.parent.glob(f"{glob.escape(prefix)}*{glob.escape(suffix)}"))


def write_text(path: Path, text: str) -> None:
    """:func:`write` for a string."""
    write(path, lambda temporary: temporary.write_text(text, encoding="utf-8"))


def _temporary(path: Path) -> tuple[str, str]:
    """What the temporary names for ``path`` begin and end with."""
    # some writers choose a format by the suffix, so the temporary name keeps it; torch refuses
    # a name whose only dot is the first letter
    return f".{path.stem}-", path.suffix or ".part"
