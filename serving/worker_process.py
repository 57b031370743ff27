"""A worker as its supervisor sees it: a process with a state, questions it answers, and an end."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import json
import os
import signal
import socket
import sys
from asyncio.subprocess import Process
from collections.abc import Callable
from typing import Any

from serving.merged_metrics import Snapshot
from serving.settings import ServerSettings

# One line has all of a worker's metrics.
_MOST_BYTES = 64 << 20


class WorkerProcess:
    """A running worker; made by `start`.

    Parameters
    ----------
    number
        From 0 on; a worker that takes a dead one's place has its number.
    process
        What runs.
    changed
        Called when what it says of itself has changed.

    Attributes
    ----------
    number
        As above.
    why_not_ready
        Why it takes no calls; empty if it does.
    was_ready
        Whether it ever took calls.
    cannot_start
        Why it ended before that, if it could say.
    metrics
        The last that is known of what it counted.
    """

    def __init__(self, number: int, process: Process, changed: Callable[[], None]) -> None:
        self.number = number
        self.why_not_ready = "starting"
        self.was_ready = False
        self.cannot_start = ""
        self.metrics = Snapshot()
        self._process = process
        self._changed = changed
        self._greeted = False
        self._ids = itertools.count()
        self._waiting: dict[int, asyncio.Future[None]] = {}

    @classmethod
    async def start(cls, number: int, settings: ServerSettings, changed: Callable[[], None]) -> WorkerProcess:
        """Start a worker with ``settings``."""
        ours, theirs = socket.socketpair()
        with theirs:
            process = await asyncio.create_subprocess_exec(
                *(sys.executable, "-m", "serving.worker", str(theirs.fileno()), str(number)),
                settings.model_dump_json(),
                stdin=asyncio.subprocess.DEVNULL,
                pass_fds=(theirs.fileno(),),
                # The settings are complete: what the environment says would count twice.
                env={key: value for key, value in os.environ.items() if not key.startswith("NVISA_SERVE_")},
                # In a group of its own: Ctrl-C is the supervisor's, who hands it on.
                process_group=0,
            )
        worker = cls(number, process, changed)
        reader, worker._writer = await asyncio.open_connection(sock=ours, limit=_MOST_BYTES)
        worker._listening = asyncio.create_task(worker._listen(reader), name=f"listen to worker {number}")
        return worker

    _writer: asyncio.StreamWriter
    _listening: asyncio.Task[None]

    @property
    def pid(self) -> int:
        """Its process id."""
        return self._process.pid

    async def ended(self) -> int:
        """Wait for its end, and for the last that it said; the exit status, or less than 0 for a signal."""
        status = await self._process.wait()
        await self._listening
        self._writer.close()
        with contextlib.suppress(OSError):
            await self._writer.wait_closed()
        return status

    def send_signal(self, number: signal.Signals) -> None:
        """Send a signal; one that cannot handle it yet has nothing to finish and is killed."""
        if not self._greeted:
            self.kill()
            return
        with contextlib.suppress(ProcessLookupError):
            self._process.send_signal(number)

    def kill(self) -> None:
        """End it at once, if it has not ended."""
        with contextlib.suppress(ProcessLookupError):
            self._process.kill()

    async def ask(self, what: str, seconds: float) -> bool:
        """Ask for its "metrics", or whether it is "alive"; whether it answered within ``seconds``."""
        if not self._greeted:
            return True
        question = next(self._ids)
        answered = self._waiting[question] = asyncio.get_running_loop().create_future()
        try:
            self._writer.write(json.dumps({"id": question, "ask": what}).encode() + b"\n")
            await asyncio.wait_for(answered, seconds)
        except TimeoutError:
            return False
        finally:
            del self._waiting[question]
        return True

    async def _listen(self, reader: asyncio.StreamReader) -> None:
        with contextlib.suppress(ConnectionError):
            while line := await reader.readline():
                # What is cut short is the last of a worker that died over it.
                if line.endswith(b"\n"):
                    self._take(json.loads(line))
        for answered in self._waiting.values():
            if not answered.done():
                answered.set_result(None)

    def _take(self, message: dict[str, Any]) -> None:
        if "metrics" in message:
            self.metrics = Snapshot.from_json(message["metrics"])
        answered = self._waiting.get(message.get("answers", -1))
        if answered is not None and not answered.done():
            answered.set_result(None)
        if "cannot_start" in message:
            self.cannot_start = message["cannot_start"]
        if "why_not_ready" in message:
            self._greeted = True
            self.why_not_ready = message["why_not_ready"]
            self.was_ready = self.was_ready or not self.why_not_ready
            self._changed()
