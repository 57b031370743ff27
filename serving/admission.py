"""Who may wait for the model: as many rows, and for as long, as the limits allow."""

from __future__ import annotations

from serving.call_queue import CallQueue
from serving.errors import Overloaded
from serving.limits import BatchLimits
from serving.run_times import RunTimes

# Twice the calls that our client has in flight for one array.
_FEW_CALLS = 8


class Admission:
    """Says whether a queue has room for a call.

    An empty queue has room for any call: nobody would be served if it had not. While less waits than a full
    batch for each thread, or but a few calls, no wait is too long: a slow model would run half empty, and one
    caller that sends a large array in parts would be refused for its own sake.

    Parameters
    ----------
    queue
        What waits.
    run_times
        By which the wait is foreseen: the queue's rows in full batches, ``limits.threads`` at once. Before
        there was a full batch, there is no wait to speak of.
    limits
        The bounds.
    """

    def __init__(self, queue: CallQueue, run_times: RunTimes, limits: BatchLimits) -> None:
        self._queue = queue
        self._run_times = run_times
        self._limits = limits

    def wait_seconds(self) -> float:
        """Return how long a call that came now would wait for the model."""
        rows = self._limits.max_batch_rows
        full_batch = self._run_times.mean(rows)
        if full_batch == float("inf"):
            return 0.0
        return self._queue.rows * full_batch / rows / self._limits.threads

    def has_room(self, rows: int) -> bool:
        """Whether a call of ``rows`` may wait."""
        return self._within(rows, 1.0)

    def has_room_for_the_line(self, rows: int) -> bool:
        """Whether one may that would also wait for room: an eighth stays free for those that cannot."""
        return self._within(rows, 7 / 8)

    def is_full(self) -> bool:
        """Whether there is no room for a call like those that wait, nor for a 64th of the most rows."""
        calls = len(self._queue)
        if not calls:
            return False
        usual = min(self._queue.rows // calls, self._limits.max_queue_rows // 64)
        return not self.has_room(max(1, usual))

    def overload(self, what: str) -> Overloaded:
        """Return the refusal of ``what``, which a caller reads."""
        waiting, limits, seconds = self._queue.rows, self._limits, self.wait_seconds()
        bound = f"{waiting} rows wait of at most {limits.max_queue_rows}"
        if limits.max_queue_seconds and seconds > limits.max_queue_seconds:
            most = f"{limits.max_queue_seconds:g} s"
            bound = f"the {waiting} rows in it take {seconds:.2g} s, and a call may wait {most}"
        return Overloaded(f"the queue is full: {bound}; {what}", retry_after=min(max(seconds, 0.01), 5.0))

    def _within(self, rows: int, share: float) -> bool:
        waiting, limits = self._queue.rows, self._limits
        if not waiting:
            return True
        if waiting + rows > limits.max_queue_rows * share:
            return False
        most = limits.max_queue_seconds
        if not most or waiting < limits.max_batch_rows * limits.threads or len(self._queue) < _FEW_CALLS:
            return True
        return self.wait_seconds() <= most * share
