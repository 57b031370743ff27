"""What all workers counted, living and dead, when Prometheus asks the supervisor."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Iterator, Mapping

from prometheus_client import CollectorRegistry
from prometheus_client.core import Metric
from prometheus_client.registry import Collector

from serving.http_port import STUCK_AFTER_SECONDS
from serving.merged_metrics import Snapshot, merged, to_metrics
from serving.worker_process import WorkerProcess

# A worker that is too busy to answer is shown as it was at the last scrape. Prometheus waits for 10 seconds.
SCRAPE_SECONDS = 5.0
# Says more of the supervisor than any worker knows.
_SUPERVISORS = "nvisa_ready"


class WorkerMetrics(Collector):
    """Asks the workers, and merges what they say with what the supervisor itself shows.

    No total ever falls: what a worker had counted when it was last heard of stays when it dies. One that ends
    by itself sends its last counts; of one that is killed, what it counted after the last scrape is lost.
    Counts of a model that every worker has unloaded stay if a dead worker had some.

    Create it inside the running event loop that has the workers; `collect` and `why_stuck` are for other
    threads.

    Parameters
    ----------
    workers
        Those that live now.
    own
        The supervisor's metrics.
    """

    def __init__(self, workers: Mapping[int, WorkerProcess], own: CollectorRegistry) -> None:
        self._workers = workers
        self._own = own
        self._dead = Snapshot()
        self._loop = asyncio.get_running_loop()

    def retire(self, worker: WorkerProcess) -> None:
        """Keep what ``worker``, which is no longer among the living, had counted."""
        self._dead = merged([self._dead, worker.metrics.counted()])

    def describe(self) -> Iterable[Metric]:
        """Return nothing: what there is depends on the workers."""
        return []

    def collect(self) -> Iterator[Metric]:
        """Yield the metrics of all workers as those of one server."""
        return to_metrics(asyncio.run_coroutine_threadsafe(self._collect(), self._loop).result())

    def why_stuck(self) -> str:
        """Return which worker's event loop is stuck; empty if none is."""
        return asyncio.run_coroutine_threadsafe(self._why_stuck(), self._loop).result()

    async def _collect(self) -> Snapshot:
        await self._ask("metrics", SCRAPE_SECONDS)
        # From here on without a pause: a worker is either among the living or among the dead.
        own = Snapshot.of(self._own)
        whole = merged([self._dead, own, *(worker.metrics for worker in self._workers.values())])
        whole.families[_SUPERVISORS] = own.families[_SUPERVISORS]
        return whole

    async def _why_stuck(self) -> str:
        answers = await self._ask("alive", STUCK_AFTER_SECONDS)
        stuck = [str(number) for number, answered in answers.items() if not answered]
        return f"the event loop of worker {', '.join(stuck)} is stuck" if stuck else ""

    async def _ask(self, what: str, seconds: float) -> dict[int, bool]:
        asked = {number: worker.ask(what, seconds) for number, worker in self._workers.items()}
        return dict(zip(asked, await asyncio.gather(*asked.values()), strict=True))
