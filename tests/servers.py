"""Servers for tests: in this process with any engine, or the real thing as a process of its own."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np

from serving.bundle import Bundle
from serving.engine import Assignments, FakeEngine
from serving.loading import BuildEngine, onnx_engine
from serving.server import Server
from serving.settings import ServerSettings

ROOT = Path(__file__).resolve().parents[1]
TIMEOUT = 60.0


class GatedEngine(FakeEngine):
    """A fake engine that waits for ``gate`` before every answer, and says when it is inside."""

    def __init__(self, n_clusters: int = 10, *, is_open: bool = False, novelty: bool = False) -> None:
        super().__init__(n_clusters, novelty=novelty)
        self.gate = threading.Event()
        self.entered = threading.Semaphore(0)
        if is_open:
            self.gate.set()

    def assign(self, x: np.ndarray) -> Assignments:
        self.entered.release()
        assert self.gate.wait(TIMEOUT)
        return super().assign(x)


def fake_engine(bundle: Bundle, device: str, intra_op_threads: int) -> FakeEngine:
    return FakeEngine(bundle.manifest.n_clusters, novelty=bundle.manifest.novelty is not None)


@asynccontextmanager
async def in_process(
    repository: Path, build_engine: BuildEngine = onnx_engine, *, wait_ready: bool = True, **settings: Any
) -> AsyncIterator[Server]:
    """A server in this event loop, on ports of its own; stopped gracefully at the end."""
    values = {"grpc_port": 0, "metrics_port": 0, "drain_seconds": 0.0, "device": "cpu"} | settings
    if build_engine is not onnx_engine:
        values = {"inline_seconds": 0.0} | values  # an engine that waits must not hold up the event loop
    server = Server(ServerSettings(model_repository=repository, **values), build_engine)
    running = asyncio.ensure_future(server.run())
    try:
        while not running.done() and not (server.is_ready() if wait_ready else server.started.is_set()):
            await asyncio.sleep(0.001)
        if running.done():
            running.result()
        yield server
    finally:
        server.stop()
        await running


class ServerProcess:
    """``nvisa-serve`` as a process of its own.

    Parameters
    ----------
    repository
        Its models.
    folder
        Where its log and the file with its ports go.
    flags
        Of the command line.
    wait_ready
        Wait until it is ready, not only until it listens.
    python
        What Python runs.
    env
        More of its environment.
    log
        Another file for its log.

    Attributes
    ----------
    grpc_target, health_target, http
        Where it listens, known once it does.
    """

    def __init__(
        self,
        repository: Path,
        folder: Path,
        *flags: str,
        wait_ready: bool = True,
        python: Sequence[str] = ("-m", "serving.cli"),
        env: Mapping[str, str] | None = None,
        log: Path | None = None,
    ) -> None:
        self._port_file = folder / "ports.json"
        self._log_file = log or folder / "log.jsonl"
        self._wait_ready = wait_ready
        self._env = environment() | dict(env or {})
        self._command = (
            *(
                sys.executable,
                *python,
                "--model-repository",
                str(repository),
                "--grpc-port",
                "0",
                "--metrics-port",
                "0",
            ),
            *("--port-file", str(self._port_file), "--device", "cpu", "--drain-seconds", "0", *flags),
        )

    def __enter__(self) -> Self:
        with self._log_file.open("wb") as log:
            self.process = subprocess.Popen(self._command, cwd=ROOT, stderr=log, env=self._env)
        self._wait_for(self._port_file.exists)
        ports = json.loads(self._port_file.read_text())
        self.grpc_target = f"127.0.0.1:{ports['grpc_port']}"
        self.health_target = f"127.0.0.1:{ports.get('health_port', 0)}"
        self.http = f"http://127.0.0.1:{ports['metrics_port']}"
        if self._wait_ready:
            self._wait_for(lambda: self.get("/readyz")[0] == 200)
        return self

    def __exit__(self, kind: type[BaseException] | None, _: object, traceback: TracebackType | None) -> None:
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()

    def get(self, path: str) -> tuple[int, str]:
        """Status and body of ``path`` on the HTTP port."""
        return get(self.http + path)

    def terminate(self) -> None:
        """Send SIGTERM."""
        self.process.send_signal(signal.SIGTERM)

    def wait(self) -> int:
        """Wait for the end; the exit status."""
        return self.process.wait(TIMEOUT)

    def workers(self) -> list[int]:
        """Process ids of its workers, in no order."""
        pid = self.process.pid
        return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]

    def log(self) -> list[dict[str, Any]]:
        """Everything it has logged."""
        return [json.loads(line) for line in self.log_text().splitlines()]

    def log_text(self) -> str:
        """The same as it is: gRPC itself writes of calls that are cut off, and no JSON."""
        return self._log_file.read_text()

    def _wait_for(self, condition: Any) -> None:
        end = time.monotonic() + TIMEOUT
        while not condition():
            assert self.process.poll() is None, self._log_file.read_text()
            assert time.monotonic() < end, self._log_file.read_text()
            time.sleep(0.005)


def command(*flags: str) -> list[str]:
    """The command line of a server."""
    return [sys.executable, "-m", "serving.cli", *flags]


def environment() -> dict[str, str]:
    """This process's environment, less the settings of a server."""
    return {key: value for key, value in os.environ.items() if not key.startswith("NVISA_SERVE_")}


def run_to_end(flags: Sequence[str], env: dict[str, str] | None = None) -> subprocess.CompletedProcess[str]:
    """Run a server that is expected to end by itself."""
    return subprocess.run(
        command(*flags),
        cwd=ROOT,
        env=environment() | (env or {}),
        capture_output=True,
        text=True,
        timeout=TIMEOUT,
        check=False,
    )


def get(url: str) -> tuple[int, str]:
    """Status and body of ``url``; the server's refusals are answers, too."""
    try:
        with urllib.request.urlopen(url, timeout=TIMEOUT) as reply:
            return reply.status, reply.read().decode()
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.read().decode()
