"""``grpc.health.v1``: ``""`` says that the process is alive, a service's name that it takes requests.

Written here rather than taken from grpcio-health-checking because that one calls everything SERVING as
soon as it is built, and its open Watch streams hold up a graceful stop until the grace period is over.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterable

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

SERVICE_NAME = "grpc.health.v1.Health"
_Status = health_pb2.HealthCheckResponse


class HealthService(health_pb2_grpc.HealthServicer):
    """Answers Check and Watch.

    Parameters
    ----------
    services
        Full names of the services that become ready together; NOT_SERVING until `set_ready`.
    """

    def __init__(self, services: Iterable[str]) -> None:
        self._statuses = {"": _Status.SERVING} | dict.fromkeys(services, _Status.NOT_SERVING)
        self._changed = asyncio.Event()
        self._closed = False

    def set_ready(self, ready: bool) -> None:
        """Set all services to SERVING or NOT_SERVING, and tell those who watch."""
        status = _Status.SERVING if ready else _Status.NOT_SERVING
        self._statuses |= dict.fromkeys((name for name in self._statuses if name), status)
        self._tell()

    def close(self) -> None:
        """End every Watch stream."""
        self._closed = True
        self._tell()

    def _tell(self) -> None:
        self._changed.set()
        self._changed = asyncio.Event()

    async def Check(
        self, request: health_pb2.HealthCheckRequest, context: grpc.aio.ServicerContext
    ) -> health_pb2.HealthCheckResponse:
        """Answer with the service's status; NOT_FOUND for a service that is not here."""
        status = self._statuses.get(request.service)
        if status is None:
            await context.abort(grpc.StatusCode.NOT_FOUND, f"no service {request.service!r}")
        return _Status(status=status)

    async def Watch(
        self, request: health_pb2.HealthCheckRequest, context: grpc.aio.ServicerContext
    ) -> AsyncIterator[health_pb2.HealthCheckResponse]:
        """Answer now and at every change; SERVICE_UNKNOWN for a service that is not here."""
        last = None
        while not self._closed:
            changed = self._changed
            status = self._statuses.get(request.service, _Status.SERVICE_UNKNOWN)
            if status != last:
                last = status
                yield _Status(status=status)
            await changed.wait()


def add_to_server(service: HealthService, server: grpc.aio.Server) -> None:
    """Register ``service`` with ``server``."""
    health_pb2_grpc.add_HealthServicer_to_server(service, server)
