"""Giving memory back after an unload, as far as the process can."""

from __future__ import annotations

import ctypes
import gc


def give_back() -> None:
    """Free what only the garbage collector finds, and return free pages to the system. Called in a thread.

    A closed batcher and its task refer to each other, and hold the last rows until they are collected; and
    glibc keeps what was freed, in pieces too small for the next model, unless it is told to let go. Other C
    libraries have no such call and need none.
    """
    gc.collect()
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(ctypes.c_size_t(0))
