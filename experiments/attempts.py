"""One attempt at a cell of a table, by a single process, with its failures in one sentence."""

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

__all__ = ["FAILURES", "alone", "attempt", "sentence"]

#: What goes wrong in one cell and is said in one sentence, so that the others still run.
FAILURES = (ValueError, OSError, ModuleNotFoundError, NonFiniteLossError)


def attempt(cell: Cell, device: str) -> str | None:
    """Does what is still to do of a cell; says what went wrong, and returns it."""
    problem = _before(cell, device)
    if problem is not None:
        return problem
    try:
        with alone(cell.folder) as mine:
            if not mine:
                print(f"{cell}: another process is at it", flush=True)
            elif cell.missing() is None:
                print(f"{cell}: finished, left as it is", flush=True)
            else:
                cell.work(device)
    except FAILURES as error:
        problem = sentence(error)
        print(f"{cell}: {problem}", file=sys.stderr, flush=True)
        if isinstance(error, NonFiniteLossError):  # a result, too: it would again
            files.write_text(cell.failure, f"{problem}\n")
    except Exception:  # a mistake of ours in one row must not cost the night's other rows
        problem = traceback.format_exc()
        print(f"{cell}:\n{problem}", file=sys.stderr, flush=True)
    return problem


def _before(cell: Cell, device: str) -> str | None:
    """Does what is still to do of the cell that this one begins with; says why it cannot begin."""
    if cell.start is None or cell.start.missing() is None:
        return None
    problem = attempt(cell.start, device)
    if problem is None and cell.start.missing() is not None:
        problem = f"begins with {cell.start}, which another process is at: call this again then"
        print(f"{cell}: {problem}", file=sys.stderr, flush=True)
    return problem


@contextmanager
def alone(path: Path, wait: bool = False) -> Iterator[bool]:
    """Whether this process is the only one in here; a killed one is out by itself."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with (path.parent / f".{path.name}.lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        except BlockingIOError:
            yield False
        else:
            yield True


def sentence(error: BaseException) -> str:
    return " ".join(str(error).split())
