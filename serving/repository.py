"""The models that a server has: found at start, loaded, warmed, and handed out by name and version."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from serving.batcher import Batcher
from serving.bundle import Bundle, BundleError, Manifest, find_bundles, read_bundle
from serving.engine import Engine, EngineError, OnnxEngine
from serving.errors import NotReady, UnknownModel
from serving.limits import BatchLimits, batch_limits, intra_op_threads
from serving.metrics import Metrics
from serving.runtime import Device
from serving.settings import ServerSettings

if TYPE_CHECKING:
    from serving.tracing import Tracing

log = logging.getLogger(__name__)

BuildEngine = Callable[[Bundle, Device, int], Engine]


class ModelState(StrEnum):
    """Where a model stands between its files and the first answer."""

    LOADING = "loading"
    READY = "ready"
    FAILED = "failed"


STATES = tuple(ModelState)


@dataclass(eq=False)
class Model:
    """One version of one model; everything after ``state`` is there once it is READY."""

    name: str
    version: int
    path: Path
    state: ModelState = ModelState.LOADING
    reason: str = ""
    manifest: Manifest | None = None
    engine: Engine | None = None
    batcher: Batcher | None = None


@dataclass(frozen=True)
class ReadyModel:
    """A model that answers."""

    manifest: Manifest
    batcher: Batcher


def onnx_engine(bundle: Bundle, device: Device, intra_op_threads: int) -> Engine:
    """Build the engine of a real server: ONNX Runtime, without spinning threads."""
    return OnnxEngine(bundle, device, intra_op_threads=intra_op_threads)


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
        paths = find_bundles(settings.model_repository)
        if not paths:
            raise BundleError(
                f"model repository {settings.model_repository} has no bundle; "
                "pass the folder above <name>/<version>/, or export a bundle there"
            )
        self._models = [Model(path.parent.name, int(path.name), path) for path in paths]
        self._by_name: dict[str, list[Model]] = {}
        for model in self._models:
            self._by_name.setdefault(model.name, []).append(model)
            self._set_state(model, ModelState.LOADING)

    def load(self) -> None:
        """Read, verify and warm every model. Slow and blocking: called in a thread.

        Raises
        ------
        BundleError, EngineError
            If a model cannot be loaded; with ``allow_partial`` only if none can.
        """
        for model in self._models:
            try:
                self._load(model)
            except (BundleError, EngineError) as error:
                model.reason = str(error)
                self._set_state(model, ModelState.FAILED)
                if not self._settings.allow_partial:
                    raise
                extra = {"model": model.name, "version": model.version, "why": str(error)}
                log.error("model left out", extra=extra)
        if all(model.state is ModelState.FAILED for model in self._models):
            raise BundleError("no model could be loaded: " + "; ".join(m.reason for m in self._models))

    def start(self) -> None:
        """Start a batcher for every loaded model; from now on they answer. Called in the event loop."""
        settings = self._settings
        for model in self._models:
            if model.engine is None or model.manifest is None:
                continue
            limits = batch_limits(settings, model.engine.device)
            metrics = self._metrics.for_model(
                model.manifest, settings.low_confidence, settings.drift_window_rows
            )
            name = f"{model.name}/{model.version}"
            tracing = self._tracing
            ended = tracing.of_model(model.name, model.version) if tracing is not None else None
            model.batcher = Batcher(model.engine, model.manifest.input, limits, metrics, name, ended)
            self._metrics.loaded(model.manifest, model.engine.device)
            self._set_state(model, ModelState.READY)

    def models(self) -> list[Model]:
        """All models, by name and version, whatever their state."""
        return self._models

    def batchers(self) -> list[Batcher]:
        """Return the batchers of all models that answer."""
        return [model.batcher for model in self._models if model.batcher is not None]

    def find(self, name: str, version: int = 0) -> Model:
        """Return the model called ``name``; version 0 is the default one, the largest that did not fail.

        Raises
        ------
        UnknownModel
            If there is none; the message names those that there are.
        """
        versions = self._by_name.get(name)
        if versions is None:
            raise UnknownModel(f"no model {name[:128]!r}; this server has {', '.join(self._by_name)}")
        if version == 0:
            able = [model for model in versions if model.state is not ModelState.FAILED]
            return (able or versions)[-1]
        for model in versions:
            if model.version == version:
                return model
        there = ", ".join(str(model.version) for model in versions)
        raise UnknownModel(f"model {name!r} has no version {version}; it has {there}")

    def get(self, name: str, version: int = 0) -> ReadyModel:
        """Return the model that answers calls for ``name`` and ``version``.

        Raises
        ------
        UnknownModel
            As `find`.
        NotReady
            If it is still loading, or could not be loaded.
        """
        model = self.find(name, version)
        if model.state is not ModelState.READY or not (model.manifest and model.batcher):
            reason = f": {model.reason}" if model.reason else "; try again soon"
            raise NotReady(f"model {model.name} version {model.version} is {model.state}{reason}")
        return ReadyModel(model.manifest, model.batcher)

    def _load(self, model: Model) -> None:
        bundle = read_bundle(model.path)
        manifest = bundle.manifest
        if (manifest.name, manifest.version) != (model.name, model.version):
            raise BundleError(
                f"{model.path}: the manifest says {manifest.name}/{manifest.version}; "
                "move the bundle to the folder of that name and version"
            )
        settings = self._settings
        engine = self._build_engine(bundle, settings.device, intra_op_threads(settings))
        extra = {"model": model.name, "version": model.version, "device": engine.device}
        if settings.device == "auto" and engine.device == "cpu":
            log.warning("device=auto: no usable CUDA, the model runs on the CPU", extra=extra)
        warm_up(engine, manifest, batch_limits(settings, engine.device))
        model.manifest, model.engine = manifest, engine
        log.info("model loaded", extra=extra)

    def _set_state(self, model: Model, state: ModelState) -> None:
        model.state = state
        self._metrics.set_state(model.name, model.version, state, STATES)


def warm_up(engine: Engine, manifest: Manifest, limits: BatchLimits) -> None:
    """Run every batch size that will be padded to, or the smallest and the largest if none is.

    Raises
    ------
    EngineError
        If a run fails, or its probabilities are not finite.
    """
    spec = manifest.input
    for rows in limits.buckets or (1, limits.max_batch_rows):
        answer = engine.assign(np.zeros((rows, *spec.shape), spec.numpy_dtype))
        if answer.probabilities.shape != (rows, manifest.n_clusters):
            raise EngineError(
                f"model {manifest.name}/{manifest.version} answers {rows} rows with probabilities of shape "
                f"{answer.probabilities.shape}, the manifest has {manifest.n_clusters} clusters"
            )
        if (answer.novelty is None) != (manifest.novelty is None):
            raise EngineError(
                f"model {manifest.name}/{manifest.version} and its manifest do not agree on novelty; "
                "export it again"
            )
        if not np.isfinite(answer.probabilities).all():
            raise EngineError(
                f"model {manifest.name}/{manifest.version} answers zeros with NaN or infinity; "
                "export it again"
            )
