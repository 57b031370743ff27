"""What came of a run of the model: counted, and given to the calls whose rows were in it."""

from __future__ import annotations

from collections.abc import Callable

from serving.batches import Parts
from serving.call_queue import Call, CallQueue
from serving.engine import EngineError
from serving.errors import InvalidInput
from serving.inference import Batch
from serving.metrics import ModelMetrics


class Outcomes:
    """Gives calls their answers, or the reason why there is none.

    Parameters
    ----------
    queue
        Holds what has not run yet of calls; of those that have failed it is taken out.
    metrics
        Where rows, runs and times are counted.
    ran
        Called after every run with its error, also if no row has finite probabilities, ``None`` if it had
        none; or ``None``.
    """

    def __init__(
        self, queue: CallQueue, metrics: ModelMetrics, ran: Callable[[Exception | None], None] | None
    ) -> None:
        self._queue = queue
        self._metrics = metrics
        self._ran = ran

    def take(self, batch: Batch[Call]) -> None:
        """Count ``batch``, which has been run, and give every call its part."""
        if batch.error is not None:
            self._take_failed(batch, batch.error)
            return
        metrics = self._metrics
        metrics.executions.inc()
        metrics.padding_rows.inc(batch.padding)
        metrics.rows.inc(batch.rows)
        parts = Parts(batch)
        clusters, confidences, _, *novelty = parts.good
        if self._ran is not None:
            none_good = "no row of a run has finite probabilities"
            self._ran(None if len(clusters) else EngineError(none_good))
        metrics.tally.add(clusters, confidences, *novelty)
        for call, start, part in parts:
            if isinstance(part, InvalidInput):
                self._queue.remove(call)
                call.fail(part)
            elif call.add(start, part, batch.started_ns):
                self._settle(call)

    def _take_failed(self, batch: Batch[Call], error: Exception) -> None:
        self._metrics.failed_executions.inc()
        if self._ran is not None:
            self._ran(error)
        for call, _, _ in batch.pieces:
            self._queue.remove(call)
            call.fail(error)

    def _settle(self, call: Call) -> None:
        if call.future.done():  # the caller has gone
            return
        answer = call.answer()
        self._metrics.queue_seconds.observe(answer.queue_ns * 1e-9)
        call.future.set_result(answer)
