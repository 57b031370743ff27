"""What a process and its descendants cost, from /proc."""

from __future__ import annotations

import os
import threading
import time
from pathlib import Path
from types import TracebackType
from typing import Self

_TICKS = os.sysconf("SC_CLK_TCK")


def tree(pid: int) -> list[int]:
    """``pid`` and its descendants."""
    found, waiting = [], [pid]
    while waiting:
        current = waiting.pop()
        found.append(current)
        try:
            for task in Path(f"/proc/{current}/task").iterdir():
                waiting += map(int, (task / "children").read_text().split())
        except OSError:  # it has ended
            continue
    return found


def cpu_seconds(pid: int) -> float:
    """CPU time, user's and system's, of ``pid``, of its descendants and of those of them that ended."""
    ticks = 0
    for current in tree(pid):
        ticks += sum(map(int, _stat(current)[11:15]))
    return ticks / _TICKS


def started_at(pid: int) -> int | None:
    """When ``pid`` was started, in ticks since the machine was; ``None`` if it has ended."""
    fields = _stat(pid)
    return int(fields[19]) if fields else None


def pss_megabytes(pid: int) -> float:
    """Memory of ``pid`` and its descendants in 10^6 bytes, what is shared counted by its share (PSS)."""
    kilobytes = 0
    for current in tree(pid):
        try:
            lines = Path(f"/proc/{current}/smaps_rollup").read_text().splitlines()
        except OSError:
            continue
        kilobytes += sum(int(line.split()[1]) for line in lines if line.startswith("Pss:"))
    return kilobytes * 1024 / 1e6


class MemorySamples:
    """PSS of ``pid`` and its descendants every ``seconds`` while the block lasts.

    Attributes
    ----------
    samples
        Pairs of the time, in seconds since the beginning, and 10^6 bytes.
    """

    def __init__(self, pid: int, seconds: float = 0.5) -> None:
        self.samples: list[tuple[float, float]] = []
        self._pid, self._seconds = pid, seconds
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, _: object, traceback: TracebackType | None) -> None:
        self._stop.set()
        self._thread.join()

    def _run(self) -> None:
        start = time.monotonic()
        while True:
            self.samples.append((time.monotonic() - start, pss_megabytes(self._pid)))
            if self._stop.wait(self._seconds):
                return


def _stat(pid: int) -> list[str]:
    """Fields of ``/proc/PID/stat`` after the name, which is in brackets and may hold anything."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return []
