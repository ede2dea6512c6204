"""Tune the C allocator to reuse freed memory."""

from __future__ import annotations

import ctypes
import functools

__all__ = ["keep_freed_memory"]

#: Parameters of glibc's ``mallopt``, from malloc.h.
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3
#: Bytes of free memory kept at the top of the heap, and the largest block allocated on the heap
#: (32 MiB is glibc's limit).
_TRIM_BYTES, _MMAP_BYTES = 256 << 20, 32 << 20


@functools.cache
def keep_freed_memory() -> bool:
    """Make glibc keep up to 256 MiB of freed memory instead of returning it to the system.

    Consecutive training steps, or chunks of an evaluation, allocate and free the same megabytes.
    If glibc returns them to the system in between, every page is faulted in again.

    Returns:
        Whether the setting was applied: ``False`` for other C libraries.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError, TypeError):  # another C library, or Windows
        return False
    return bool(mallopt(_M_MMAP_THRESHOLD, _MMAP_BYTES) and mallopt(_M_TRIM_THRESHOLD, _TRIM_BYTES))
