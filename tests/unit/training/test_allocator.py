"""Freed memory that is kept costs no page faults to have back."""

from __future__ import annotations

import ctypes
import resource

import pytest

from training.allocator import keep_freed_memory

PAGES = 2048


def faults(times: int) -> int:
    """Page faults of having 8 MiB ``times`` over."""
    library = ctypes.CDLL(None)
    library.malloc.restype = ctypes.c_void_p
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(times):
        block = ctypes.c_void_p(library.malloc(PAGES * 4096))
        ctypes.memset(block, 1, PAGES * 4096)
        library.free(block)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before


def test_kept_memory_faults_in_once():
    if not keep_freed_memory():
        pytest.skip("not glibc")
    faults(1)
    assert faults(10) < PAGES
