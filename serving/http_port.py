"""The HTTP port: ``/metrics`` for Prometheus, ``/healthz`` and ``/readyz`` for probes."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from prometheus_client import CollectorRegistry
from prometheus_client.exposition import choose_encoder

from serving.start_error import StartError

# An event loop that has not taken a turn for so long is stuck, and the process of no use.
STUCK_AFTER_SECONDS = 5.0


class HttpPort:
    """Serves the three paths from a thread, so that a stuck event loop can be told from a live one.

    Parameters
    ----------
    host, port
        Where to listen; port 0 takes any free one, `port` then says which.
    registry
        What ``/metrics`` shows.
    why_not_ready
        Why the server takes no requests; empty if it does. ``/readyz`` answers with it.
    why_not_alive
        What of the server beside this event loop is stuck; empty if nothing is. ``/healthz`` answers with it.

    Raises
    ------
    StartError
        If the port cannot be had.
    """

    def __init__(
        self,
        host: str,
        port: int,
        registry: CollectorRegistry,
        why_not_ready: Callable[[], str],
        why_not_alive: Callable[[], str] = lambda: "",
    ) -> None:
        self._loop = asyncio.get_running_loop()
        self.failed: asyncio.Future[None] = self._loop.create_future()
        self._why_not_alive = why_not_alive
        handler = partial(_Handler, registry, why_not_ready, self._why_stuck)
        try:
            self._server = _Server((host, port), handler)
        except OSError as error:
            raise StartError(
                f"cannot listen on {host}:{port} (HTTP): {error.strerror or error}; "
                "pass another --metrics-port or --host"
            ) from error
        self.port = int(self._server.server_address[1])
        self._thread = threading.Thread(target=self._serve, name="http port", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Stop listening."""
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    def _serve(self) -> None:
        try:
            self._server.serve_forever(poll_interval=0.1)
        except Exception as error:
            self._loop.call_soon_threadsafe(self.failed.set_exception, error)

    def _why_stuck(self) -> str:
        turned = threading.Event()
        self._loop.call_soon_threadsafe(turned.set)
        return self._why_not_alive() if turned.wait(STUCK_AFTER_SECONDS) else "the event loop is stuck"


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    # A slow scrape must not keep the process from ending.
    block_on_close = False
    request_queue_size = 64


class _Handler(BaseHTTPRequestHandler):
    timeout = 10
    server_version = "nvisa"
    sys_version = ""

    def __init__(
        self,
        registry: CollectorRegistry,
        why_not_ready: Callable[[], str],
        why_not_alive: Callable[[], str],
        *connection: object,
    ) -> None:
        self._registry = registry
        self._why_not_ready = why_not_ready
        self._why_not_alive = why_not_alive
        super().__init__(*connection)  # type: ignore[arg-type]

    def do_GET(self) -> None:
        path = self.path.partition("?")[0]
        if path == "/metrics":
            encode, content_type = choose_encoder(self.headers.get("Accept", ""))
            self._reply(200, encode(self._registry), content_type)
        elif path == "/healthz":
            reason = self._why_not_alive()
            self._reply(503 if reason else 200, f"{reason or 'alive'}\n".encode())
        elif path == "/readyz":
            reason = self._why_not_ready()
            self._reply(503 if reason else 200, f"{reason or 'ready'}\n".encode())
        else:
            self._reply(404, b"there are /metrics, /healthz and /readyz\n")

    def log_message(self, format: str, *args: object) -> None:
        """Keep quiet: probes come every few seconds."""

    def _reply(self, code: int, body: bytes, content_type: str = "text/plain; charset=utf-8") -> None:
        self.send_response(code)
        self.send_header("Content-Type", content_type)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)
