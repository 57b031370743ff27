"""One of several workers: a server that reports to its supervisor, and ends if that one does.

They speak JSON, a line a message, over a socket pair: the supervisor asks, and the worker answers and tells
of itself. `serving.worker_process` starts it, as ``python -m serving.worker DESCRIPTOR NUMBER SETTINGS``.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import os
import signal
import socket
import sys
import threading
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Self

from serving.logs import set_up_logs
from serving.settings import ServerSettings

if TYPE_CHECKING:
    from serving.metrics import Metrics

log = logging.getLogger(__name__)

# Beyond the grace of calls in flight; then a worker without a supervisor does not end by itself.
_END_SECONDS = 10.0


class SupervisorLink:
    """A worker's end of the connection to its supervisor; stands in for the HTTP port in `serving.server`.

    Parameters
    ----------
    connection
        The socket.
    grace_seconds
        If the supervisor is gone, the worker gives up calls in flight after so long.

    Attributes
    ----------
    failed
        Fails if questions can be answered no more. There once `open` was called, as is ``port``.
    port
        The supervisor's HTTP port.
    """

    failed: asyncio.Future[None]
    port: int

    def __init__(self, connection: socket.socket, grace_seconds: float) -> None:
        self._connection = connection
        self._grace_seconds = grace_seconds
        self._sending = threading.Lock()
        self._closed = threading.Event()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._metrics: Metrics | None = None
        threading.Thread(target=self._listen, name="supervisor", daemon=True).start()

    def open(self, metrics: Metrics, port: int) -> Self:
        """Answer from now on, for the running event loop and out of ``metrics``."""
        self._loop = asyncio.get_running_loop()
        self.failed = self._loop.create_future()
        self.port = port
        self._metrics = metrics
        return self

    def tell(self, why_not_ready: str) -> None:
        """Say whether this worker takes calls: it does if ``why_not_ready`` is empty."""
        self._send({"why_not_ready": why_not_ready})

    def tell_cannot_start(self, why: str) -> None:
        """Say why this worker ends; the supervisor logs it."""
        self._send({"cannot_start": why})

    def close(self) -> None:
        """Send what was counted up to now, and go."""
        if self._metrics is not None:
            self._send({"metrics": self._snapshot(self._metrics)})
        self._closed.set()

    def _listen(self) -> None:
        try:
            with self._connection.makefile() as questions:
                for question in questions:
                    self._answer(json.loads(question))
        except Exception as error:
            log.exception("the supervisor cannot be answered")
            if self._loop is not None:
                self._loop.call_soon_threadsafe(self.failed.set_exception, error)
                return
        if not self._closed.is_set():
            self._end()

    def _answer(self, question: dict[str, Any]) -> None:
        if self._loop is None or self._metrics is None:
            return  # still starting; the supervisor does not wait long
        if question["ask"] == "metrics":
            self._send({"answers": question["id"], "metrics": self._snapshot(self._metrics)})
        else:  # whether it is alive: answered by the event loop, if that turns
            self._loop.call_soon_threadsafe(self._send, {"answers": question["id"]})

    @staticmethod
    def _snapshot(metrics: Metrics) -> dict[str, Any]:
        from serving.merged_metrics import Snapshot

        return Snapshot.of(metrics.registry, metrics.mixes()).to_json()

    def _send(self, message: dict[str, Any]) -> None:
        # If the supervisor is gone, `_listen` sees it.
        with self._sending, contextlib.suppress(OSError):
            self._connection.sendall(json.dumps(message).encode() + b"\n")

    def _end(self) -> None:
        log.error("the supervisor is gone; this worker ends, too")
        if self._loop is not None:
            os.kill(os.getpid(), signal.SIGINT)  # calls in flight are finished
            self._closed.wait(self._grace_seconds + _END_SECONDS)
        os._exit(1)


class NumberFilter(logging.Filter):
    """Puts the worker's number into every line of the log.

    Parameters
    ----------
    number
        From 0 on.
    """

    def __init__(self, number: int) -> None:
        super().__init__()
        self._number = number

    def filter(self, record: logging.LogRecord) -> bool:
        """Add ``worker`` to ``record``, and let it pass."""
        record.worker = self._number
        return True


def main(arguments: Sequence[str] | None = None) -> int:
    """Serve as a worker; the exit status, as `serving.cli.main` has it."""
    descriptor, number, given = sys.argv[1:] if arguments is None else arguments
    settings = ServerSettings.model_validate_json(given)
    link = SupervisorLink(socket.socket(fileno=int(descriptor)), settings.grace_seconds)
    set_up_logs(settings.log_format, settings.log_level)
    for handler in logging.getLogger().handlers:
        handler.addFilter(NumberFilter(int(number)))
    from serving.cli import serve

    return asyncio.run(serve(settings, link))


if __name__ == "__main__":
    sys.exit(main())
