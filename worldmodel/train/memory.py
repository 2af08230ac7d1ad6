"""What the C library does with memory that tensors give back."""

from __future__ import annotations

import ctypes

# numbers of glibc's malloc.h
_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3


def keep_freed_memory() -> bool:
    """Ask glibc to keep up to 1 GiB of freed memory, and blocks up to 32 MiB in its heap: an update takes the memory of
    the last one, instead of getting every page anew from the system (a tenth to a fifth of an update of a small model
    on a CPU). Returns whether it agreed; other C libraries are left as they are."""
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, TypeError, AttributeError):
        return False
    return bool(mallopt(_MMAP_THRESHOLD, 32 << 20)) and bool(mallopt(_TRIM_THRESHOLD, 1 << 30))
