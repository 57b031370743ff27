"""The life of a model's version: what runs for it is started, watched and freed."""

from __future__ import annotations

import asyncio
import logging
import weakref
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import TYPE_CHECKING

from serving.background import in_thread
from serving.batcher import Batcher
from serving.failing import FailureWatch
from serving.limits import batch_limits
from serving.loading import Loaded, warm_up
from serving.memory import give_back
from serving.metrics import Metrics
from serving.models import STATES, Catalogue, Model, ModelState
from serving.settings import ServerSettings

if TYPE_CHECKING:
    from serving.tracing import Tracing

log = logging.getLogger(__name__)


class VersionLifecycle:
    """Takes versions from loaded to freed.

    Parameters
    ----------
    catalogue
        Where they are put, and taken out.
    settings, metrics
        The server's.
    tracing
        What is told of calls that have ended; or ``None``.
    refresh
        Called with the names of models of which other versions answer now.
    task_ended
        Called with a version whose batcher has ended, or that hangs or is given up, and the task that
        shows it.
    """

    def __init__(
        self,
        catalogue: Catalogue,
        settings: ServerSettings,
        metrics: Metrics,
        tracing: Tracing | None,
        refresh: Callable[[Iterable[str]], None],
        task_ended: Callable[[Model, asyncio.Task[None]], None],
    ) -> None:
        self._catalogue = catalogue
        self._settings = settings
        self._metrics = metrics
        self._tracing = tracing
        self._refresh = refresh
        self._task_ended = task_ended

    def put(self, model: Model, state: ModelState) -> None:
        """Put ``model`` into the catalogue, in ``state``."""
        model.state = state
        self._catalogue.put(model)
        self._metrics.set_state(*model.key, state, STATES)

    def fill(self, model: Model, loaded: Loaded) -> None:
        """Give ``model`` what was loaded for it."""
        model.manifest, model.engine = loaded.manifest, loaded.engine
        self._metrics.versions.loaded(*model.key, success=True)

    def fail(self, model: Model, why: str) -> None:
        """Show that ``model`` could not be loaded."""
        model.reason = why
        self.put(model, ModelState.FAILED)

    def start(self, model: Model) -> None:
        """Start the batcher of a loaded version; from now on it answers. Called in the event loop."""
        engine, manifest, settings = model.engine, model.manifest, self._settings
        assert engine is not None
        assert manifest is not None
        tracing = self._tracing
        model.metrics = self._metrics.for_model(manifest, settings.low_confidence, settings.drift_window_rows)
        # The model alone owns its engine: when it lets go, the memory is free, whoever still holds on to the
        # batcher. A run in progress keeps it until it ends.
        shared, limits = weakref.proxy(engine), batch_limits(settings, engine.device)
        model.watch = FailureWatch(
            str(model),
            partial(warm_up, shared, manifest, limits),
            partial(self._set_failing, model),
            failures=settings.failed_runs,
            seconds=settings.run_timeout_seconds,
            patience=settings.failing_seconds,
            ended=partial(self._task_ended, model),
        )
        batcher = model.batcher = Batcher(
            shared,
            manifest.input,
            limits,
            model.metrics,
            str(model),
            tracing.of_model(*model.key) if tracing is not None else None,
            model.watch.ran,
        )
        batcher.task.add_done_callback(partial(self._task_ended, model))
        self._metrics.loaded(manifest, engine.device)
        self._metrics.versions.set_stale(*model.key, False)
        self._metrics.versions.set_failing(*model.key, False)
        self.put(model, ModelState.READY)
        self._refresh([model.name])

    async def retire(self, model: Model) -> None:
        """Let a version that gets no more calls answer those that it has, and free it."""
        model.retiring = True
        if model.watch is not None:
            model.watch.close()
        if model.batcher is not None and model.metrics is not None:
            try:
                async with asyncio.timeout(self._settings.grace_seconds):
                    await model.batcher.close()
            except TimeoutError:
                extra = {"model": model.name, "version": model.version}
                log.warning("unloaded, calls in flight were cut off", extra=extra)
        model.batcher = model.engine = model.metrics = model.watch = None
        await in_thread(give_back, "memory")

    async def unload(self, models: Sequence[Model]) -> None:
        """Take versions away: no new calls reach them, those in flight are answered, memory is freed."""
        for model in models:
            self._catalogue.remove(model)
            self._metrics.unloaded(*model.key)
        self._refresh({model.name for model in models})
        for model in models:
            await self.retire(model)
            log.info("model unloaded", extra={"model": model.name, "version": model.version})

    def _set_failing(self, model: Model, why: str) -> None:
        if model.retiring:
            return
        model.failing = why
        self._metrics.versions.set_failing(*model.key, bool(why))
        self._refresh([model.name])
