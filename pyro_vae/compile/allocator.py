"""Memory of the last step for the next one."""

from __future__ import annotations

import ctypes
import functools

__all__ = ["keep_freed_memory"]

#: glibc's names for what ``mallopt`` sets, from malloc.h.
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3
#: Free memory at the end of the heap that is kept, and blocks that come from the heap; of the
#: latter glibc takes no more.
_TRIM, _MMAP = 256 << 20, 32 << 20


@functools.cache
def keep_freed_memory() -> bool:
    """Lets this process keep what it frees, up to 256 MiB, where its C library is glibc.

    A step, or a chunk of an evaluation, allocates and frees the same megabytes as the one before.
    glibc may hand them back to the system in between, and then every page is faulted in anew.

    Returns:
        Whether that could be set.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError, TypeError):  # another C library, or Windows
        return False
    return bool(mallopt(_M_MMAP_THRESHOLD, _MMAP) and mallopt(_M_TRIM_THRESHOLD, _TRIM))
