"""Just enough of HTTP/2 to call slowly: gRPC's own clients send what they have at once."""

from __future__ import annotations

import socket
import struct
from collections.abc import Callable

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
DATA, HEADERS, SETTINGS = 0, 1, 4
END_STREAM, END_HEADERS, ACK = 1, 4, 1
ASSIGN = "/nvisa.v1.ClusterService/Assign"


def connect(target: str, timeout: float) -> socket.socket:
    """Return a connection to ``target`` without a word said."""
    host, port = target.split(":")
    return socket.create_connection((host, int(port)), timeout)


def frame(kind: int, flags: int, stream: int, payload: bytes) -> bytes:
    """Return one frame."""
    return struct.pack(">I", len(payload))[1:] + struct.pack(">BBI", kind, flags, stream) + payload


def opening(path: str = ASSIGN) -> bytes:
    """Return what begins a connection and a call, as stream 1."""
    headers = {
        ":method": "POST",
        ":scheme": "http",
        ":path": path,
        ":authority": "test",
        "content-type": "application/grpc",
        "te": "trailers",
    }
    block = b"".join(
        b"\0" + bytes([len(name)]) + name.encode() + bytes([len(value)]) + value.encode()
        for name, value in headers.items()
    )
    return PREFACE + frame(SETTINGS, 0, 0, b"") + frame(HEADERS, END_HEADERS, 1, block)


def message(data: bytes, end: bool = True) -> list[bytes]:
    """Return the frames of one gRPC message, each with at most 1,000 bytes."""
    whole = b"\0" + struct.pack(">I", len(data)) + data
    parts = [whole[first : first + 1000] for first in range(0, len(whole), 1000)]
    return [
        frame(DATA, END_STREAM if end and n == len(parts) - 1 else 0, 1, part) for n, part in enumerate(parts)
    ]


def read_message(connection: socket.socket) -> bytes:
    """Return the first gRPC message of the answer on stream 1; whatever else comes is acknowledged or left."""
    read = _reader(connection)
    body = b""
    while len(body) < 5 or len(body) < 5 + struct.unpack(">I", body[1:5])[0]:
        head = read(9)
        payload = read(struct.unpack(">I", b"\0" + head[:3])[0])
        if head[3] == DATA:
            body += payload
        elif head[3] == SETTINGS and not head[4] & ACK:
            connection.sendall(frame(SETTINGS, ACK, 0, b""))
    return body[5:]


def _reader(connection: socket.socket) -> Callable[[int], bytes]:
    def read(n: int) -> bytes:
        data = b""
        while len(data) < n:
            part = connection.recv(n - len(data))
            assert part, "the server closed the connection"
            data += part
        return data

    return read
