"""The dynamic batcher: many calls in, few runs of the model out.

One task owns the queue; the model runs in threads of its own. A batch starts as soon as a thread is free,
so a lone call never waits for company; calls that come while all threads are busy gather meanwhile. Only
batches that are already full are prepared while others run, one for each thread: nothing could join them, and
a thread need not wait for the event loop's turn.

A short run that leaves nobody waiting is made on the event loop itself: the way to a thread and back would
take longer.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections import deque
from collections.abc import Callable

import numpy as np

from serving.admission import Admission
from serving.arrivals import Arrivals
from serving.batches import join
from serving.call_queue import Answer, Call, CallQueue
from serving.deadlines import is_at_deadline
from serving.engine import Engine
from serving.errors import DeadlinePassed, InvalidInput, NotReady, Overloaded
from serving.inference import Batch, InferenceThreads
from serving.limits import BatchLimits
from serving.manifest import InputSpec
from serving.metrics import ModelMetrics
from serving.outcomes import Outcomes
from serving.run_times import RunTimes
from serving.waiting_line import WaitingLine


class Batcher:
    """Batches calls for one engine. Create it inside a running event loop.

    ``task`` owns the queue and never ends by itself: whoever starts a batcher watches it.

    Parameters
    ----------
    engine
        Runs the batches, from ``limits.threads`` threads.
    spec
        What the model takes; rows given to `assign` have been checked against it.
    limits
        Sizes, bounds and delays.
    metrics
        Where rows, runs and times are counted.
    name
        What its task and threads are called.
    ended
        Called with every call that has ended, however it did, in the task that made it; or ``None``.
    ran
        Called after every run with its error, also if no row has finite probabilities, ``None`` if it had
        none; or ``None``.
    """

    def __init__(
        self,
        engine: Engine,
        spec: InputSpec,
        limits: BatchLimits,
        metrics: ModelMetrics,
        name: str = "model",
        ended: Callable[[Call], None] | None = None,
        ran: Callable[[Exception | None], None] | None = None,
    ) -> None:
        self._spec = spec
        self._limits = limits
        self._metrics = metrics
        self._ended = ended
        self._loop = asyncio.get_running_loop()
        self._wake = asyncio.Event()
        self._queue = CallQueue()
        self._outcomes = Outcomes(self._queue, metrics, ran)
        self._line = WaitingLine()
        self._running = 0
        self._runs: set[Batch[Call]] = set()
        self._closed = False
        self._run_times = RunTimes()
        self._admission = Admission(self._queue, self._run_times, limits)
        self._arrivals = Arrivals(self._loop, self._wake.set)
        self._timer: asyncio.TimerHandle | None = None
        self._idle = asyncio.Event()
        self._idle.set()
        self._done: deque[Batch[Call]] = deque()
        self._threads = InferenceThreads(engine, limits.threads, self._hand_back, name)
        metrics.watch_queue(lambda: self._queue.rows, limits.max_queue_rows)
        self.task = self._loop.create_task(self._own_queue(), name=f"batcher of {name}")

    async def assign(
        self, x: np.ndarray, *, deadline_ns: int | None = None, wait_for_room: bool = False
    ) -> Answer:
        """Assign the rows of ``x``, ``(n_rows, *row_shape)``, and wait for the answer.

        Parameters
        ----------
        x
            At least one row.
        deadline_ns
            On `time.perf_counter_ns`'s clock; a call still waiting then is not computed.
        wait_for_room
            Wait while the queue is full, first in, first out, for callers that send no more meanwhile.

        Raises
        ------
        Overloaded
            If the queue is full.
        DeadlinePassed
            If the deadline passed before the model saw all rows.
        InvalidInput
            If there are more rows than may ever wait, or the model has no finite probabilities for one.
        NotReady
            If the batcher is closed.
        Exception
            Whatever the engine raised.
        """
        if len(x) > (most := self._limits.max_queue_rows):
            raise InvalidInput(f"the call has {len(x)} rows, the server takes at most {most}; split it")
        if self._closed:
            raise _closed_error()
        call = Call(x, self._loop.create_future(), deadline_ns, arrived_ns=time.perf_counter_ns())
        if wait_for_room and (self._line or not self._admission.has_room_for_the_line(len(x))):
            self._line.put(call)
        elif wait_for_room or self._admission.has_room(len(x)):
            self._arrive(call)
        else:
            self._metrics.dropped["overload"].inc(len(x))
            raise self._admission.overload(f"this call has {len(x)}")
        try:
            return await call.future
        except asyncio.CancelledError:
            left = self._line.remove(call) or self._queue.remove(call)
            self._metrics.dropped[_why_cancelled(call)].inc(left)
            self._wake.set()
            raise
        finally:
            if self._ended is not None:
                self._ended(call)

    async def close(self) -> None:
        """Refuse new calls, answer those that are in, and stop. Cancelled, it stops at once."""
        self._closed = True
        idle = self._loop.create_task(self._idle.wait())
        try:
            await asyncio.wait({self.task, idle}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            idle.cancel()
            self.task.cancel()
            self._threads.stop()

    def oldest_run_seconds(self) -> float:
        """Return how long the longest of the runs now under way has taken; 0.0 if none is. For any thread."""
        runs = self._runs.copy()
        started = [batch.started_ns for batch in runs if batch.started_ns and not batch.finished_ns]
        return (time.perf_counter_ns() - min(started)) * 1e-9 if started else 0.0

    def overload(self) -> Overloaded | None:
        """Return the refusal of a call that has not been read, if the queue is full for such as wait in it.

        It is counted with as many rows as those have.
        """
        if not self._admission.is_full():
            return None
        self._metrics.dropped["overload"].inc(self._queue.rows // len(self._queue))
        return self._admission.overload("this call was not read")

    def _let_in(self) -> None:
        self._line.let_in(self._admission.has_room_for_the_line, self._enter)

    def _arrive(self, call: Call) -> None:
        """Put ``call`` into the queue and, if it is alone there, start it now, before the owner could."""
        lone = not self._queue and not self._running
        if self._enter(call) and lone:
            self._start()

    def _enter(self, call: Call) -> bool:
        """Put ``call`` into the queue, and return whether a run may start."""
        self._queue.put(call)
        self._idle.clear()
        ready = self._queue.rows >= self._limits.max_batch_rows or not self._arrivals.note()
        if ready:
            self._wake.set()
        return ready

    async def _own_queue(self) -> None:
        try:
            while True:
                await self._wake.wait()
                self._wake.clear()
                while self._done:
                    self._finish(self._done.popleft())
                self._let_in()
                self._start()
        finally:
            # Nobody will answer those that wait: say so, rather than let them hang.
            self._closed = True
            for call in self._queue.clear() + self._line.clear():
                call.fail(_closed_error())

    def _start(self) -> None:
        """Start the runs that may start now, and tell if there is nothing left to do."""
        while self._may_start() and (batch := self._form()) is not None:
            self._running += 1
            self._runs.add(batch)
            if self._is_for_the_loop(batch):
                self._threads.run(batch)
                self._finish(batch)
            else:
                self._threads.submit(batch)
        if not self._queue and not self._running:
            self._idle.set()

    def _may_start(self) -> bool:
        limits = self._limits
        if self._queue.rows >= limits.max_batch_rows:
            return self._running < 2 * limits.threads
        if not self._queue or self._running >= limits.threads or self._arrivals.under_way:
            return False
        if limits.max_queue_delay == 0:
            return True
        waited = (time.perf_counter_ns() - self._queue.oldest().arrived_ns) * 1e-9
        if waited >= limits.max_queue_delay:
            return True
        if self._timer is None:
            self._timer = self._loop.call_later(limits.max_queue_delay - waited, self._timer_rang)
        return False

    def _is_for_the_loop(self, batch: Batch[Call]) -> bool:
        # While more wait, threads are better: they use other processors.
        expected = self._run_times.least(batch.rows + batch.padding)
        return not self._queue and expected <= self._limits.inline_seconds

    def _timer_rang(self) -> None:
        self._timer = None
        self._wake.set()

    def _form(self) -> Batch[Call] | None:
        """Make the next batch; calls that are too late are answered and left out."""
        pieces, expired = self._queue.take(self._limits.max_batch_rows)
        for call, rows in expired:
            self._metrics.dropped["expired"].inc(rows)
            call.fail(DeadlinePassed("the deadline passed while the call waited for the model"))
        self._let_in()
        return join(pieces, self._spec, self._limits.buckets) if pieces else None

    def _hand_back(self, batch: Batch[Call]) -> None:
        """Take a batch that was run, in an inference thread, and wake the owner."""
        self._done.append(batch)
        # The loop may be closed: then the server has given up waiting for this batch.
        with contextlib.suppress(RuntimeError):
            self._loop.call_soon_threadsafe(self._wake.set)

    def _finish(self, batch: Batch[Call]) -> None:
        """Count, and give every call of ``batch`` its part."""
        self._running -= 1
        self._runs.discard(batch)
        seconds = (batch.finished_ns - batch.started_ns) * 1e-9
        self._run_times.add(batch.rows + batch.padding, seconds)
        self._metrics.inference_seconds.observe(seconds)
        if self._ended is not None:
            for call, _, _ in batch.pieces:
                call.runs = call.runs or []
                call.runs.append(batch)
        self._outcomes.take(batch)


def _why_cancelled(call: Call) -> str:
    if call.deadline_ns is None:
        return "cancelled"
    return "expired" if is_at_deadline((call.deadline_ns - time.perf_counter_ns()) * 1e-9) else "cancelled"


def _closed_error() -> NotReady:
    return NotReady("the server is shutting down; try again, on another one if there is one")
