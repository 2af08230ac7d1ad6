"""How the C library treats memory that tensors give back: it is kept, and in large pages."""

from __future__ import annotations

import ctypes
import sys

HUGE_PAGE = 2 << 20
RESERVED = 4 << 30
"""Bytes of address space, not of memory, that are asked to be in large pages."""
_M_TRIM_THRESHOLD, _M_MMAP_MAX, _MADV_HUGEPAGE = -1, -4, 14


def keep_freed_memory() -> bool:
    """Have the allocator of this process reuse what is freed, on Linux with glibc; returns whether it does.

    By default glibc maps every tensor above some megabytes afresh and gives it back at once, so an update on a CPU
    spends a fifth of its time in page faults, in zeroing pages it had a moment ago. Here everything comes from one
    heap that never shrinks, whose first 4 GiB are in pages of 2 MiB. A process so holds on to its peak.
    """
    if sys.platform != "linux":
        return False
    libc = ctypes.CDLL(None)
    if not all(hasattr(libc, name) for name in ("mallopt", "madvise", "gnu_get_libc_version")):
        return False
    if not (libc.mallopt(_M_MMAP_MAX, 0) and libc.mallopt(_M_TRIM_THRESHOLD, -1)):
        return False
    libc.malloc.argtypes, libc.malloc.restype = [ctypes.c_size_t], ctypes.c_void_p
    libc.free.argtypes = [ctypes.c_void_p]
    libc.madvise.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
    # Grows the heap without touching it: what is freed at its end stays part of it.
    start = libc.malloc(RESERVED)
    if start is not None:
        first, end = -(-start // HUGE_PAGE) * HUGE_PAGE, (start + RESERVED) // HUGE_PAGE * HUGE_PAGE
        libc.madvise(first, end - first, _MADV_HUGEPAGE)
        libc.free(start)
    return True
