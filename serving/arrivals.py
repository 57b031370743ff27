"""The calls that the event loop is reading just now: they come together, and nobody waits for more."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

# From one call that it accepts to the next, gRPC's loop takes four to seven turns of the event loop.
QUIET_TURNS = 8
# Turns that a call waits at most while others come.
MOST_TURNS = 32
# After waits that were all in vain, so many calls at most are taken to be alone before the next try.
MOST_ALONE = 16


class Arrivals:
    """Tells when no more calls come in.

    Under load the next call is a few turns of the event loop away, and whoever waits for it finds it: all
    that come without a pause are taken together. After a wait in vain, which takes about a tenth of a
    millisecond, the next call does not wait; after another the next two do not, then four, and so on. A
    timer could not do this: asyncio's are no finer than a millisecond.

    Parameters
    ----------
    loop
        The running event loop.
    ceased
        Called when the wait is over.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop, ceased: Callable[[], None]) -> None:
        self._loop = loop
        self._ceased = ceased
        self._calls = 0
        self._turns = 0
        self._last_turn = 0
        # Calls that are not to wait: now, and after the next wait that is in vain.
        self._alone, self._alone_next = 0, 1

    @property
    def under_way(self) -> bool:
        """Whether calls wait, and `ceased` has not been called."""
        return self._calls > 0

    def note(self) -> bool:
        """Take notice of a call, and return whether it is to wait until `ceased` is called."""
        if not self._calls and self._alone:
            self._alone -= 1
            return False
        self._calls += 1
        if self._calls == 1:
            self._turns = 0
            self._last_turn = QUIET_TURNS
            self._loop.call_soon(self._turn)
        else:
            self._alone, self._alone_next = 0, 1
            self._last_turn = min(self._turns + QUIET_TURNS, MOST_TURNS)
        return True

    def _turn(self) -> None:
        self._turns += 1
        if self._turns < self._last_turn:
            self._loop.call_soon(self._turn)
            return
        if self._calls == 1:
            self._alone, self._alone_next = self._alone_next, min(2 * self._alone_next, MOST_ALONE)
        self._calls = 0
        self._ceased()
