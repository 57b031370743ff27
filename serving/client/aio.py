"""The asyncio client."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterable, AsyncIterator, Iterable, Iterator
from contextlib import contextmanager
from types import TracebackType
from typing import TYPE_CHECKING, Self

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

from serving.client.channel import (
    COMPRESSIONS,
    DEFAULT_TIMEOUT,
    MAX_MESSAGE_BYTES,
    Compression,
    channel_options,
)
from serving.client.messages import (
    READINESS_SERVICE,
    AssignResult,
    Health,
    ModelInfo,
    Version,
    assign_request,
    assign_result,
    is_small,
    model_info,
    model_request,
    new_request_id,
    slices,
)
from serving.client.rows import as_rows
from serving.client.security import PLAINTEXT, Security, TokenSource
from serving.client.status import ClusterServiceError
from serving.client.streaming import AsyncRequests, Stream
from serving.pb.nvisa.v1 import cluster_pb2 as pb
from serving.pb.nvisa.v1 import cluster_pb2_grpc as rpc

if TYPE_CHECKING:
    from serving.client.rows import Rows

_CALLS_IN_FLIGHT = 4
_CLOCK = 0.01  # seconds by which gRPC's clock may be ahead


class AsyncClusterClient:
    """`serving.client.ClusterClient` for asyncio: the same methods, awaited.

    Make it inside a running event loop, and use it in that loop only.

    Parameters
    ----------
    target, security, max_message_bytes, compression
        See `ClusterClient`.

    Examples
    --------
    >>> async with AsyncClusterClient("localhost:8001") as client:  # doctest: +SKIP
    ...     result = await client.assign(x, model="digits")
    """

    def __init__(
        self,
        target: str,
        *,
        security: Security = PLAINTEXT,
        max_message_bytes: int = MAX_MESSAGE_BYTES,
        compression: Compression = "none",
    ) -> None:
        self.target = target
        self._max_message_bytes = max_message_bytes
        options = channel_options(max_message_bytes) + security.channel_options(target)
        credentials = security.credentials()
        self._security = security
        self._token = TokenSource(security)
        if credentials is None:
            self._channel = grpc.aio.insecure_channel(target, options, compression=COMPRESSIONS[compression])
        else:
            self._channel = grpc.aio.secure_channel(
                target, credentials, options, compression=COMPRESSIONS[compression]
            )
        self._clusters = rpc.ClusterServiceStub(self._channel)
        self._health = health_pb2_grpc.HealthStub(self._channel)

    async def assign(
        self,
        x: Rows,
        *,
        model: str,
        version: Version = None,
        probabilities: bool = False,
        novelty: bool = False,
        request_id: str | None = None,
        timeout: float = DEFAULT_TIMEOUT,
    ) -> AssignResult:
        """Assign rows to clusters; see `ClusterClient.assign`."""
        rows, columns = as_rows(x)
        request_id = new_request_id() if request_id is None else request_id
        parts = [slice(None)]
        if not is_small(rows, columns):
            info = await self._model(model_request(model, version, request_id), timeout)
            parts, version = slices(rows, columns, info, self._max_message_bytes), info.version
        in_flight = asyncio.Semaphore(_CALLS_IN_FLIGHT)

        async def assign_part(part: slice) -> pb.AssignResponse:
            async with in_flight:
                request = assign_request(
                    rows[part], columns, model, version, probabilities, novelty, request_id
                )
                with self._errors():
                    return await self._clusters.Assign(
                        request, timeout=timeout, metadata=self._token.metadata()
                    )

        try:
            async with asyncio.TaskGroup() as group:  # the first failure cancels the rest
                tasks = [group.create_task(assign_part(part)) for part in parts]
        except ExceptionGroup as failures:
            raise failures.exceptions[0] from None
        return assign_result([task.result() for task in tasks])

    async def assign_stream(
        self,
        batches: Iterable[Rows] | AsyncIterable[Rows],
        *,
        model: str,
        version: Version = None,
        probabilities: bool = False,
        novelty: bool = False,
        timeout: float | None = None,
    ) -> AsyncIterator[AssignResult | ClusterServiceError]:
        """Assign batch after batch over one call; see `ClusterClient.assign_stream`."""
        loop = asyncio.get_running_loop()
        end = None if timeout is None else loop.time() + timeout

        def message(x: Rows) -> pb.AssignRequest:
            return assign_request(*as_rows(x), model, version, probabilities, novelty)

        stream = Stream(message, self.target)
        requests = AsyncRequests(stream, batches)
        try:
            while True:
                left = None if end is None else end - loop.time()
                metadata = (*self._token.metadata(), *stream.metadata)
                call = self._clusters.AssignStream(requests(), timeout=left, metadata=metadata)
                try:
                    async for reply in call:
                        for answer in stream.answered(reply):
                            yield answer
                except grpc.RpcError:
                    pass  # not always with the code that the call ended with, which the call has
                finally:
                    call.cancel()
                if requests.failure is not None:
                    raise requests.failure
                code, details = await call.code(), await call.details()
                if stream.is_done(code):
                    return
                if end is not None and loop.time() >= end - _CLOCK:
                    code = grpc.StatusCode.DEADLINE_EXCEEDED  # gRPC may say INTERNAL, if it was just sending
                await asyncio.sleep(stream.pause(code, details))
        finally:
            requests.close()

    async def models(self, *, timeout: float = DEFAULT_TIMEOUT) -> list[ModelInfo]:
        """Every model and version that the server has; see `ClusterClient.models`."""
        with self._errors():
            reply = await self._clusters.ListModels(
                pb.ListModelsRequest(), timeout=timeout, metadata=self._token.metadata()
            )
        return [model_info(model, reply.limits) for model in reply.models]

    async def model(
        self, name: str, *, version: Version = None, timeout: float = DEFAULT_TIMEOUT
    ) -> ModelInfo:
        """One model; see `ClusterClient.model`."""
        return await self._model(model_request(name, version), timeout)

    async def health(self, *, timeout: float = 5.0) -> Health:
        """Ask the server for its health; see `ClusterClient.health`."""
        alive = await self._serving("", timeout)
        return Health(alive=alive, ready=await self._serving(READINESS_SERVICE, timeout))

    async def close(self) -> None:
        """Close the channel; calls in flight are cancelled."""
        await self._channel.close(None)

    async def __aenter__(self) -> Self:
        """Return the client itself."""
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close the channel."""
        await self.close()

    async def _model(self, request: pb.GetModelRequest, timeout: float) -> ModelInfo:
        with self._errors():
            reply = await self._clusters.GetModel(request, timeout=timeout, metadata=self._token.metadata())
        return model_info(reply.model, reply.limits)

    async def _serving(self, service: str, timeout: float) -> bool:
        with self._errors():
            request = health_pb2.HealthCheckRequest(service=service)
            reply = await self._health.Check(request, timeout=timeout, metadata=self._token.metadata())
        return bool(reply.status == health_pb2.HealthCheckResponse.SERVING)

    @contextmanager
    def _errors(self) -> Iterator[None]:
        try:
            yield
        except grpc.RpcError as error:
            raise ClusterServiceError.of(error, self.target, self._security) from error
