"""The queue of calls that wait for the model: bounded by rows, first come, first served."""

from __future__ import annotations

import asyncio
import time
from collections import OrderedDict
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np

from serving.inference import Batch


class Answer(NamedTuple):
    """The answer to one call.

    Attributes
    ----------
    clusters
        int64 ``(n_rows,)``.
    confidences
        float32 ``(n_rows,)``, the probability of the assigned cluster.
    probabilities
        float32 ``(n_rows, n_clusters)``.
    novelty
        float32 ``(n_rows,)``, or ``None`` if the model does not say it.
    queue_ns, inference_ns
        Nanoseconds until the first row was handed to the model, and from then to the last row's result.
    """

    clusters: np.ndarray
    confidences: np.ndarray
    probabilities: np.ndarray
    novelty: np.ndarray | None
    queue_ns: int
    inference_ns: int


Part = tuple[np.ndarray, ...]
"""The answer to some rows: clusters, confidences, probabilities, and novelty if the model says it."""


@dataclass(slots=True, eq=False)
class Call:
    """One caller's rows, and what has become of them.

    Attributes
    ----------
    x
        The rows, ``(n_rows, *row_shape)``.
    future
        What the caller waits for.
    deadline_ns, arrived_ns
        On `time.perf_counter_ns`'s clock.
    taken
        Rows that were handed to the model.
    parts
        The answers that came back, by first row.
    answered
        Rows in ``parts``.
    started_ns
        When the model began with the first of them.
    runs
        The runs of the model that its rows were in; kept only if someone asks what became of calls.
    """

    x: np.ndarray
    future: asyncio.Future[Answer]
    deadline_ns: int | None
    arrived_ns: int
    taken: int = 0
    parts: dict[int, Part] = field(default_factory=dict)
    answered: int = 0
    started_ns: int = 0
    runs: list[Batch[Any]] | None = None

    def fail(self, error: Exception) -> None:
        """Tell the caller, if it is still there, that there will be no answer."""
        if not self.future.done():
            self.future.set_exception(error)

    def add(self, start: int, part: Part, started_ns: int) -> bool:
        """Add the answer to the rows from ``start``; whether it was the last."""
        self.parts[start] = part
        self.answered += len(part[0])
        self.started_ns = min(self.started_ns or started_ns, started_ns)
        return self.answered == len(self.x)

    def answer(self) -> Answer:
        """Put the parts together, in the order of the rows: runs may end in another than they began."""
        if len(self.parts) == 1:
            arrays = self.parts[0]
        else:
            parts = [self.parts[start] for start in sorted(self.parts)]
            arrays = tuple(np.concatenate(same) for same in zip(*parts, strict=True))
        clusters, confidences, probabilities, *rest = arrays
        queue_ns = self.started_ns - self.arrived_ns
        inference_ns = time.perf_counter_ns() - self.started_ns
        novelty = rest[0] if rest else None
        return Answer(clusters, confidences, probabilities, novelty, queue_ns, inference_ns)


Piece = tuple[Call, int, int]
"""Rows ``start`` to ``stop`` of a call."""


class CallQueue:
    """Calls in the order of their arrival.

    Attributes
    ----------
    rows
        Rows that wait.
    """

    def __init__(self) -> None:
        # A dictionary, so that a caller that leaves is taken out at once, wherever it stands.
        self._calls: OrderedDict[int, Call] = OrderedDict()
        self.rows = 0

    def __len__(self) -> int:
        return len(self._calls)

    def put(self, call: Call) -> None:
        """Add ``call`` at the end."""
        self._calls[id(call)] = call
        self.rows += len(call.x)

    def oldest(self) -> Call:
        """Return the call that has waited longest.

        Raises
        ------
        StopIteration
            If none waits.
        """
        return next(iter(self._calls.values()))

    def take(self, limit: int) -> tuple[list[Piece], list[tuple[Call, int]]]:
        """Take at most ``limit`` rows off the front, and all calls found there that are too late.

        A call that fits into one batch is never cut, so that alone in it, it needs no copy; a longer one is
        taken ``limit`` rows at a time.

        Returns
        -------
        pieces
            What to run next; empty if nothing waits.
        expired
            Calls whose deadline has passed, each with the number of its rows that still waited.
        """
        now = time.perf_counter_ns()
        pieces: list[Piece] = []
        expired: list[tuple[Call, int]] = []
        room = limit
        while self._calls and room:
            call = self.oldest()
            if call.deadline_ns is not None and call.deadline_ns <= now:
                expired.append((call, self.remove(call)))
                continue
            size = min(len(call.x) - call.taken, limit)
            if size > room:
                break
            pieces.append((call, call.taken, call.taken + size))
            call.taken += size
            room -= size
            self.rows -= size
            if call.taken == len(call.x):
                del self._calls[id(call)]
        return pieces, expired

    def remove(self, call: Call) -> int:
        """Take ``call`` out if it is in, and return how many of its rows still waited."""
        if self._calls.pop(id(call), None) is None:
            return 0
        rows = len(call.x) - call.taken
        self.rows -= rows
        return rows

    def clear(self) -> list[Call]:
        """Take all calls out and return them."""
        calls = list(self._calls.values())
        self._calls.clear()
        self.rows = 0
        return calls
