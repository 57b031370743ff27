"""A mixed load: calls of 1 to 4,096 rows, and streams of such messages."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import AsyncIterator

import numpy as np

from serving.pb.nvisa.v1 import cluster_pb2 as pb
from serving_peers.callers import GrpcCaller
from serving_peers.record import Record
from serving_peers.wires import Question

_CALLERS = 6
_STREAMS = 2
_STREAM_MESSAGES = 40
_UNANSWERED = 8


def sizes(n: int, most: int, seed: int = 0) -> list[int]:
    """``n`` numbers of rows up to ``most``: as many from 1 to 2 as from 2 to 4, and so on."""
    return [int(size) for size in np.exp2(np.random.default_rng(seed).uniform(0, np.log2(most), n))]


async def mixed_load(
    call: GrpcCaller, record: Record, asked: list[Question], until: float, timeout: float
) -> None:
    """Callers of both kinds until ``until``, in seconds of `time.monotonic`."""

    async def single(seed: int) -> None:
        rng = random.Random(seed)
        while (since := time.monotonic()) < until:
            question = rng.choice(asked)
            record.add(question, since, *await call.call(question.message, timeout))

    async def streams(seed: int) -> None:
        rng = random.Random(seed)
        while time.monotonic() < until:
            await _stream(call, record, [rng.choice(asked) for _ in range(_STREAM_MESSAGES)])

    await asyncio.gather(*map(single, range(_CALLERS)), *map(streams, range(_STREAMS)))


async def _stream(call: GrpcCaller, record: Record, asked: list[Question]) -> None:
    room, since = asyncio.Semaphore(_UNANSWERED), []

    async def messages() -> AsyncIterator[bytes]:
        for question in asked:
            await room.acquire()
            since.append(time.monotonic())
            request = pb.AssignRequest.FromString(question.message)
            yield pb.AssignStreamRequest(request=request).SerializeToString()

    method = call.channels[0].stream_stream("/nvisa.v1.ClusterService/AssignStream")
    answered = 0
    async for reply in method(messages()):
        message = pb.AssignStreamResponse.FromString(reply)
        failed = message.WhichOneof("result") == "error"
        body = message.error.message.encode() if failed else message.response.SerializeToString()
        index = message.index
        record.add(asked[index], since[index], f"stream {message.error.code}" if failed else "OK", body)
        answered += 1
        room.release()
    if answered != len(asked):
        record.codes["stream cut short"] += 1
