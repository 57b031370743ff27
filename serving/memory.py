"""Memory: so laid out that an unload can give it back, and given back."""

from __future__ import annotations

import ctypes
import gc

# glibc's own name.
_M_MMAP_THRESHOLD = -3
# More than most messages, which come and go at every call; less than what a model is worth unloading for.
LARGE = 8 << 20


def keep_large_blocks_apart() -> None:
    """Have blocks of more than 8 MiB go back to the system when they are freed, wherever they lie.

    By default glibc puts blocks of up to 32 MiB into its heaps once such a block has been freed, and a heap
    shrinks only from its end: over reloads of a model of 20 MB it kept 20 to 40 MB. For the server's process:
    it is the command that calls it. Other C libraries have no such call.
    """
    set_option = getattr(ctypes.CDLL(None), "mallopt", None)
    if set_option is not None:
        set_option(_M_MMAP_THRESHOLD, LARGE)


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
