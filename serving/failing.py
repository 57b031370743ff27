"""A model that fails on every run, as when its device is gone: noticed, taken out, tried, and taken back."""

from __future__ import annotations

import asyncio
import logging
import math
from collections.abc import Callable

from serving.background import in_thread
from serving.watchdog import RunTooLong

log = logging.getLogger(__name__)

# Pauses between two tries of a model that fails: doubled every time.
FIRST_PAUSE_SECONDS = 0.5
LONGEST_PAUSE_SECONDS = 30.0


class FailsTooLong(RuntimeError):
    """A model fails for longer than ``failing_seconds``."""


class FailureWatch:
    """Tells a model that fails from rows that make it fail, and when it works again. For the event loop.

    After some runs in a row have failed, rows of its own are tried. If they are answered, it was the callers'
    rows. If they fail, too, the model fails, until such a try succeeds: never is it moved to another device.

    Parameters
    ----------
    name
        The model's, for messages.
    attempt
        Runs the model on rows of its own. Blocking: called in a thread. Raises if it fails.
    changed
        Called with why the model fails, and with "" once it works again.
    failures
        So many failed runs in a row are looked into.
    seconds
        If a try takes longer, the model hangs; 0 for as long as it wants.
    patience
        Seconds; a model that fails for longer is given up, 0 never.
    ended
        Called with the task that has then failed with `RunTooLong` or `FailsTooLong`, or with whatever else
        ended it.
    """

    def __init__(
        self,
        name: str,
        attempt: Callable[[], None],
        changed: Callable[[str], None],
        *,
        failures: int,
        seconds: float,
        patience: float,
        ended: Callable[[asyncio.Task[None]], None],
    ) -> None:
        self._name = name
        self._attempt = attempt
        self._changed = changed
        self._failures = failures
        self._seconds = seconds
        self._patience = patience
        self._tell_ended = ended
        self._failed_in_a_row = 0
        self._closed = False
        self._looking: asyncio.Task[None] | None = None

    def ran(self, error: Exception | None) -> None:
        """Take notice of a run of the model on callers' rows, and of its ``error`` if it failed."""
        if error is None:
            self._failed_in_a_row = 0
            return
        self._failed_in_a_row += 1
        if self._failed_in_a_row >= self._failures and self._looking is None and not self._closed:
            self._looking = asyncio.get_running_loop().create_task(
                self._look(), name=f"tries of {self._name}"
            )
            self._looking.add_done_callback(self._ended)

    def close(self) -> None:
        """Look no more, also if runs that are still under way fail."""
        self._closed = True
        if self._looking is not None:
            self._looking.cancel()

    async def _look(self) -> None:
        why, pause = await self._try(), FIRST_PAUSE_SECONDS
        if not why:
            extra = {"model": self._name, "failed_in_a_row": self._failed_in_a_row}
            log.warning(
                "runs failed, and rows of the model's own did not: the rows are the cause", extra=extra
            )
            return
        log.error("model fails; it is tried until it works again", extra={"model": self._name, "why": why})
        self._changed(why)
        clock = asyncio.get_running_loop().time
        given_up = clock() + self._patience if self._patience else math.inf
        while why:
            if clock() >= given_up:
                raise FailsTooLong(
                    f"{self._name} has failed for --failing-seconds {self._patience:g}, at last with: {why}"
                )
            await asyncio.sleep(min(pause, given_up - clock()))
            pause = min(2 * pause, LONGEST_PAUSE_SECONDS)
            why = await self._try()
        log.warning("model works again", extra={"model": self._name})
        self._changed("")

    async def _try(self) -> str:
        """Return why the model fails on rows of its own; empty if it does not."""
        limit = asyncio.timeout(self._seconds or None)
        try:
            async with limit:
                await in_thread(self._attempt, "try of a model")
        except Exception as error:  # whatever a device raises when it is gone
            if limit.expired():
                raise RunTooLong(
                    f"{self._name}: a try of the model that failed takes longer than "
                    f"--run-timeout-seconds {self._seconds:g}"
                ) from error
            return str(error) or type(error).__name__
        return ""

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._looking = None
        self._failed_in_a_row = 0
        if not task.cancelled() and task.exception() is not None:
            self._tell_ended(task)
