"""The models that a server has: loaded, warmed, switched and handed out by name, version and label."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterable
from functools import partial
from typing import TYPE_CHECKING

from serving.background import in_thread
from serving.batcher import Batcher
from serving.bundle import BundleError
from serving.engine import EngineError
from serving.errors import NotReady, Overloaded, ServingError
from serving.labels import LabelsError
from serving.loading import BuildEngine, Loaded, check_rows, load_model, onnx_engine
from serving.metrics import Metrics
from serving.models import Catalogue, Model, ModelState
from serving.router import Router
from serving.settings import ServerSettings
from serving.snapshot import Fingerprint, Key, take_snapshot
from serving.version_lifecycle import VersionLifecycle

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
        self._settings = settings
        self._metrics = metrics
        self._build_engine = build_engine
        self._loading: asyncio.Future[Loaded] | None = None
        self._closing = False
        self._catalogue = Catalogue()
        self._router = Router(self._catalogue, settings, metrics)
        self._lifecycle = VersionLifecycle(
            self._catalogue, settings, metrics, tracing, self._refresh, self._task_ended
        )
        self.changed: Callable[[], None] = lambda: None
        self.get, self.find, self.labels_of = self._router.get, self._router.find, self._router.labels_of
        self.names, self.versions = self._catalogue.names, self._catalogue.versions
        self.unload = self._lifecycle.unload
        self.found = take_snapshot(settings.model_repository)
        if not self.found.bundles:
            raise BundleError(
                f"model repository {settings.model_repository} has no bundle; "
                "pass the folder above <name>/<version>/, or export a bundle there"
            )
        for key, mark in self.found.bundles.items():
            self._lifecycle.put(self._new(key, mark), ModelState.LOADING)

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
                self._lifecycle.fill(model, load_model(model, self._settings, self._build_engine))
            except (BundleError, EngineError) as error:
                self._metrics.versions.loaded(*model.key, success=False)
                self._lifecycle.fail(model, str(error))
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
                self._lifecycle.start(model)
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
            self._lifecycle.put(fresh, ModelState.LOADING)
        try:
            loaded = await self._load(fresh)
            if old is not None and (labels := self.labels_of(old)):
                check_rows(old, loaded, labels)
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
                self._lifecycle.fail(fresh, why)
            return why
        if old is not None and old.state is ModelState.READY:
            self._metrics.unloaded(*key)
        self._lifecycle.fill(fresh, loaded)
        self._lifecycle.start(fresh)
        if old is not None:
            await self._lifecycle.retire(old)
        return ""

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

    def _refresh(self, names: Iterable[str]) -> None:
        for name in names:
            self._router.refresh(name)
        self.changed()

    def _task_ended(self, model: Model, task: asyncio.Task[None]) -> None:
        if not (model.retiring or self._closing or self.died.done()):
            self.died.set_result(task)

    def _new(self, key: Key, mark: Fingerprint) -> Model:
        name, version = key
        return Model(name, version, self._settings.model_repository / name / str(version), tried=mark)
