"""Advisory locks between processes."""

from __future__ import annotations

import errno
import json
import os
import socket
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None

__all__ = ["LockHeldError", "exclusive_lock", "try_lock"]

#: Seconds between two attempts to take a lock.
_POLL_SECONDS = 0.01
#: Characters of a command line in an error message.
_MAX_COMMAND = 120


class LockHeldError(OSError):
    """Raised if another process, or another part of this one, holds a lock.

    Attributes:
        holder: the command, process and host that hold it.
    """

    def __init__(self, path: Path, holder: str) -> None:
        super().__init__(f"{path} is locked by {holder}")
        self.holder = holder


def try_lock(handle: int) -> bool:
    """Lock an open file if no other process has locked it, and return whether it is locked.

    The kernel releases the lock when the file is closed, at the latest when the process ends.
    Without support by the file system, nothing is locked.
    """
    return _flock(handle) is True


@contextmanager
def exclusive_lock(path: Path, wait: float = 0.0) -> Iterator[None]:
    """Hold the lock of a file, which exists as long as the lock is held.

    The file names its holder. One left by a killed process is not locked and is taken over. On
    file systems without locks, a file is taken over if its holder ran on this machine and has
    ended.

    Arguments:
        path: the file, in an existing folder.
        wait: seconds to wait for another process.

    Raises:
        LockHeldError: if another process still holds the lock then.
        OSError: if the file cannot be created.
    """
    deadline = time.monotonic() + wait
    while (handle := _acquire(path)) is None:
        if time.monotonic() >= deadline:
            raise LockHeldError(path, _describe_holder(path))
        time.sleep(_POLL_SECONDS)
    try:
        with suppress(OSError):  # on a full disk the lock has no name
            os.ftruncate(handle, 0)
            os.write(handle, json.dumps(_identify_process()).encode())
        yield
    finally:
        # removed before it is released: no other process holds the lock of this file
        path.unlink(missing_ok=True)
        os.close(handle)


def _acquire(path: Path) -> int | None:
    """Return a handle that holds the lock, or ``None`` if another one does."""
    handle = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
    try:
        locked = _flock(handle)
        if locked is None:
            locked = not _is_alive(_read_holder(path))
        # the previous holder may have removed the file after it was opened here
        if locked and path.exists() and os.path.samestat(os.fstat(handle), path.stat()):
            return handle
    except BaseException:
        os.close(handle)
        raise
    os.close(handle)
    return None


def _flock(handle: int) -> bool | None:
    """Lock an open file: whether it is locked, or ``None`` if the file system has no locks."""
    if fcntl is None:
        return None
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        held = error.errno in (errno.EAGAIN, errno.EWOULDBLOCK, errno.EACCES)
        return False if held else None
    return True


def _identify_process() -> dict[str, str | int]:
    script = Path(sys.argv[0] or "python")
    # python -m
    name = script.parent.name if script.name == "__main__.py" else script.name
    command = " ".join(" ".join([name, *sys.argv[1:]]).split())
    return {
        "command": command[:_MAX_COMMAND],
        "pid": os.getpid(),
        "host": socket.gethostname(),
    }


def _read_holder(path: Path) -> dict[str, str | int]:
    """Return the process named in a lock file; empty if there is none."""
    try:
        holder = json.loads(path.read_text(encoding="utf-8", errors="replace"))
    except (OSError, ValueError):
        return {}
    return holder if isinstance(holder, dict) and {"pid", "host"} <= holder.keys() else {}


def _describe_holder(path: Path) -> str:
    holder = _read_holder(path)
    if not holder:
        return "another process"
    return f"`{holder.get('command')}` (process {holder['pid']} on {holder['host']})"


def _is_alive(holder: dict[str, str | int]) -> bool:
    """Whether the holder of a lock file may still run; unknown on other machines."""
    if not holder or holder["host"] != socket.gethostname():
        return bool(holder)
    try:
        os.kill(int(holder["pid"]), 0)
    except ProcessLookupError:
        return False
    except OSError:
        return True
    return True
