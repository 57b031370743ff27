"""From a bundle's files to an engine that has run: read, verified, built, warmed. Slow and blocking."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from serving.bundle import Bundle, BundleError, read_bundle
from serving.engine import Engine, EngineError, OnnxEngine
from serving.gpu import NO_GPU_OPTIONS, GpuOptions
from serving.limits import BatchLimits, batch_limits, intra_op_threads
from serving.manifest import Manifest
from serving.models import Model
from serving.runtime import Device
from serving.settings import ServerSettings

log = logging.getLogger(__name__)

BuildEngine = Callable[[Bundle, Device, int], Engine]


@dataclass(frozen=True)
class Loaded:
    """A model that can be started."""

    manifest: Manifest
    engine: Engine


def onnx_engine(
    bundle: Bundle, device: Device, intra_op_threads: int, *, gpu: GpuOptions = NO_GPU_OPTIONS
) -> Engine:
    """Build the engine of a real server: ONNX Runtime, without spinning threads."""
    return OnnxEngine(bundle, device, intra_op_threads=intra_op_threads, gpu=gpu)


def load_model(model: Model, settings: ServerSettings, build_engine: BuildEngine) -> Loaded:
    """Load ``model`` from its path; ``model`` itself stays as it is.

    Raises
    ------
    BundleError
        If the files are not a bundle of this name and version, or damaged.
    EngineError
        If the graph does not run as the manifest says.
    """
    bundle = read_bundle(model.path)
    manifest = bundle.manifest
    if (manifest.name, manifest.version) != (model.name, model.version):
        raise BundleError(
            f"{model.path}: the manifest says {manifest.name}/{manifest.version}; "
            "move the bundle to the folder of that name and version"
        )
    engine = build_engine(bundle, settings.device, intra_op_threads(settings))
    extra = {"model": model.name, "version": model.version, "device": engine.device}
    if settings.device == "auto" and engine.device == "cpu":
        log.warning("device=auto: no usable CUDA, the model runs on the CPU", extra=extra)
    limits = batch_limits(settings, engine.device)
    engine.prepare(limits.buckets)
    warm_up(engine, manifest, limits)
    log.info("model loaded", extra=extra)
    return Loaded(manifest, engine)


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


def check_rows(old: Model, loaded: Loaded, labels: Sequence[str]) -> None:
    """Refuse to change what ``old`` takes while ``labels``, which were checked against it, point there.

    Raises
    ------
    BundleError
        If ``loaded``, in its place, takes other rows.
    """
    if old.manifest is None or old.manifest.input == loaded.manifest.input:
        return
    # Also where only one of the two names its columns: the other labels were compared with what there was.
    difference = old.manifest.input.difference(loaded.manifest.input) or "its columns' names came or went"
    raise BundleError(
        f"{old.path} takes other rows than before ({difference}), and is {', '.join(labels)}: "
        "move the label first"
    )
