"""What the C library does with memory that tensors on the CPU have given back.

By default glibc returns what is large to the system at once, and the next step takes it anew, a page at a time: in a
small network that can cost more than its arithmetic.
"""

from __future__ import annotations

import ctypes

_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3  # of glibc's mallopt
_LARGEST = 32 * 2**20  # bytes that it may keep of one piece, at most
_KEPT = 2**31 - 1  # bytes at the end of the heap that need not be returned


def keep_freed_memory() -> bool:
    """Have this process keep what is freed, in pieces of at most 32 MiB and 2 GiB in all; False without glibc."""
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):  # another system, or another C library
        return False
    return bool(mallopt(_MMAP_THRESHOLD, _LARGEST) and mallopt(_TRIM_THRESHOLD, _KEPT))
