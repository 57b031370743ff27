"""How long a run of the model is going to take, by what runs of about its size took."""

from __future__ import annotations

from collections import deque

# As many as it takes to notice that the machine has become slower.
_LAST_RUNS = 8


class RunTimes:
    """The fastest of the last runs, by number of rows to the next power of two.

    The fastest, because a run in a thread may wait long for the interpreter after the model has answered.
    """

    def __init__(self) -> None:
        self._last: dict[int, deque[float]] = {}

    def add(self, rows: int, seconds: float) -> None:
        """Take notice of a run of ``rows``, at least one."""
        size = (rows - 1).bit_length()
        last = self._last.get(size)
        if last is None:
            last = self._last[size] = deque(maxlen=_LAST_RUNS)
        last.append(seconds)

    def expected(self, rows: int) -> float:
        """Return the seconds that a run of ``rows`` may take; infinity if none as large has been seen."""
        size = (rows - 1).bit_length()
        last = self._last.get(size)
        if last is None:
            larger = [known for known in self._last if known > size]
            if not larger:
                return float("inf")
            last = self._last[min(larger)]
        return min(last)
