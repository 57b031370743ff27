"""A shadow: a version that is asked what the stable one has answered, so that the two can be compared."""

from __future__ import annotations

import asyncio
import logging

import numpy as np

from serving.call_queue import Answer
from serving.drift import SlidingCounts
from serving.errors import Overloaded
from serving.matching import matched_rows
from serving.models import Assigns, ReadyModel
from serving.version_metrics import ShadowMetrics

log = logging.getLogger(__name__)

# With more pairs of clusters than this (256 by 256) they are compared by their ids alone: pairs are added up
# after every run, and matched at every scrape.
MOST_PAIRS = 1 << 16


class Agreement:
    """How well two clusterings of the recent rows agree once their clusters are matched.

    Parameters
    ----------
    n_stable, n_shadow
        Numbers of clusters.
    window_rows
        Over about so many of the last rows.
    """

    def __init__(self, n_stable: int, n_shadow: int, window_rows: int) -> None:
        self._shape = n_stable, n_shadow
        self._pairs: SlidingCounts | None = None
        if n_stable * n_shadow <= MOST_PAIRS:
            self._pairs = SlidingCounts(n_stable * n_shadow, window_rows)

    def add(self, stable: np.ndarray, shadow: np.ndarray) -> None:
        """Count ``(n_rows,)`` clusters of the same rows."""
        if self._pairs is not None:
            n_stable, n_shadow = self._shape
            self._pairs.add(np.bincount(stable * n_shadow + shadow, minlength=n_stable * n_shadow))

    def disagreement(self) -> float:
        """Return the share of the recent rows that no renumbering makes agree.

        NaN before the first row, and where there are too many clusters to match.
        """
        counts = self._pairs.counts() if self._pairs is not None else np.zeros(1, np.int64)
        rows = int(counts.sum())
        return 1 - matched_rows(counts.reshape(self._shape)) / rows if rows else float("nan")


class Shadow:
    """Asks the shadow version, one run at a time, and compares. Create it in a running event loop.

    It never delays or fails a call: rows come here when they are answered, and are dropped while it is busy.

    Parameters
    ----------
    stable, shadow
        The two versions.
    metrics
        Where rows are counted.
    window_rows
        Clusters are matched over about so many of the last rows.
    most_rows
        Rows that may wait; a call with more is taken only while none do.
    """

    def __init__(
        self, stable: ReadyModel, shadow: ReadyModel, metrics: ShadowMetrics, window_rows: int, most_rows: int
    ) -> None:
        self.stable = stable
        self.shadow = shadow
        self._metrics = metrics
        self._agreement = Agreement(stable.manifest.n_clusters, shadow.manifest.n_clusters, window_rows)
        self._most_rows = most_rows
        self._waiting: list[tuple[np.ndarray, np.ndarray]] = []
        self._waiting_rows = 0
        self._failed_before = False
        self._wake = asyncio.Event()
        self._task = asyncio.get_running_loop().create_task(self._compare(), name="shadow")
        metrics.show_disagreement(self._agreement.disagreement)

    def offer(self, x: np.ndarray, clusters: np.ndarray) -> None:
        """Take the rows of an answered call, ``(n_rows, *row_shape)`` and ``(n_rows,)``, if there is room."""
        rows = len(x)
        if self._waiting_rows and self._waiting_rows + rows > self._most_rows:
            self._metrics.busy.inc(rows)
            return
        self._waiting.append((x, clusters))
        self._waiting_rows += rows
        self._wake.set()

    def close(self) -> None:
        """Compare no more."""
        self._task.cancel()
        self._metrics.forget()

    async def _compare(self) -> None:
        while True:
            await self._wake.wait()
            self._wake.clear()
            if not self._waiting:
                continue
            taken, self._waiting = self._waiting, []
            x = np.concatenate([rows for rows, _ in taken]) if len(taken) > 1 else taken[0][0]
            expected = np.concatenate([clusters for _, clusters in taken])
            del taken
            try:
                answer = await self.shadow.batcher.assign(x)
                self._count(expected, answer.clusters)
            except Overloaded:
                self._metrics.busy.inc(len(expected))
            except Exception as error:  # whatever it is, it is the candidate's, and no caller's
                self._metrics.failed.inc(len(expected))
                if not self._failed_before:
                    log.warning("the shadow version fails", extra={"why": f"{type(error).__name__}: {error}"})
                self._failed_before = True
            # Only now: what is being compared counts as waiting, so that little is kept of a busy shadow.
            self._waiting_rows -= len(expected)

    def _count(self, expected: np.ndarray, found: np.ndarray) -> None:
        self._agreement.add(expected, found)
        self._metrics.rows.inc(len(expected))
        self._metrics.disagreeing.inc(int(np.count_nonzero(expected != found)))


class Shadowed:
    """The stable version's batcher, with a shadow that hears of every call that was answered."""

    def __init__(self, batcher: Assigns, shadow: Shadow) -> None:
        self._batcher = batcher
        self._shadow = shadow

    async def assign(
        self, x: np.ndarray, *, deadline_ns: int | None = None, wait_for_room: bool = False
    ) -> Answer:
        """Assign rows as `Batcher.assign` does."""
        answer = await self._batcher.assign(x, deadline_ns=deadline_ns, wait_for_room=wait_for_room)
        self._shadow.offer(x, answer.clusters)
        return answer
