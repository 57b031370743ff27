"""What every RPC has in common: reading the request, a status for every error, a count and a time."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple

import grpc
from google.protobuf.descriptor import ServiceDescriptor
from google.protobuf.message import DecodeError
from google.protobuf.message_factory import GetMessageClass

from serving.deadlines import is_at_deadline
from serving.errors import DeadlinePassed, InvalidInput, Overloaded, status_of
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


class Shed(NamedTuple):
    """How calls are refused before they are read.

    Attributes
    ----------
    methods
        Names of the methods that may be refused.
    overload
        Returns the refusal of the next call, if it is to be refused.
    """

    methods: tuple[str, ...]
    overload: Callable[[], Overloaded | None]


def service_handler(
    service: ServiceDescriptor,
    servicer: object,
    metrics: Metrics,
    tracing: Tracing | None = None,
    shed: Shed | None = None,
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
    shed
        Which are refused unread; or ``None``.
    """
    handlers = {}
    for method in service.methods:
        full_name = f"{service.full_name}/{method.name}"
        streams = method.client_streaming and method.server_streaming
        build = partial(
            grpc.stream_stream_rpc_method_handler if streams else grpc.unary_unary_rpc_method_handler,
            request_deserializer=_reader(GetMessageClass(method.input_type)),
            response_serializer=GetMessageClass(method.output_type).SerializeToString,
        )
        read_id = id_reader(None if streams else method.input_type)
        answering = partial(_answering, full_name, metrics, tracing)
        handler = getattr(servicer, method.name)
        handlers[f"/{full_name}"] = _Method(
            plain=build(answering(handler, read_id, reads_metadata=False)),
            with_id=build(answering(handler, read_id, reads_metadata=True)),
            refusing=partial(_refusing, answering),
            overload=shed.overload if shed is not None and method.name in shed.methods else None,
        )
    return _ServiceHandler(handlers)


@dataclass(frozen=True)
class _Method:
    """What answers one method: as it is, if the metadata have an id, and if the call is refused."""

    plain: grpc.RpcMethodHandler
    with_id: grpc.RpcMethodHandler
    refusing: Callable[[Overloaded], grpc.RpcMethodHandler]
    overload: Callable[[], Overloaded | None] | None


class _ServiceHandler(grpc.GenericRpcHandler):
    """Finds what answers a call, before its message has come in.

    The plain handler of a method does not look for an id in the metadata: gRPC makes them anew at every look,
    and here they are at hand.
    """

    def __init__(self, methods: Mapping[str, _Method]) -> None:
        self._methods = methods

    def service(self, handler_call_details: grpc.HandlerCallDetails) -> grpc.RpcMethodHandler | None:
        """Return what answers this call, or ``None`` if it is for another service."""
        method = self._methods.get(handler_call_details.method)
        if method is None:
            return None
        if method.overload is not None and (error := method.overload()) is not None:
            return method.refusing(error)
        for key, _ in handler_call_details.invocation_metadata or ():
            if key == METADATA_KEY:
                return method.with_id
        return method.plain


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


def _refusing(answering: Callable[..., Handler], error: Overloaded) -> grpc.RpcMethodHandler:
    async def refuse(requests: Any, context: grpc.aio.ServicerContext) -> None:
        raise error

    # A handler of streams, whatever the method is: it is called before the message has come in.
    return grpc.stream_stream_rpc_method_handler(answering(refuse, id_reader(None), reads_metadata=True))


def _answering(
    method: str,
    metrics: Metrics,
    tracing: Tracing | None,
    handler: Handler,
    read_id: Callable[[Any], str],
    *,
    reads_metadata: bool,
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
            code = "DEADLINE_EXCEEDED" if is_at_deadline(context.time_remaining()) else "CANCELLED"
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

    return answer if tracing is None else tracing.traced(method, answer)
