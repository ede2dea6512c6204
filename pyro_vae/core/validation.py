"""Argument checks and suggestions for misspelled names."""

from __future__ import annotations

import difflib
import os
import re
from collections.abc import Iterable, Sequence
from numbers import Integral
from pathlib import Path

import torch
from torch import Tensor

__all__ = [
    "as_path",
    "as_shape",
    "check_choice",
    "check_memory",
    "check_stored_type",
    "did_you_mean",
    "free_memory",
    "has_channels_last",
    "non_negative_int",
    "positive_int",
]


def as_path(path: str | Path) -> Path:
    """Return a path with ``~`` expanded; ``~name`` of an unknown user is a file name."""
    return Path(os.path.expanduser(path))


def check_choice(name: str, got: str, known: Sequence[str]) -> None:
    """Raise a ``ValueError`` if a value is not one of those known, with the closest of these."""
    if got not in known:
        hint = did_you_mean(str(got), known)
        raise ValueError(f"expected {name} to be one of {', '.join(known)}; got {got!r}{hint}")


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """Return ``"; did you mean …?"`` for a typo, or an empty string if no known name is close."""
    matches = difflib.get_close_matches(str(name), list(known), n=1)
    return f"; did you mean {matches[0]}?" if matches else ""


def positive_int(name: str, value: int) -> int:
    """Return ``value`` as an int; raise a ``ValueError`` unless it is in [1, 2⁶³)."""
    if isinstance(value, bool) or not isinstance(value, Integral) or value < 1:
        raise ValueError(f"expected {name} to be a positive integer; got {value!r}")
    return _check_size(name, int(value))


def non_negative_int(name: str, value: int) -> int:
    """Return ``value`` as an int; raise a ``ValueError`` unless it is in [0, 2⁶³)."""
    if isinstance(value, bool) or not isinstance(value, Integral) or value < 0:
        raise ValueError(f"expected {name} to be an integer ≥ 0; got {value!r}")
    return _check_size(name, int(value))


def _check_size(name: str, value: int) -> int:
    if value >= 2**63:  # torch and result files have integers of 64 bits
        raise ValueError(f"expected {name} to be at most 2⁶³ − 1; got {value}")
    return value


def as_shape(name: str, values: Iterable[int]) -> tuple[int, ...]:
    """Return ``values`` as a tuple; raise a ``ValueError`` unless they are positive integers."""
    if isinstance(values, str) or not isinstance(values, Iterable):
        got = f"{values!r}: write ({values},)" if isinstance(values, Integral) else repr(values)
        raise ValueError(f"expected {name} to be a tuple of positive integers; got {got}")
    return tuple(positive_int(f"every number in {name}", value) for value in values)


def has_channels_last(event_shape: tuple[int, ...]) -> bool:
    """Whether the shape of an example looks like ``(H, W, C)``, as PIL and NumPy have images.

    True if only the last dimension is a usual number of channels: 1, 3 or 4. Small square images
    such as ``(16, 3, 3)`` count as ``(C, H, W)``.
    """
    if len(event_shape) != 3:
        return False
    first, second, last = event_shape
    return last in _CHANNELS and first not in _CHANNELS and second != last


#: Usual numbers of channels: grey, colour, and colour with opacity.
_CHANNELS = (1, 3, 4)
#: Types of tensors that torch stores, and cannot compare.
_STORED_ONLY = (torch.uint16, torch.uint32, torch.uint64)


def check_memory(what: str, size: int, remedy: str) -> None:
    """Raise a ``ValueError`` if ``size`` bytes exceed the free memory of this machine.

    Otherwise the system kills the process, without a message, once its tensors fill the memory.
    """
    memory = free_memory()
    if memory is not None and size > memory:
        raise ValueError(
            f"expected {what} to fit into {memory / 2**30:,.1f} GiB, the free memory of this "
            f"machine; they take {size / 2**30:,.1f} GiB: {remedy}"
        )


def free_memory() -> int | None:
    """Return the free memory of this machine or container in bytes; ``None`` if unknown."""
    if not hasattr(os, "sysconf"):  # Windows, where the allocation fails
        return None
    limits = [os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")]
    available = re.search(r"^MemAvailable: +(\d+) kB$", _read(_MEMINFO), re.MULTILINE)
    if available:
        limits.append(1024 * int(available[1]))
    # the limit of a container; pages of files are freed when they are needed
    maximum = _read(_CGROUP / "memory.max").strip()
    used = re.search(r"^anon (\d+)$", _read(_CGROUP / "memory.stat"), re.MULTILINE)
    if maximum.isdecimal() and used:
        limits.append(max(0, int(maximum) - int(used[1])))
    return min(limits)


#: Where Linux reports the memory of the machine, and of a container.
_MEMINFO, _CGROUP = Path("/proc/meminfo"), Path("/sys/fs/cgroup")


def _read(file: Path) -> str:
    try:
        return file.read_text()
    except OSError:
        return ""


def check_stored_type(name: str, value: Tensor) -> None:
    """Raise a ``ValueError`` if ``value`` is of a type that torch stores, and cannot compare."""
    if value.dtype in _STORED_ONLY:
        raise ValueError(
            f"expected {name} to be of a type that torch computes with; got {value.dtype}: convert "
            f"it by {name}.float()"
        )
