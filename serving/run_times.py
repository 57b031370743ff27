"""How long a run of the model is going to take, by what runs of about its size took."""

from __future__ import annotations

from collections import deque

# As many as it takes to notice that the machine has become slower.
_LAST_RUNS = 8


class RunTimes:
    """What the last runs took, by number of rows to the next power of two."""

    def __init__(self) -> None:
        self._last: dict[int, deque[float]] = {}

    def add(self, rows: int, seconds: float) -> None:
        """Take notice of a run of ``rows``, at least one."""
        size = (rows - 1).bit_length()
        last = self._last.get(size)
        if last is None:
            last = self._last[size] = deque(maxlen=_LAST_RUNS)
        last.append(seconds)

    def least(self, rows: int) -> float:
        """Return the seconds that the model needs for ``rows``; infinity if no run as large has been seen.

        The fastest of the last runs: one in a thread may wait long for the interpreter after the model has
        answered.
        """
        return min(last) if (last := self._of(rows)) else float("inf")

    def mean(self, rows: int) -> float:
        """Return the seconds that runs of ``rows`` take, all waiting included; infinity as for `least`."""
        return sum(last) / len(last) if (last := self._of(rows)) else float("inf")

    def _of(self, rows: int) -> deque[float] | None:
        """Runs of about ``rows``, or the next larger ones there were."""
        size = (rows - 1).bit_length()
        if size not in self._last:
            size = min((known for known in self._last if known > size), default=size)
        return self._last.get(size)
