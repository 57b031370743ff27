"""A clock finer than asyncio's, whose timers round up to whole milliseconds."""

from __future__ import annotations

import asyncio
import ctypes
import os

_CLOCK_MONOTONIC = 1
_ABSOLUTE = 1
_libc = ctypes.CDLL(None, use_errno=True)


class _Time(ctypes.Structure):
    _fields_ = (("seconds", ctypes.c_long), ("nanoseconds", ctypes.c_long))


class _Setting(ctypes.Structure):
    _fields_ = (("interval", _Time), ("value", _Time))


class Alarm:
    """Wakes a coroutine at a point of `time.monotonic`; Linux's timerfd."""

    def __init__(self) -> None:
        self._file = _libc.timerfd_create(_CLOCK_MONOTONIC, os.O_NONBLOCK)
        if self._file < 0:
            raise OSError(ctypes.get_errno(), "timerfd_create failed; this benchmark needs Linux")
        self._rings = asyncio.Event()
        asyncio.get_running_loop().add_reader(self._file, self._ring)

    async def until(self, when: float) -> None:
        """Wait until ``when``, in seconds of `time.monotonic`; not at all if that is past."""
        self._rings.clear()
        nanoseconds = max(1, int(when * 1e9))
        setting = _Setting(_Time(0, 0), _Time(*divmod(nanoseconds, 10**9)))
        if _libc.timerfd_settime(self._file, _ABSOLUTE, ctypes.byref(setting), None):
            raise OSError(ctypes.get_errno(), "timerfd_settime failed")
        await self._rings.wait()

    def close(self) -> None:
        """Give the file back."""
        asyncio.get_running_loop().remove_reader(self._file)
        os.close(self._file)

    def _ring(self) -> None:
        os.read(self._file, 8)
        self._rings.set()
