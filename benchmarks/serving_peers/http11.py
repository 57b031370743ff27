"""The least of an HTTP/1.1 client: POST bytes over kept connections, read the reply."""

from __future__ import annotations

import asyncio
from contextlib import suppress


class HttpError(ConnectionError):
    """The server spoke no HTTP/1.1 that this client knows, or hung up."""


class Connections:
    """Connections to one server, made as calls need them and kept.

    Parameters
    ----------
    host, port
        Where it listens.
    path
        What is posted to.
    """

    def __init__(self, host: str, port: int, path: str) -> None:
        self._host, self._port = host, port
        self._head = (
            f"POST {path} HTTP/1.1\r\nHost: {host}:{port}\r\nContent-Type: application/octet-stream\r\n"
            "Accept: application/octet-stream\r\nContent-Length: "
        ).encode()
        self._free: list[tuple[asyncio.StreamReader, asyncio.StreamWriter]] = []

    async def post(self, body: bytes) -> tuple[int, bytes]:
        """Status and body of the reply.

        Raises
        ------
        HttpError
            If the reply is cut short or not HTTP/1.1.
        OSError
            If there is no connection.
        """
        if self._free:
            reader, writer = self._free.pop()
        else:
            reader, writer = await asyncio.open_connection(self._host, self._port, limit=2**20)
        try:
            writer.write(self._head + b"%d\r\n\r\n" % len(body))
            writer.write(body)
            status, reply, keep = await _read(reader)
        except BaseException:
            writer.transport.abort()
            raise
        if keep:
            self._free.append((reader, writer))
        else:
            writer.close()
        return status, reply

    async def close(self) -> None:
        """Close all that are not in use."""
        for _, writer in self._free:
            writer.close()
        for _, writer in self._free:
            with suppress(OSError):
                await writer.wait_closed()
        self._free.clear()


async def _read(reader: asyncio.StreamReader) -> tuple[int, bytes, bool]:
    try:
        head = (await reader.readuntil(b"\r\n\r\n")).lower().split(b"\r\n")
        status = int(head[0].split(b" ", 2)[1])
        fields = dict(line.split(b":", 1) for line in head[1:] if line)
        if b"content-length" in fields:
            body = await reader.readexactly(int(fields[b"content-length"]))
        elif b"chunked" in fields.get(b"transfer-encoding", b""):
            body = await _chunks(reader)
        else:
            raise HttpError(f"neither a length nor chunks: {head}")
    except (asyncio.IncompleteReadError, ValueError, IndexError) as error:
        raise HttpError(f"no whole reply: {error}") from error
    return status, body, b"close" not in fields.get(b"connection", b"")


async def _chunks(reader: asyncio.StreamReader) -> bytes:
    parts = []
    while size := int((await reader.readuntil(b"\r\n")).split(b";")[0], 16):
        parts.append(await reader.readexactly(size))
        await reader.readexactly(2)
    while await reader.readuntil(b"\r\n") != b"\r\n":  # trailers
        pass
    return b"".join(parts)
