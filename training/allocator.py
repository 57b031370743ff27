"""Freed memory is kept for the next step instead of going back to the system."""

from __future__ import annotations

import ctypes
import sys

# glibc's own names and its largest mmap threshold.
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3
LARGEST_KEPT = 32 << 20
MOST_KEPT = 128 << 20


def keep_freed_memory() -> bool:
    """Let this process keep up to 128 MiB that it has freed, in blocks of at most 32 MiB.

    By default glibc returns blocks of a few MB to the system as they are freed; a training step on a CPU then
    spends a tenth of its time on page faults, getting the same tensors back. For a process whose only work is
    training: it is the command that calls it, never the library.

    Returns
    -------
    bool
        Whether it took effect; another C library than glibc is left as it is.
    """
    if not sys.platform.startswith("linux"):
        return False
    library = ctypes.CDLL(None)
    if not hasattr(library, "gnu_get_libc_version"):
        return False
    return bool(
        library.mallopt(_M_MMAP_THRESHOLD, LARGEST_KEPT) and library.mallopt(_M_TRIM_THRESHOLD, MOST_KEPT)
    )
