"""One call, over gRPC or HTTP: its status and the reply's bytes."""

from __future__ import annotations

import itertools
from typing import Protocol

import grpc

from serving_peers.http11 import Connections
from serving_peers.wires import WIRES

_OPTIONS = [
    ("grpc.max_send_message_length", -1),
    ("grpc.max_receive_message_length", -1),
    # Channels to one address would otherwise share a connection.
    ("grpc.use_local_subchannel_pool", 1),
    ("grpc.enable_retries", 0),
]


class Caller(Protocol):
    """Calls one server."""

    async def call(self, message: bytes, timeout: float) -> tuple[str, bytes]:
        """Status, ``"OK"`` or what was wrong, and the reply; ``timeout`` in seconds."""
        ...

    async def close(self) -> None:
        """Close all connections."""
        ...


class GrpcCaller:
    """gRPC over one or several connections in turn; messages stay bytes."""

    def __init__(self, target: str, path: str, connections: int = 1) -> None:
        self.channels = [grpc.aio.insecure_channel(target, _OPTIONS) for _ in range(connections)]
        self._calls = itertools.cycle([channel.unary_unary(path) for channel in self.channels])

    async def call(self, message: bytes, timeout: float) -> tuple[str, bytes]:
        """See `Caller.call`."""
        try:
            return "OK", await next(self._calls)(message, timeout=timeout)
        except grpc.aio.AioRpcError as error:
            return error.code().name, (error.details() or "").encode()

    async def close(self) -> None:
        """See `Caller.close`."""
        for channel in self.channels:
            await channel.close()


class HttpCaller:
    """HTTP/1.1, as many connections as there are calls in flight. Without a timeout of its own."""

    def __init__(self, target: str, path: str) -> None:
        host, port = target.rsplit(":", 1)
        self._connections = Connections(host, int(port), path)

    async def call(self, message: bytes, timeout: float) -> tuple[str, bytes]:
        """See `Caller.call`."""
        try:
            status, reply = await self._connections.post(message)
        except OSError as error:
            return type(error).__name__, str(error).encode()
        return ("OK" if status == 200 else f"HTTP {status}"), reply

    async def close(self) -> None:
        """See `Caller.close`."""
        await self._connections.close()


def caller(wire: str, target: str, connections: int = 1) -> Caller:
    """The caller of ``wire``, a name in `serving_peers.wires.WIRES`, at ``target``, a host and a port."""
    path = WIRES[wire].path
    return HttpCaller(target, path) if wire == "http" else GrpcCaller(target, path, connections)
