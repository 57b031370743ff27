"""The server: its parts put together, and its life from the first port to the last answer."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

import grpc

from serving.background import in_thread
from serving.bundle import BundleError
from serving.engine import EngineError
from serving.grpc_port import SERVICES, build_grpc_server, build_health_server, listen
from serving.health import HealthService
from serving.http_port import HttpPort
from serving.limits import gpu_options
from serving.loading import BuildEngine, onnx_engine
from serving.metrics import Metrics
from serving.model_control import ModelControl
from serving.port_file import write_ports
from serving.readiness import Readiness
from serving.repository import Repository
from serving.security import Security
from serving.settings import ServerSettings
from serving.shutdown import Shutdown
from serving.start_error import StartError
from serving.watchdog import Watchdog

if TYPE_CHECKING:
    from serving.tracing import Tracing
    from serving.worker import SupervisorLink

log = logging.getLogger(__name__)


class Server:
    """One server process. Create it inside a running event loop, then `run` it.

    Parameters
    ----------
    settings
        How to serve.
    build_engine
        How an engine is made of a bundle; tests pass a fake. Without, ONNX Runtime.
    tracing
        Where spans go; without, as ``settings.tracing`` and the environment say.
    link
        To the supervisor, if this is one of several workers: it has the HTTP port then, and this server
        listens only once it is ready, so that no caller is sent to a worker that still loads.

    Raises
    ------
    StartError
        If the repository is missing or empty, a certificate or the tokens cannot be used, or traces cannot be
        sent.
    """

    def __init__(
        self,
        settings: ServerSettings,
        build_engine: BuildEngine | None = None,
        tracing: Tracing | None = None,
        link: SupervisorLink | None = None,
    ) -> None:
        self._link = link
        self.settings = settings
        self.metrics = Metrics()
        self.grpc_port = 0
        self.metrics_port = 0
        self.health_port: int | None = None
        self.started = asyncio.Event()
        self._tracing = tracing or (_start_tracing() if settings.tracing else None)
        try:
            build = build_engine or partial(onnx_engine, gpu=gpu_options(settings))
            self._repository = Repository(settings, self.metrics, build, self._tracing)
        except BundleError as error:
            raise StartError(str(error)) from error
        self._control = ModelControl(self._repository, settings, self.metrics)
        self._security = Security(settings, self.metrics)
        self._health = HealthService(SERVICES)
        self._readiness = Readiness(self._repository, self._health, self.metrics, link)
        self._repository.changed = self._readiness.show
        self._shutdown = Shutdown(settings.drain_seconds, settings.grace_seconds)
        self._draining = asyncio.Event()

    async def run(self) -> int:
        """Serve until told to stop; the exit status of the process.

        Returns
        -------
        int
            0 after an orderly stop; 1 if a background task died, or calls had to be cut off.

        Raises
        ------
        StartError
            If a port is taken or a model cannot be loaded.
        """
        settings = self.settings
        security = self._security
        grpc_server = build_grpc_server(
            settings,
            self._repository,
            self._control,
            self.metrics,
            self._health,
            self.is_ready,
            self._draining,
            tokens=security.tokens,
            tracing=self._tracing,
        )
        servers = [grpc_server]
        if settings.health_port is not None:
            servers.append(build_health_server(settings, self._health))
        http_port: HttpPort | SupervisorLink
        if self._link is None:
            self._listen(servers)
            http_port = HttpPort(
                settings.host, settings.metrics_port, self.metrics.registry, lambda: self._readiness.why_not
            )
        else:
            http_port = self._link.open(self.metrics, settings.metrics_port)
        self.metrics_port = http_port.port
        watchers = security.watch()
        watchdog = Watchdog(self._repository.batchers, settings.run_timeout_seconds)
        try:
            if self._link is None:
                await self._start(servers)
            if await self._load_and_serve(servers, {http_port.failed, watchdog.failed, *watchers}):
                return 0 if await self._drain(grpc_server) else 1
            return 1
        finally:
            self._readiness.enter("stopped")
            self._health.close()
            watchdog.close()
            for watcher in watchers:
                watcher.cancel()
            for server in servers:
                await server.stop(0)
            http_port.close()
            if self._tracing is not None:
                await asyncio.to_thread(self._tracing.close)

    def stop(self) -> None:
        """See `Shutdown.ask`."""
        self._shutdown.ask()

    def handle_signals(self) -> None:
        """See `Shutdown.handle_signals`."""
        self._shutdown.handle_signals()

    def is_ready(self) -> bool:
        """Whether every model is warm, none fails, and the server is not draining."""
        return not self._readiness.why_not

    def _listen(self, servers: Sequence[grpc.aio.Server]) -> None:
        """Bind the gRPC port to the first server, and that for probes to the second if there is one."""
        settings = self.settings
        self.grpc_port = listen(servers[0], settings.host, settings.grpc_port, self._security.credentials)
        if settings.health_port is not None:
            self.health_port = listen(servers[1], settings.host, settings.health_port, flag="--health-port")

    async def _start(self, servers: Sequence[grpc.aio.Server]) -> None:
        for server in servers:
            await server.start()
        self._report_ports()
        self.started.set()

    def _report_ports(self) -> None:
        ports = {"grpc_port": self.grpc_port, "metrics_port": self.metrics_port}
        if self.health_port is not None:
            ports["health_port"] = self.health_port
        log.info("listening", extra={"host": self.settings.host, **ports, **self._security.describe()})
        if self.settings.port_file is not None:
            write_ports(self.settings.port_file, ports)

    async def _load_and_serve(
        self, servers: Sequence[grpc.aio.Server], watched: set[asyncio.Future[Any]]
    ) -> bool:
        """Load, then serve until told to stop; False if a background task died before that."""
        stop, control = asyncio.create_task(self._shutdown.asked(), name="stop"), None
        try:
            self._readiness.enter("loading models")
            loading = in_thread(self._repository.load)
            waiting: set[asyncio.Future[Any]] = {loading, stop}
            await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
            if not loading.done():
                return True
            try:
                loading.result()
            except (BundleError, EngineError) as error:
                raise StartError(str(error)) from error
            self._repository.start()
            if self._link is not None:
                self._listen(servers)
                await self._start(servers)
            self._readiness.enter("")
            log.info(
                "ready",
                extra={
                    "grpc_port": self.grpc_port,
                    "metrics_port": self.metrics_port,
                    "models": [f"{model.name}/{model.version}" for model in self._repository.models()],
                },
            )
            watched = watched | {self._repository.died}
            if self.settings.model_control != "none":
                control = asyncio.create_task(self._control.watch(), name="watch of models")
                watched.add(control)
            done, _ = await asyncio.wait({stop, *watched}, return_when=asyncio.FIRST_COMPLETED)
            dead = done & watched
            for task in dead:
                task = task.result() if task is self._repository.died else task
                cause = None if task.cancelled() else task.exception()
                extra = {"task": str(task)}
                log.error("a background task died; the server stops", exc_info=cause, extra=extra)
            return not dead
        finally:
            stop.cancel()
            if control is not None:
                control.cancel()

    async def _drain(self, grpc_server: grpc.aio.Server) -> bool:
        """Stop taking calls, finish those in flight; whether all were finished."""
        self._readiness.enter("draining")
        log.info("draining", extra={"drain_seconds": self._shutdown.drain_seconds})
        # Load balancers still send calls until they have seen that we are not ready: answer those.
        await self._shutdown.drain()
        self._health.close()
        finished = await self._shutdown.finish(self._finish(grpc_server))
        log.info("stopped" if finished else "stopped, calls in flight were cut off")
        return finished

    async def _finish(self, grpc_server: grpc.aio.Server) -> None:
        self._draining.set()
        self._control.close()
        # Longer than we wait for this, or gRPC would cut calls off without telling us.
        await grpc_server.stop(self.settings.grace_seconds + 5)
        await self._control.finished()
        await self._repository.close()


def _start_tracing() -> Tracing:
    try:
        from serving.tracing import TraceIds, Tracing
    except ImportError as error:
        raise StartError(
            "--tracing needs OpenTelemetry, which is not installed: pip install 'nvisa[tracing]'"
        ) from error
    for handler in logging.getLogger().handlers:
        handler.addFilter(TraceIds())
    return Tracing.from_environment()
