"""``nvisa-serve --workers N``: keeps N workers alive that share the gRPC port, and has the one HTTP port.

It loads no model and needs neither ONNX Runtime nor gRPC, so there is little in it that could fail.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import signal
import time
from typing import Any

from prometheus_client import CollectorRegistry, Counter, Gauge
from prometheus_client.platform_collector import PlatformCollector
from prometheus_client.process_collector import ProcessCollector

from serving.http_port import HttpPort
from serving.port_file import write_ports
from serving.reserved_port import ReservedPort
from serving.settings import ServerSettings
from serving.start_error import StartError
from serving.worker_metrics import WorkerMetrics
from serving.worker_process import WorkerProcess

log = logging.getLogger(__name__)

# Pauses before a dead worker is started again: doubled every time, and forgotten after a life of a minute.
FIRST_PAUSE_SECONDS = 0.1
LONGEST_PAUSE_SECONDS = 30.0
LONG_LIFE_SECONDS = 60.0
# So many workers in a row that end before they are ready, while none is ready, are no accident.
MOST_FAILED_STARTS = 5
# Beyond a worker's own drain and grace; then it is killed.
END_SECONDS = 10.0


class Supervisor:
    """Starts the workers, starts them again, and stops them. Create it inside a running event loop.

    The server is ready once all workers are, and from then on while at least one is: a worker listens only
    once it is ready, so callers never meet one that is being started again.

    Parameters
    ----------
    settings
        Of the whole server, with ``workers`` above 1.
    """

    def __init__(self, settings: ServerSettings) -> None:
        self.settings = settings
        self._workers: dict[int, WorkerProcess] = {}
        self._stop = asyncio.Event()
        self._stop_signal = signal.SIGTERM
        self._some_were_ready = self._all_were_ready = False
        self._failed_starts = 0
        registry = CollectorRegistry()
        ProcessCollector(registry=registry)
        PlatformCollector(registry=registry)
        self._restarts = Counter(
            "nvisa_worker_restarts", "Workers that died and were started again", registry=registry
        )
        Gauge("nvisa_workers", "Workers that there should be", registry=registry).set(settings.workers)
        ready = Gauge("nvisa_workers_ready", "Workers that take requests", registry=registry)
        ready.set_function(lambda: len(self._ready_workers()))
        server_ready = Gauge("nvisa_ready", "1 while the server takes requests", registry=registry)
        server_ready.set_function(lambda: not self.why_not_ready())
        self._metrics = WorkerMetrics(self._workers, registry)

    async def run(self) -> int:
        """Serve until told to stop; the exit status of the process.

        Returns
        -------
        int
            0 after an orderly stop; 1 if calls had to be cut off.

        Raises
        ------
        StartError
            If a port is taken, or the workers cannot start.
        """
        settings = self.settings
        if settings.device == "auto":
            log.warning("device=auto: with --workers, models run on the CPU")
        with contextlib.ExitStack() as held:
            ports = {"grpc_port": _reserve(held, settings.host, settings.grpc_port, "--grpc-port")}
            if settings.health_port is not None:
                ports["health_port"] = _reserve(held, settings.host, settings.health_port, "--health-port")
            registry = CollectorRegistry()
            registry.register(self._metrics)
            http_port = HttpPort(
                settings.host, settings.metrics_port, registry, self.why_not_ready, self._metrics.why_stuck
            )
            held.callback(http_port.close)
            ports["metrics_port"] = http_port.port
            log.info("listening", extra={"host": settings.host, **ports, "workers": settings.workers})
            if settings.port_file is not None:
                write_ports(settings.port_file, ports)
            each = worker_settings(settings, ports)
            keepers = {asyncio.create_task(self._keep(n, each)) for n in range(settings.workers)}
            try:
                return await self._supervise(keepers, http_port.failed)
            finally:
                for keeper in keepers:
                    keeper.cancel()
                await asyncio.gather(*keepers, return_exceptions=True)

    def handle_signals(self) -> None:
        """Hand signals on. SIGTERM stops gracefully, SIGINT at once; another one hurries it."""
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._interrupted, number)

    def why_not_ready(self) -> str:
        """Why no calls are taken; empty if they are. For any thread."""
        if self._stop.is_set():
            return "draining"
        if self._all_were_ready and self._ready_workers():
            return ""
        for worker in list(self._workers.values()):
            if worker.why_not_ready:
                return f"worker {worker.number}: {worker.why_not_ready}"
        return "starting workers"

    def _ready_workers(self) -> list[WorkerProcess]:
        return [worker for worker in list(self._workers.values()) if not worker.why_not_ready]

    def _changed(self) -> None:
        """Take notice of what workers say of themselves."""
        ready = len(self._ready_workers())
        if ready:
            self._some_were_ready = True
            self._failed_starts = 0
        if ready == self.settings.workers and not self._all_were_ready:
            self._all_were_ready = True
            log.info("ready", extra={"workers": ready})

    def _interrupted(self, number: signal.Signals) -> None:
        self._stop_signal = number
        self._stop.set()
        for worker in self._workers.values():
            worker.send_signal(number)

    async def _supervise(self, keepers: set[asyncio.Task[int]], http_failed: asyncio.Future[None]) -> int:
        settings = self.settings
        stop = asyncio.create_task(self._stop.wait(), name="stop")
        try:
            first: set[asyncio.Future[Any]] = {stop, http_failed, *keepers}
            done, _ = await asyncio.wait(first, return_when=asyncio.FIRST_COMPLETED)
            for ended in done - {stop}:
                ended.result()  # raises, unless the server is to stop
            log.info("draining", extra={"drain_seconds": settings.drain_seconds})
            most = settings.drain_seconds + settings.grace_seconds + END_SECONDS
            _, hanging = await asyncio.wait(keepers, timeout=most)
            orderly = not hanging and not any(keeper.result() for keeper in keepers)
            log.info("stopped" if orderly else "stopped, calls in flight were cut off")
            return 0 if orderly else 1
        finally:
            stop.cancel()

    async def _keep(self, number: int, settings: ServerSettings) -> int:
        """Keep one worker alive until the server is to stop; then its exit status. Kill it if cancelled.

        Raises
        ------
        StartError
            If workers cannot start, and none is ready.
        """
        pause = FIRST_PAUSE_SECONDS
        while True:
            started = time.monotonic()
            worker = await WorkerProcess.start(number, settings, self._changed)
            self._workers[number] = worker
            if self._stop.is_set():
                worker.send_signal(self._stop_signal)
            try:
                status = await worker.ended()
            finally:
                worker.kill()
                self._metrics.retire(self._workers.pop(number))
            if self._stop.is_set():
                return status if worker.was_ready else 0
            if why := self._why_give_up(worker, status):
                raise StartError(why)
            extra = {"pid": worker.pid, "status": _named(status), "why": worker.cannot_start}
            log.error("a worker died; it is started again", extra={"worker": number, **extra})
            if time.monotonic() - started > LONG_LIFE_SECONDS:
                pause = FIRST_PAUSE_SECONDS
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._stop.wait(), pause)
                return 0
            pause = min(2 * pause, LONGEST_PAUSE_SECONDS)
            self._restarts.inc()

    def _why_give_up(self, worker: WorkerProcess, status: int) -> str:
        """Return why it is of no use to start a worker again after this one; empty if it may be."""
        if worker.was_ready:
            return ""
        self._failed_starts += 1
        if self._ready_workers():
            return ""
        if worker.cannot_start and not self._some_were_ready:
            return worker.cannot_start
        if self._failed_starts < MOST_FAILED_STARTS:
            return ""
        return worker.cannot_start or (
            f"{self._failed_starts} workers in a row ended before they were ready, the last one with status "
            f"{_named(status)}; the log above may say why"
        )


def worker_settings(settings: ServerSettings, ports: dict[str, int]) -> ServerSettings:
    """Return each worker's settings: with the ports that were found, and its share of the drift window."""
    own = {"config": None, "port_file": None, "device": "cpu"}
    window = max(100, settings.drift_window_rows // settings.workers)
    return settings.model_copy(update={**own, **ports, "drift_window_rows": window})


def _reserve(held: contextlib.ExitStack, host: str, port: int, flag: str) -> int:
    reserved = ReservedPort(host, port, flag)
    held.callback(reserved.close)
    return reserved.port


def _named(status: int) -> int | str:
    return status if status >= 0 else signal.Signals(-status).name
