"""The process of a command: its standard streams, its signals, and the report of an error."""

from __future__ import annotations

import io
import math
import os
import re
import signal
import sys
import tempfile
import threading
import time
import traceback
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from types import FrameType
from typing import Any, TextIO

from ..learning.diagnostics import NonFiniteLossError

__all__ = [
    "Terminated",
    "describe_error",
    "flush_output",
    "handle_signals",
    "save_traceback",
    "standard_streams",
]

#: Signals within this time, in seconds, are one request to stop: a terminal and torchrun, or
#: systemd, send two. Both must not interrupt the clean-up.
_SAME_REQUEST = 2.0
#: Errors whose message is a sentence for the user.
_EXPECTED = (ValueError, OSError, ModuleNotFoundError, NonFiniteLossError)
#: The part of a message of torch or NumPy that states the size of a failed allocation.
_ALLOCATION = re.compile(r"(?:tried to allocate|unable to allocate)\s+([\d.]+ *\w+)", re.IGNORECASE)
#: Sizes that exceed the integers of torch.
_OVERFLOW = re.compile(r"size calculation overflowed|integer multiplication overflow")


class Terminated(KeyboardInterrupt):
    """A ``KeyboardInterrupt`` with the number of its signal."""

    def __init__(self, number: int) -> None:
        super().__init__()
        self.number = number


class _Stream(io.FileIO):
    """The file of a standard stream, which ignores that it cannot be written.

    Training must not end because the reader of its progress bar has ended, or because the disk of
    its log is full.

    Attributes:
        error: the last error.
    """

    def __init__(self, descriptor: int) -> None:
        super().__init__(descriptor, "wb", closefd=False)
        self.error: OSError | None = None

    def write(self, data: Any) -> int:
        try:
            return super().write(data)
        except OSError as error:
            self.error = error
            return memoryview(data).nbytes


@contextmanager
def standard_streams() -> Iterator[None]:
    """Make the standard streams writable, whatever they are connected to.

    A closed stream, or one whose reader has ended, discards its output. Characters that its
    encoding lacks are written as escape sequences.
    """
    for descriptor in (0, 1, 2):
        try:
            os.fstat(descriptor)
        except OSError:
            # otherwise the next file to be opened gets the number of a standard stream, and the
            # messages of C libraries are written to it
            os.open(os.devnull, os.O_RDWR)
    before = sys.stdout, sys.stderr
    sys.stdout = _make_writable(sys.stdout, sys.__stdout__)
    sys.stderr = _make_writable(sys.stderr, sys.__stderr__)
    try:
        yield
    finally:
        for stream, original in zip((sys.stdout, sys.stderr), before, strict=True):
            with suppress(OSError, ValueError):
                stream.flush() if original else stream.close()
        sys.stdout, sys.stderr = before


def _make_writable(stream: TextIO | None, original: TextIO | None) -> TextIO:
    if stream is None:
        return open(os.devnull, "w", encoding="utf-8")
    if stream is not original or not isinstance(stream, io.TextIOWrapper):
        return stream  # of a notebook or a test
    with suppress(OSError):
        stream.flush()
    file = _Stream(stream.fileno())
    is_unbuffered = isinstance(stream.buffer, io.RawIOBase)  # by PYTHONUNBUFFERED
    return io.TextIOWrapper(
        file if is_unbuffered else io.BufferedWriter(file),  # type: ignore[arg-type]
        encoding=stream.encoding,
        errors="backslashreplace",
        line_buffering=stream.line_buffering,
        write_through=stream.write_through,
    )


def flush_output() -> None:
    """Flush the standard output.

    Raises:
        OSError: if some of it could not be written, unless its reader has ended.
    """
    sys.stdout.flush()
    buffer = getattr(sys.stdout, "buffer", None)
    file = getattr(buffer, "raw", buffer)
    error = file.error if isinstance(file, _Stream) else None
    if error is not None and not isinstance(error, BrokenPipeError):
        raise OSError(f"could not write the standard output: {error.strerror}")


@contextmanager
def handle_signals() -> Iterator[None]:
    """Raise :class:`Terminated` on SIGTERM, SIGHUP and SIGINT, so that all end like Ctrl-C.

    A signal that is ignored, as SIGHUP is by ``nohup``, or that has another handler keeps it.
    """
    last = -math.inf

    def terminate(number: int, frame: FrameType | None) -> None:
        nonlocal last
        now = time.monotonic()
        if now - last > _SAME_REQUEST:
            last = now
            raise Terminated(number)

    before: dict[int, Any] = {}
    # only the main thread can set handlers
    if threading.current_thread() is threading.main_thread():
        for name in ("SIGINT", "SIGTERM", "SIGHUP"):  # Windows has no SIGHUP
            number = getattr(signal, name, None)
            defaults = (signal.SIG_DFL, signal.default_int_handler)
            if number is not None and signal.getsignal(number) in defaults:
                before[number] = signal.signal(number, terminate)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def describe_error(error: Exception) -> tuple[str, bool]:
    """Return an error as one sentence, and whether the user can mend its cause.

    The sentence of any other error, which is a fault of the program, names its class.
    """
    message = " ".join(str(error).split())
    allocation, overflow = _ALLOCATION.search(message), _OVERFLOW.search(message)
    if isinstance(error, MemoryError) or (isinstance(error, RuntimeError) and allocation):
        size = f"{_format_size(allocation[1])} of" if allocation else "more"
        return (
            f"expected {size} free memory for a tensor; got less: use a smaller model, smaller "
            f"batches or chunks, or fewer samples or examples"
        ), True
    if isinstance(error, RuntimeError) and overflow:
        return (
            f"expected tensors of less than 2⁶³ bytes; got a larger one ({message[:200]}): use a "
            f"smaller model, or fewer samples or examples"
        ), True
    if isinstance(error, OSError) and error.strerror and error.filename is not None:
        return f"{error.strerror}: {error.filename}", True
    if isinstance(error, _EXPECTED) and (type(error) is not ValueError or _is_own(error)):
        return message or type(error).__name__, True
    return f"unexpected {type(error).__name__}{message and ': '}{message[:300]}", False


def _is_own(error: Exception) -> bool:
    """Whether an error was raised by this package, and not by code that it calls."""
    *_, (frame, _) = traceback.walk_tb(error.__traceback__)
    return frame.f_globals.get("__name__", "").partition(".")[0] == __name__.partition(".")[0]


def _format_size(size: str) -> str:
    """Return a size, in bytes unless it has another unit, in GiB if it is large."""
    number, unit = re.fullmatch(r"([\d.]+) *(\w+)", size).groups()  # type: ignore[union-attr]
    large = unit == "bytes" and float(number) >= 2**33
    return f"{float(number) / 2**30:,.0f} GiB" if large else size


def save_traceback(error: Exception) -> str:
    """Write the traceback of an error to a new private file, and return how to find it."""
    text = "".join(traceback.format_exception(error))
    try:
        handle, name = tempfile.mkstemp(prefix="pyro-vae-", suffix=".txt")
        with os.fdopen(handle, "w", encoding="utf-8", errors="backslashreplace") as file:
            file.write(text)
    except OSError:  # no folder for temporary files, or no space in it
        print(text, file=sys.stderr)
        return "see the traceback above"
    return f"the traceback is in {name}"
