"""What runs the model: threads for most batches, so that the event loop is free meanwhile."""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable, Hashable
from dataclasses import dataclass, field
from typing import Generic, TypeVar

import numpy as np

from serving.engine import Engine, EngineError

Owner = TypeVar("Owner", bound=Hashable)


@dataclass(slots=True, eq=False)
class Batch(Generic[Owner]):
    """Rows on their way through the model, and afterwards what it said of them.

    Attributes
    ----------
    x
        The rows of all pieces in order, then the padding.
    pieces
        Whose rows they are: ``(owner, start, stop)``, as the owner numbers its rows.
    rows, padding
        Number of rows with an owner, and without.
    clusters, confidences, probabilities, novelty
        The answer, ``rows`` long; not there if ``error`` is set. ``novelty`` is ``None`` if the model does
        not say it.
    started_ns, finished_ns
        When the model ran, on `time.perf_counter_ns`'s clock.
    """

    x: np.ndarray
    pieces: list[tuple[Owner, int, int]]
    rows: int
    padding: int
    clusters: np.ndarray = field(init=False)
    confidences: np.ndarray = field(init=False)
    probabilities: np.ndarray = field(init=False)
    novelty: np.ndarray | None = None
    error: Exception | None = None
    started_ns: int = 0
    finished_ns: int = 0


class InferenceThreads(Generic[Owner]):
    """``n`` threads that run batches on one engine, first come, first served.

    Parameters
    ----------
    engine
        Runs the batches.
    n
        Number of threads.
    done
        Called in the thread with every batch that has been run, also when it failed.
    name
        What the threads are called.
    """

    def __init__(self, engine: Engine, n: int, done: Callable[[Batch[Owner]], None], name: str) -> None:
        self._engine = engine
        self._n = n
        self._done = done
        self._batches: queue.SimpleQueue[Batch[Owner] | None] = queue.SimpleQueue()
        for i in range(n):
            # Daemons: a model that hangs must not keep the process from ending.
            threading.Thread(target=self._work, name=f"{name}-{i}", daemon=True).start()

    def submit(self, batch: Batch[Owner]) -> None:
        """Hand over ``batch``; it is run as soon as a thread is free."""
        self._batches.put(batch)

    def run(self, batch: Batch[Owner]) -> None:
        """Run ``batch`` in the calling thread; ``done`` is not called."""
        batch.started_ns = time.perf_counter_ns()
        try:
            self._answer(batch)
        except Exception as error:
            batch.error = error
        batch.finished_ns = time.perf_counter_ns()

    def stop(self) -> None:
        """Let the threads end after what was submitted; does not wait for them."""
        for _ in range(self._n):
            self._batches.put(None)

    def _work(self) -> None:
        while (batch := self._batches.get()) is not None:
            self.run(batch)
            self._done(batch)

    def _answer(self, batch: Batch[Owner]) -> None:
        answer = self._engine.assign(batch.x)
        if len(answer.clusters) != len(batch.x) or len(answer.probabilities) != len(batch.x):
            raise EngineError(f"{len(answer.clusters)} answers for {len(batch.x)} rows")
        if answer.clusters.min() < 0:  # too large a number would not go unnoticed below
            raise EngineError(f"the model answers with cluster {answer.clusters.min()}")
        if answer.novelty is not None:
            if len(answer.novelty) != len(batch.x):
                raise EngineError(f"{len(answer.novelty)} values of novelty for {len(batch.x)} rows")
            batch.novelty = answer.novelty[: batch.rows]
        batch.probabilities = answer.probabilities[: batch.rows]
        batch.clusters = answer.clusters[: batch.rows]
        batch.confidences = answer.confidences[: batch.rows]
