"""What every RPC has in common: reading the request, a status for every error, a count and a time."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Mapping
from typing import TYPE_CHECKING, Any

import grpc
from google.protobuf.descriptor import ServiceDescriptor
from google.protobuf.message import DecodeError
from google.protobuf.message_factory import GetMessageClass

from serving.errors import DeadlinePassed, InvalidInput, status_of
from serving.metrics import Metrics
from serving.request_ids import METADATA_KEY, id_in_metadata, id_reader, new_id

if TYPE_CHECKING:
    from serving.tracing import Tracing

log = logging.getLogger(__name__)

Handler = Callable[[Any, grpc.aio.ServicerContext], Awaitable[Any]]


class Undecodable:
    """Stands for a request that is not the message it should be, so that it gets a proper status."""

    def __init__(self, size: int) -> None:
        self._size = size

    def ByteSize(self) -> int:
        """Return its size, as a message does."""
        return self._size


def decoded(request: Any, method: str) -> Any:
    """Return ``request`` if it is a message.

    Raises
    ------
    InvalidInput
        If it could not be decoded.
    """
    if isinstance(request, Undecodable):
        raise InvalidInput(f"the request is not the message that {method} takes")
    return request


def service_handler(
    service: ServiceDescriptor, servicer: object, metrics: Metrics, tracing: Tracing | None = None
) -> grpc.GenericRpcHandler:
    """Return what a gRPC server needs to answer ``service``'s RPCs with ``servicer``'s methods.

    Parameters
    ----------
    service
        The service as its ``.proto`` describes it.
    servicer
        Has one coroutine method for every RPC, of the same name; one that streams both ways reads and writes
        by the call's context. Errors become statuses by the table in `serving.errors`.
    metrics
        Where calls are counted, as ``service/method``.
    tracing
        Where they are traced; or ``None``.
    """
    handlers = {}
    for method in service.methods:
        full_name = f"{service.full_name}/{method.name}"
        streams = method.client_streaming and method.server_streaming
        build = grpc.stream_stream_rpc_method_handler if streams else grpc.unary_unary_rpc_method_handler
        read_id = id_reader(None if streams else method.input_type)
        pair = []
        for reads_metadata in (False, True):
            handle = _answering(full_name, getattr(servicer, method.name), metrics, read_id, reads_metadata)
            if tracing is not None:
                handle = tracing.traced(full_name, handle)
            pair.append(
                build(
                    handle,
                    request_deserializer=_reader(GetMessageClass(method.input_type)),
                    response_serializer=GetMessageClass(method.output_type).SerializeToString,
                )
            )
        handlers[f"/{full_name}"] = (pair[0], pair[1])
    return _ServiceHandler(handlers)


class _ServiceHandler(grpc.GenericRpcHandler):
    """Finds a method's handler, of which it has two: the first does not look for an id in the metadata.

    gRPC makes the metadata anew at every look, which costs more than the answer's id is worth; here they are
    at hand.
    """

    def __init__(self, handlers: Mapping[str, tuple[grpc.RpcMethodHandler, grpc.RpcMethodHandler]]) -> None:
        self._handlers = handlers

    def service(self, handler_call_details: grpc.HandlerCallDetails) -> grpc.RpcMethodHandler | None:
        """Return what answers this call, or ``None`` if it is for another service."""
        found = self._handlers.get(handler_call_details.method)
        if found is None:
            return None
        for key, _ in handler_call_details.invocation_metadata or ():
            if key == METADATA_KEY:
                return found[1]
        return found[0]


def deadline_ns(context: grpc.aio.ServicerContext) -> int | None:
    """Return the caller's deadline on `time.perf_counter_ns`'s clock, or ``None`` if there is none.

    Raises
    ------
    DeadlinePassed
        If it has passed already.
    """
    remaining = context.time_remaining()
    if remaining is None:
        return None
    if remaining <= 0:
        raise DeadlinePassed("the deadline had passed when the call arrived")
    return time.perf_counter_ns() + int(remaining * 1e9)


def _reader(message: Any) -> Callable[[bytes], Any]:
    def read(data: bytes) -> Any:
        try:
            return message.FromString(data)
        except DecodeError:
            return Undecodable(len(data))

    return read


def _answering(
    method: str, handler: Handler, metrics: Metrics, read_id: Callable[[Any], str], reads_metadata: bool
) -> Handler:
    answered = metrics.of_method(method).answered

    async def answer(request: Any, context: grpc.aio.ServicerContext) -> Any:
        start = time.perf_counter()
        code, why = "OK", ""
        call_id = read_id(request)
        if reads_metadata and not call_id and (call_id := id_in_metadata(context)):
            context.set_trailing_metadata(((METADATA_KEY, call_id),))
        try:
            return await handler(decoded(request, method), context)
        except asyncio.CancelledError:
            # gRPC cancels the handler when the caller leaves and when the deadline passes.
            remaining = context.time_remaining()
            code = "DEADLINE_EXCEEDED" if remaining is not None and remaining <= 0 else "CANCELLED"
            raise
        except Exception as error:
            call_id = call_id or new_id()
            status = status_of(error, method, call_id)
            code, why = status.code.name, status.message
        finally:
            seconds = time.perf_counter() - start
            answered(code, seconds)
            if log.isEnabledFor(logging.DEBUG):
                call = {"method": method, "code": code, "why": why, "request_id": call_id or new_id()}
                log.debug("call", extra=call | {"seconds": round(seconds, 6)})
        # Only now, so that whoever has the answer finds it counted.
        await context.abort(status.code, status.message, (*status.trailers, (METADATA_KEY, call_id)))

    return answer
