"""Run a cell under a lock, and report failures in one line."""

from __future__ import annotations

import fcntl
import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from pyro_vae.core import files
from pyro_vae.learning.diagnostics import NonFiniteLossError

from .cells import Cell

__all__ = ["FAILURES", "attempt_cell", "exclusive_lock", "format_error"]

#: Expected failures of a cell, reported in one line; the other cells still run.
FAILURES = (ValueError, OSError, ModuleNotFoundError, NonFiniteLossError)


def attempt_cell(cell: Cell, device: str) -> str | None:
    """Run the unfinished steps of a cell. Print and return the problem, or return ``None``."""
    problem = _attempt_start(cell, device)
    if problem is not None:
        return problem
    try:
        with exclusive_lock(cell.folder) as acquired:
            if not acquired:
                print(f"{cell}: running in another process, skipped", flush=True)
            elif cell.incomplete_reason() is None:
                print(f"{cell}: already finished", flush=True)
            else:
                cell.execute(device)
    except FAILURES as error:
        problem = format_error(error)
        print(f"{cell}: {problem}", file=sys.stderr, flush=True)
        if isinstance(error, NonFiniteLossError):  # reproducible, so it is recorded as a result
            files.atomic_write_text(cell.failure_file, f"{problem}\n")
    except Exception:  # a bug in one row must not stop the others
        problem = traceback.format_exc()
        print(f"{cell}:\n{problem}", file=sys.stderr, flush=True)
    return problem


def _attempt_start(cell: Cell, device: str) -> str | None:
    """Run the cell that this one starts from. Return why this one cannot start, or ``None``."""
    if cell.start is None or cell.start.incomplete_reason() is None:
        return None
    problem = attempt_cell(cell.start, device)
    if problem is None and cell.start.incomplete_reason() is not None:
        problem = (
            f"starts from {cell.start}, which is running in another process: repeat the command "
            f"when it is finished"
        )
        print(f"{cell}: {problem}", file=sys.stderr, flush=True)
    return problem


@contextmanager
def exclusive_lock(path: Path, wait: bool = False) -> Iterator[bool]:
    """Yield whether this process holds the lock of ``path``. A killed process releases it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with (path.parent / f".{path.name}.lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        except BlockingIOError:
            yield False
        else:
            yield True


def format_error(error: BaseException) -> str:
    """Return the message of an error as one line."""
    return " ".join(str(error).split())
