"""A model that hangs: found out, and the process ended, because a thread inside a model cannot be."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import threading
from collections.abc import Callable, Sequence

from serving.batcher import Batcher

log = logging.getLogger(__name__)

# If the server takes longer than this to end after a run has hung, something else hangs, too.
END_SECONDS = 10.0


class RunTooLong(RuntimeError):
    """A run of a model takes longer than ``run_timeout_seconds``."""


class Watchdog:
    """Looks at how long the runs of all models take, from a thread of its own.

    Whoever makes one, inside a running event loop, watches ``failed`` and ends the process when it fails. If
    the process is still there `END_SECONDS` later, the thread ends it, with exit status 1.

    Parameters
    ----------
    batchers
        Returns the batchers to look at. Called in the thread.
    seconds
        The longest that a run may take; 0 for as long as it wants.

    Attributes
    ----------
    failed
        Fails with `RunTooLong`, or whatever stopped the thread; never done otherwise.
    """

    def __init__(self, batchers: Callable[[], Sequence[Batcher]], seconds: float) -> None:
        self._loop = asyncio.get_running_loop()
        self.failed: asyncio.Future[None] = self._loop.create_future()
        self._batchers = batchers
        self._seconds = seconds
        self._closed = threading.Event()
        if seconds:
            threading.Thread(target=self._run, name="watchdog", daemon=True).start()

    def close(self) -> None:
        """Look no more, and let the process live."""
        self._closed.set()
        if not self.failed.cancel() and not self.failed.cancelled():
            self.failed.exception()  # looked at, even if the process was ending by then

    def _run(self) -> None:
        try:
            self._watch()
        except Exception as error:
            with contextlib.suppress(RuntimeError):  # the loop has been closed meanwhile
                self._loop.call_soon_threadsafe(self._fail, error)
            if not self._closed.wait(END_SECONDS):
                log.critical("%s; the server could not end by itself and is ended now", error)
                os._exit(1)

    def _watch(self) -> None:
        while not self._closed.wait(min(1.0, self._seconds / 4)):
            for batcher in self._batchers():
                if (taken := batcher.oldest_run_seconds()) > self._seconds:
                    raise RunTooLong(
                        f"{batcher.task.get_name()}: a run of the model has taken {taken:.3g} s, "
                        f"--run-timeout-seconds allows {self._seconds:g}"
                    )

    def _fail(self, error: Exception) -> None:
        if not self.failed.done():
            self.failed.set_exception(error)
