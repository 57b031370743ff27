"""When a server is to stop, and how long it still waits then."""

from __future__ import annotations

import asyncio
import contextlib
import signal
from collections.abc import Coroutine
from typing import Any


class Shutdown:
    """Takes requests to stop, and cuts short what is waited for once they are repeated.

    Parameters
    ----------
    drain_seconds
        Load balancers still send calls for so long.
    grace_seconds
        Calls in flight are given so long.

    Attributes
    ----------
    drain_seconds
        As above; 0.0 after SIGINT.
    """

    def __init__(self, drain_seconds: float, grace_seconds: float) -> None:
        self.drain_seconds = drain_seconds
        self._grace_seconds = grace_seconds
        self._asked = asyncio.Event()
        self._hurry = asyncio.Event()

    def ask(self) -> None:
        """Ask the server to stop gracefully; asked again, it leaves out the wait that it is in."""
        if self._asked.is_set():
            self._hurry.set()
        self._asked.set()

    def handle_signals(self) -> None:
        """SIGTERM stops gracefully, SIGINT without waiting for load balancers; another one hurries it."""
        loop = asyncio.get_running_loop()

        def interrupted() -> None:
            self.drain_seconds = 0.0
            self.ask()

        loop.add_signal_handler(signal.SIGTERM, self.ask)
        loop.add_signal_handler(signal.SIGINT, interrupted)

    async def asked(self) -> None:
        """Wait until the server is asked to stop."""
        await self._asked.wait()

    async def drain(self) -> None:
        """Wait until load balancers have seen that the server is not ready, or it is asked to hurry."""
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._hurry.wait(), self.drain_seconds)
        self._hurry.clear()

    async def finish(self, work: Coroutine[Any, Any, None]) -> bool:
        """Do ``work``, and return whether it ended within the grace, and before the server was to hurry.

        Raises
        ------
        Exception
            Whatever ``work`` raised.
        """
        finishing = asyncio.create_task(work)
        hurry = asyncio.create_task(self._hurry.wait())
        waiting: set[asyncio.Future[Any]] = {finishing, hurry}
        try:
            await asyncio.wait(waiting, timeout=self._grace_seconds, return_when=asyncio.FIRST_COMPLETED)
            finished = finishing.done()
            if finished:
                finishing.result()
        finally:
            finishing.cancel()
            hurry.cancel()
        return finished
