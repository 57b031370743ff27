"""What the clients remember of a stream, so that a broken one goes on where it was: no transport here."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterable, AsyncIterator, Callable, Iterable, Iterator
from typing import TYPE_CHECKING

import grpc

from serving.client.messages import AssignResult, assign_result, new_request_id
from serving.client.status import ClusterServiceError
from serving.pb.nvisa.v1 import cluster_pb2 as pb

if TYPE_CHECKING:
    from serving.client.rows import Rows

REQUEST_ID = "x-request-id"
MOST_ATTEMPTS = 5
# CANCELLED: see `serving.client.channel`.
_MAY_PASS = {grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.CANCELLED}
_CODES = {code.value[0]: code for code in grpc.StatusCode}


class Stream:
    """Batches that are sent and not answered, and answers that wait for their turn.

    Parameters
    ----------
    make
        Makes the message of a batch.
    target
        The server's address, for errors.

    Attributes
    ----------
    metadata
        What to send with every call of the stream.
    """

    def __init__(self, make: Callable[[Rows], pb.AssignRequest], target: str) -> None:
        self._make = make
        self._target = target
        self._unanswered: dict[int, pb.AssignStreamRequest] = {}
        self._answers: dict[int, AssignResult | ClusterServiceError] = {}
        self._id = new_request_id()
        # By which every call of the stream gets the same of the server's default version and its canary.
        self.metadata = ((REQUEST_ID, self._id),)
        self._taken = 0
        self._given = 0
        self._attempts = 0

    def message(self, x: Rows) -> pb.AssignStreamRequest:
        """Number a batch, remember its message until it is answered, and return it."""
        request = pb.AssignStreamRequest(request=self._make(x))
        request.request.request_id = f"{self._id}-{self._taken}"
        self._unanswered[self._taken] = request
        self._taken += 1
        return request

    def unanswered(self) -> list[pb.AssignStreamRequest]:
        """Messages to begin another call with, in order."""
        return [self._unanswered[number] for number in sorted(self._unanswered)]

    def answered(self, reply: pb.AssignStreamResponse) -> Iterator[AssignResult | ClusterServiceError]:
        """Take an answer in, and give those whose turn has come, in the order of the batches."""
        self._attempts = 0
        number = int(reply.request_id.rpartition("-")[2])
        if self._unanswered.pop(number, None) is None:
            return
        if reply.HasField("response"):
            self._answers[number] = assign_result([reply.response])
        else:
            code = _CODES.get(reply.error.code, grpc.StatusCode.UNKNOWN)
            self._answers[number] = ClusterServiceError(
                code, reply.error.message, self._target, reply.request_id
            )
        while self._given in self._answers:
            yield self._answers.pop(self._given)
            self._given += 1

    def is_done(self, code: grpc.StatusCode) -> bool:
        """Whether a call that ended with ``code`` leaves nothing to ask for."""
        return code is grpc.StatusCode.OK and not self._unanswered

    def pause(self, code: grpc.StatusCode, details: str | None) -> float:
        """Seconds to wait before another call goes on where one that ended with ``code`` was.

        Raises
        ------
        ClusterServiceError
            If it ended for a reason that another call would not mend, or without an answer too often.
        """
        self._attempts += 1
        if code not in _MAY_PASS or self._attempts == MOST_ATTEMPTS:
            raise ClusterServiceError(
                code, details or f"{len(self._unanswered)} batches unanswered", self._target
            )
        return float(min(0.1 * 2**self._attempts, 2.0))


class Requests:
    """The requests of a stream's calls, one call after the other, from one iterator of batches.

    gRPC draws them in a thread of its own, which may still be waiting for a batch when its call has ended.
    """

    def __init__(self, stream: Stream, batches: Iterator[Rows]) -> None:
        self._stream = stream
        self._batches = batches
        self._lock = threading.Lock()
        self._call = 0
        self.failure: Exception | None = None

    def __call__(self) -> Iterator[pb.AssignStreamRequest]:
        """Requests for another call: what is unanswered, then what comes."""
        with self._lock:  # a batch that is being waited for is for this call
            self._call += 1
            call, again = self._call, self._stream.unanswered()
        return self._requests(call, again)

    def _requests(self, call: int, again: list[pb.AssignStreamRequest]) -> Iterator[pb.AssignStreamRequest]:
        yield from again
        while True:
            with self._lock:
                if call != self._call or self.failure is not None:
                    return
                try:
                    request = self._stream.message(next(self._batches))
                except StopIteration:
                    return
                except Exception as error:  # gRPC would say that there was one, and not which
                    self.failure = error
                    return
            yield request


class AsyncRequests:
    """`Requests` for asyncio, of batches that come from either kind of iterator."""

    def __init__(self, stream: Stream, batches: Iterable[Rows] | AsyncIterable[Rows]) -> None:
        self._stream = stream
        self._batches = _drawn(batches)
        self._drawing: asyncio.Task[Rows | None] | None = None
        self._call = 0
        self.failure: Exception | None = None

    def __call__(self) -> AsyncIterator[pb.AssignStreamRequest]:
        """Requests for another call: what is unanswered, then what comes."""
        self._call += 1
        return self._requests(self._call, self._stream.unanswered())

    async def _requests(
        self, call: int, again: list[pb.AssignStreamRequest]
    ) -> AsyncIterator[pb.AssignStreamRequest]:
        for request in again:
            yield request
        while self.failure is None:
            # Not cancelled with the call: whoever was waited for is the next call's first.
            self._drawing = self._drawing or asyncio.ensure_future(anext(self._batches, None))
            try:
                x = await asyncio.shield(self._drawing)
                # gRPC does not stop drawing for a call that has ended by itself.
                if call != self._call:
                    return
                if x is None:
                    return
                message = self._stream.message(x)
            except Exception as error:  # gRPC would say that there was one, and not which
                self.failure = error
                return
            self._drawing = None
            yield message

    def close(self) -> None:
        """Stop waiting for a batch."""
        if self._drawing is not None:
            self._drawing.cancel()


async def _drawn(batches: Iterable[Rows] | AsyncIterable[Rows]) -> AsyncIterator[Rows]:
    if isinstance(batches, AsyncIterable):
        async for x in batches:
            yield x
        return
    for x in batches:
        yield x
