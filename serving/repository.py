"""The models that a server has: loaded, warmed, switched and handed out by name, version and label."""

from __future__ import annotations

import asyncio
import logging
import weakref
from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING

from serving.background import in_thread
from serving.batcher import Batcher
from serving.bundle import BundleError
from serving.engine import EngineError
from serving.errors import NotReady, Overloaded, ServingError
from serving.failing import FailureWatch
from serving.labels import LabelsError
from serving.limits import batch_limits
from serving.loading import BuildEngine, Loaded, load_model, onnx_engine, warm_up
from serving.memory import give_back
from serving.metrics import Metrics
from serving.models import STATES, Catalogue, Model, ModelState
from serving.router import Router
from serving.settings import ServerSettings
from serving.snapshot import Fingerprint, Key, take_snapshot

if TYPE_CHECKING:
    from serving.tracing import Tracing

log = logging.getLogger(__name__)


class Repository:
    """Finds, loads and hands out models.

    Parameters
    ----------
    settings
        Where the bundles are, and how to run them.
    metrics
        Where models report to.
    build_engine
        How an engine is made of a bundle.
    tracing
        What is told of calls that have ended; or ``None``.

    Attributes
    ----------
    found
        What was in the repository at start.
    changed
        Called when `why_failing` may have changed; to be set.

    Raises
    ------
    BundleError
        If the repository is not there or has no bundle: such a server could never become ready.
    """

    def __init__(
        self,
        settings: ServerSettings,
        metrics: Metrics,
        build_engine: BuildEngine = onnx_engine,
        tracing: Tracing | None = None,
    ) -> None:
        self._tracing = tracing
        self._settings = settings
        self._metrics = metrics
        self._build_engine = build_engine
        self._loading: asyncio.Future[Loaded] | None = None
        self._closing = False
        self._catalogue = Catalogue()
        self._router = Router(self._catalogue, settings, metrics)
        self.changed: Callable[[], None] = lambda: None
        self.get, self.find, self.labels_of = self._router.get, self._router.find, self._router.labels_of
        self.found = take_snapshot(settings.model_repository)
        if not self.found.bundles:
            raise BundleError(
                f"model repository {settings.model_repository} has no bundle; "
                "pass the folder above <name>/<version>/, or export a bundle there"
            )
        for key, mark in self.found.bundles.items():
            self._put(self._new(key, mark), ModelState.LOADING)

    def load(self) -> None:
        """Read, verify and warm every model. Slow and blocking: called in a thread.

        Raises
        ------
        BundleError, EngineError
            If a model cannot be loaded, or a labels file cannot be used; with ``allow_partial`` only if no
            model can.
        """
        for model in self._catalogue:
            try:
                self._fill(model, load_model(model, self._settings, self._build_engine))
            except (BundleError, EngineError) as error:
                self._metrics.versions.loaded(*model.key, success=False)
                model.reason = str(error)
                self._put(model, ModelState.FAILED)
                if not self._settings.allow_partial:
                    raise
                extra = {"model": model.name, "version": model.version, "why": str(error)}
                log.error("model left out", extra=extra)
        if all(model.state is ModelState.FAILED for model in self._catalogue):
            raise BundleError("no model could be loaded: " + "; ".join(m.reason for m in self._catalogue))
        if not self._settings.allow_partial:
            for name, content in self.found.labels.items():
                try:
                    self._router.check_labels(name, content)
                except LabelsError as error:
                    raise BundleError(str(error)) from error

    def start(self) -> None:
        """Start a batcher for every loaded model; from now on they answer. Called in the event loop."""
        self.died = asyncio.get_running_loop().create_future()
        for model in self._catalogue:
            if model.engine is not None:
                self._start(model)
        for name, content in self.found.labels.items():
            self.take_labels(name, content)

    async def close(self) -> None:
        """Close every batcher, when the calls have ended."""
        self._closing = True
        self._router.close()
        for model in self._catalogue:
            if model.watch is not None:
                model.watch.close()
        for batcher in self.batchers():
            await batcher.close()

    def abandon_loading(self) -> None:
        """Load nothing more: `replace` then raises `NotReady`."""
        self._closing = True
        if self._loading is not None:
            self._loading.cancel()

    def models(self) -> list[Model]:
        """All models, by name and version, whatever their state."""
        return list(self._catalogue)

    def names(self) -> list[str]:
        """Names of the models, sorted."""
        return self._catalogue.names()

    def versions(self, name: str) -> list[Model]:
        """All versions of ``name``, ascending; empty if there is no such model."""
        return self._catalogue.versions(name)

    def version(self, key: Key) -> Model | None:
        """Return one version, or ``None``."""
        return self._catalogue.get(*key)

    def batchers(self) -> list[Batcher]:
        """Return the batchers of all models that answer. For any thread."""
        return [b for model in self._catalogue if (b := model.batcher) is not None]

    def overload(self) -> Overloaded | None:
        """Return the refusal of a call for rows that has not been read, if it is sure to be refused.

        Only where there is one version of one model: of several, an unread call may be for any.
        """
        batchers = self.batchers()
        return batchers[0].overload() if len(batchers) == 1 else None

    def default(self, name: str) -> Model | None:
        """Return the version that answers calls which name none, or ``None`` if there is no such version."""
        try:
            return self.find(name)
        except ServingError:
            return None

    def why_failing(self) -> str:
        """Return which model fails, of those that answer calls which name no version; empty if none does.

        With ``allow_partial`` the server serves on while any of them answers.
        """
        whys = [self._router.why_failing(name) for name in self.names()]
        if self._settings.allow_partial and not all(whys):
            return ""
        return "; ".join(filter(None, whys))

    def take_labels(self, name: str, content: bytes | None) -> None:
        """See `Router.take_labels`."""
        self._router.take_labels(name, content)
        self.changed()

    async def replace(self, key: Key, mark: Fingerprint) -> str:
        """Load a version beside what serves, then switch to it.

        What answered as this version until then answers the calls that it has, and is freed. If the bundle
        cannot be loaded it goes on, or the version is shown as FAILED if there was none.

        Returns
        -------
        str
            Why it could not be loaded; empty if it was.

        Raises
        ------
        NotReady
            If the server is stopping.
        """
        fresh, old = self._new(key, mark), self.version(key)
        if old is None or old.state is not ModelState.READY:
            self._put(fresh, ModelState.LOADING)
        try:
            loaded = await self._load(fresh)
            self._check_rows(old, loaded)
        except NotReady:
            raise
        except Exception as error:  # whatever a bundle does, what serves goes on
            known = isinstance(error, (BundleError, EngineError))
            why = str(error) if known else f"{type(error).__name__}: {error}"
            extra = {"model": key[0], "version": key[1], "why": why}
            log.error("bundle refused", exc_info=None if known else error, extra=extra)
            self._metrics.versions.loaded(*key, success=False)
            if old is not None and old.state is ModelState.READY:
                old.tried = mark
                self._metrics.versions.set_stale(*key, True)
            else:
                fresh.reason = why
                self._put(fresh, ModelState.FAILED)
            return why
        if old is not None and old.state is ModelState.READY:
            self._metrics.unloaded(*key)
        self._fill(fresh, loaded)
        self._start(fresh)
        if old is not None:
            await self._retire(old)
        return ""

    async def unload(self, models: Sequence[Model]) -> None:
        """Take versions away: no new calls reach them, those in flight are answered, memory is freed."""
        for model in models:
            self._catalogue.remove(model)
            self._metrics.unloaded(*model.key)
        for name in {model.name for model in models}:
            self._router.refresh(name)
        self.changed()
        for model in models:
            await self._retire(model)
            log.info("model unloaded", extra={"model": model.name, "version": model.version})

    def set_kept(self, model: Model, kept: bool) -> None:
        """Note whether ``model`` goes on although its files are gone."""
        if kept != model.kept:
            model.kept = kept
            self._metrics.versions.set_stale(*model.key, kept)
            extra = {"model": model.name, "version": model.version, "labels": self.labels_of(model)}
            log.warning("files gone, kept for its labels" if kept else "files are back", extra=extra)

    async def _load(self, model: Model) -> Loaded:
        if self._closing:
            raise NotReady("the server is stopping")
        self._loading = in_thread(partial(load_model, model, self._settings, self._build_engine))
        try:
            return await self._loading
        except asyncio.CancelledError:
            if self._closing:
                raise NotReady("the server is stopping") from None
            raise
        finally:
            self._loading = None

    def _check_rows(self, old: Model | None, loaded: Loaded) -> None:
        """Refuse to change what a version takes while labels that were checked against it point there."""
        if old is None or old.manifest is None or old.manifest.input == loaded.manifest.input:
            return
        if labels := self.labels_of(old):
            raise BundleError(
                f"{old.path} takes other rows than before, and is {', '.join(labels)}: move the label first"
            )

    def _fill(self, model: Model, loaded: Loaded) -> None:
        model.manifest, model.engine = loaded.manifest, loaded.engine
        self._metrics.versions.loaded(*model.key, success=True)

    def _start(self, model: Model) -> None:
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
            hangs=partial(self._task_ended, model),
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
        self._put(model, ModelState.READY)
        self._router.refresh(model.name)
        self.changed()

    async def _retire(self, model: Model) -> None:
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

    def _set_failing(self, model: Model, why: str) -> None:
        if model.retiring:
            return
        model.failing = why
        self._metrics.versions.set_failing(*model.key, bool(why))
        self._router.refresh(model.name)
        self.changed()

    def _task_ended(self, model: Model, task: asyncio.Task[None]) -> None:
        if not (model.retiring or self._closing or self.died.done()):
            self.died.set_result(task)

    def _new(self, key: Key, mark: Fingerprint) -> Model:
        name, version = key
        return Model(name, version, self._settings.model_repository / name / str(version), tried=mark)

    def _put(self, model: Model, state: ModelState) -> None:
        model.state = state
        self._catalogue.put(model)
        self._metrics.set_state(*model.key, state, STATES)
