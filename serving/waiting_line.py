"""Calls that wait for room in a queue, of callers that would rather wait than be refused."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable

from serving.call_queue import Call


class WaitingLine:
    """First in, first out: who came later is let in later, also if it is smaller."""

    def __init__(self) -> None:
        # A dictionary, so that a caller that leaves is taken out at once, wherever it stands.
        self._calls: OrderedDict[int, Call] = OrderedDict()

    def __len__(self) -> int:
        return len(self._calls)

    def put(self, call: Call) -> None:
        """Add ``call`` at the end."""
        self._calls[id(call)] = call

    def let_in(self, has_room: Callable[[int], bool], enter: Callable[[Call], object]) -> None:
        """Hand calls over to ``enter`` as long as ``has_room`` for the rows of the first."""
        while self._calls:
            call = next(iter(self._calls.values()))
            if not has_room(len(call.x)):
                return
            del self._calls[id(call)]
            enter(call)

    def remove(self, call: Call) -> int:
        """Take ``call`` out if it is in, and return the number of its rows."""
        return 0 if self._calls.pop(id(call), None) is None else len(call.x)

    def clear(self) -> list[Call]:
        """Take all calls out and return them."""
        calls = list(self._calls.values())
        self._calls.clear()
        return calls
