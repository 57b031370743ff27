"""One call of ``AssignStream``: read, answer each message on its own, and never hold more than a few."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import grpc

from serving.errors import NotReady, status_of
from serving.pb.nvisa.v1 import cluster_pb2 as pb
from serving.rpc import Undecodable, decoded

METHOD = "nvisa.v1.ClusterService/AssignStream"
# Enough for one stream to keep a model busy with single rows; more callers fill its batches better.
MOST_MESSAGES = 64

_EOF = grpc.aio.EOF  # type: ignore[attr-defined]  # the stubs lack it
_NAMES = {code.value[0]: code.name for code in grpc.StatusCode}  # 0, that of no error, is OK

Assign = Callable[[pb.AssignRequest], Awaitable[pb.AssignResponse]]


class Window:
    """What a stream has read and not answered, bounded in messages and bytes.

    Parameters
    ----------
    most_messages, most_bytes
        The bounds. One message is let in whatever its size.
    """

    def __init__(self, most_messages: int, most_bytes: int) -> None:
        self._most_messages = most_messages
        self._most_bytes = most_bytes
        self._messages = self._bytes = 0
        self._changed = asyncio.Event()

    async def has_room(self) -> None:
        """Wait until another message may be read."""
        while self._messages >= self._most_messages or self._bytes >= self._most_bytes:
            self._changed.clear()
            await self._changed.wait()

    def add(self, size: int) -> None:
        """Count a message of ``size`` bytes in."""
        self._messages += 1
        self._bytes += size

    def remove(self, size: int) -> None:
        """Count it out: it is answered."""
        self._messages -= 1
        self._bytes -= size
        self._changed.set()


async def answer_stream(
    context: grpc.aio.ServicerContext,
    assign: Assign,
    *,
    most_bytes: int,
    draining: asyncio.Event,
    count: Callable[[str], None],
) -> None:
    """Answer the messages of one call until the caller ends it or the server drains.

    Parameters
    ----------
    context
        The call.
    assign
        Answers one message, or raises.
    most_bytes
        Bytes of unanswered messages above which no other is read, so that HTTP/2 holds the caller back.
    draining
        Set when no more messages are to be read.
    count
        Hears the status of every message.

    Raises
    ------
    NotReady
        When the server drains; everything read has then been answered.
    """
    window, writing = Window(MOST_MESSAGES, most_bytes), asyncio.Lock()

    async def answer(index: int, request: pb.AssignStreamRequest | Undecodable) -> None:
        reply = await _reply(index, request, assign)
        async with writing:
            await context.write(reply)
        window.remove(request.ByteSize())
        count(_NAMES[reply.error.code])

    index = 0
    stopping = asyncio.create_task(draining.wait())
    try:
        async with asyncio.TaskGroup() as answers:
            while (request := await _next(context, window, stopping)) is not _EOF:
                if request is None:
                    break
                window.add(request.ByteSize())
                answers.create_task(answer(index, request))
                index += 1
    finally:
        stopping.cancel()
    if request is None:
        raise NotReady(
            f"the server is draining; it has read and answered {index} messages of this stream: send the "
            "others again, to another server if there is one"
        )


async def _reply(
    index: int, request: pb.AssignStreamRequest | Undecodable, assign: Assign
) -> pb.AssignStreamResponse:
    request_id = ""
    try:
        message = decoded(request, METHOD).request
        request_id = message.request_id
        return pb.AssignStreamResponse(index=index, request_id=request_id, response=await assign(message))
    except Exception as error:
        status = status_of(error, METHOD, request_id)
        why = pb.StreamError(code=status.code.value[0], message=status.message)
        return pb.AssignStreamResponse(index=index, request_id=request_id, error=why)


async def _next(context: grpc.aio.ServicerContext, window: Window, stopping: asyncio.Task[Any]) -> Any:
    """Read a message when there is room for it: ``EOF`` after the last, ``None`` if ``stopping`` is done."""
    reading = asyncio.create_task(_read(context, window))
    try:
        await asyncio.wait({reading, stopping}, return_when=asyncio.FIRST_COMPLETED)
        return reading.result() if reading.done() else None
    finally:
        reading.cancel()


async def _read(context: grpc.aio.ServicerContext, window: Window) -> Any:
    await window.has_room()
    return await context.read()
