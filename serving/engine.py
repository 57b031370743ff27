"""Engines: what runs the graph. A protocol of one method, ONNX Runtime, and a fake for tests."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from serving.bound_runs import BoundRuns, Output
from serving.bundle import Bundle, BundleError
from serving.gpu import NO_GPU_OPTIONS, GpuOptions, GpuProviders
from serving.manifest import CLUSTER, INPUT_NAME, NOVELTY, PROBABILITIES
from serving.runtime import CUDA, Device, DeviceError, available_cpus, open_session


class EngineError(RuntimeError):
    """The engine cannot be built or run as asked; the message says why and what to do."""


@dataclass(frozen=True)
class Assignments:
    """What the model says of a batch.

    Attributes
    ----------
    probabilities
        float32 ``(n_rows, n_clusters)``, q(y|x).
    clusters
        int64 ``(n_rows,)``, the most probable cluster of each row.
    novelty
        float32 ``(n_rows,)`` in [0, 1], how unlike the training rows a row is; ``None`` if the graph does not
        say.
    """

    probabilities: np.ndarray
    clusters: np.ndarray
    novelty: np.ndarray | None = None

    @property
    def confidences(self) -> np.ndarray:
        """float32 ``(n_rows,)``: the probability of the assigned cluster."""
        return self.probabilities[np.arange(len(self.clusters)), self.clusters]


class Engine(Protocol):
    """Runs q(y|x) on a batch. Implementations are safe to call from several threads."""

    @property
    def device(self) -> str:
        """The device in use: ``"cpu"`` or ``"cuda"``."""
        ...

    def prepare(self, sizes: Sequence[int]) -> None:
        """Get ready for batches of these sizes, in particular; called before the first."""
        ...

    def assign(self, x: np.ndarray) -> Assignments:
        """Assign rows ``x`` of shape ``(n_rows, *row_shape)``, ``n_rows >= 1``, of the bundle's dtype."""
        ...


class OnnxEngine:
    """ONNX Runtime over the bundle's graph.

    Parameters
    ----------
    bundle
        A verified bundle.
    device
        ``"cuda"`` refuses to start unless the graph really runs there; ``"auto"`` takes CUDA if it is
        usable and the CPU otherwise; ``device`` tells which it was.
    intra_op_threads
        Threads within one run; 0 takes the processors this process may use.
    spin
        Let idle threads spin: faster for a job that runs back to back, wasteful for a server.
    gpu
        How to run on CUDA.

    Raises
    ------
    EngineError
        If the graph cannot be loaded, does not fit the manifest, or CUDA was asked for and is not there.
    """

    def __init__(
        self,
        bundle: Bundle,
        device: Device = "auto",
        *,
        intra_op_threads: int = 0,
        spin: bool = False,
        gpu: GpuOptions = NO_GPU_OPTIONS,
    ) -> None:
        self._spec = bundle.manifest.input
        self._n_clusters = bundle.manifest.n_clusters
        providers = gpu.providers(INPUT_NAME, self._spec.shape, bundle.manifest.graph_sha256)
        self._session = _session(bundle, device, intra_op_threads or available_cpus(), spin, providers)
        self._device = "cuda" if CUDA in self._session.get_providers() else "cpu"
        names = {value.name for value in self._session.get_inputs()}
        outputs = {value.name for value in self._session.get_outputs()}
        self._outputs = [PROBABILITIES, CLUSTER]
        if bundle.manifest.novelty is not None:
            self._outputs.append(NOVELTY)
        if names != {INPUT_NAME} or not set(self._outputs) <= outputs:
            raise EngineError(
                f"{bundle.path}: the graph has inputs {sorted(names)} and outputs {sorted(outputs)}; "
                f"this bundle's graph should have input {INPUT_NAME!r} and outputs {self._outputs}"
            )
        self._graphs = gpu.cuda_graphs and self._device == "cuda"
        self._bound = self._bind(())

    @property
    def device(self) -> str:
        """The device in use: ``"cpu"`` or ``"cuda"``."""
        return self._device

    def prepare(self, sizes: Sequence[int]) -> None:
        """Keep buffers on the device for batches of ``sizes``; others are run without.

        Raises
        ------
        EngineError
            If there is no memory for them.
        """
        try:
            self._bound = self._bind(sizes)
        except Exception as error:  # ONNX Runtime raises a dozen unrelated classes
            raise EngineError(f"no buffers for batches of {list(sizes)} rows: {error}") from error

    def assign(self, x: np.ndarray) -> Assignments:
        """Run the graph on ``x``; see `Engine.assign`.

        Raises
        ------
        EngineError
            If the run fails or its result has another shape than the manifest promises.
        """
        try:
            probabilities, clusters, *rest = self._bound.run(np.ascontiguousarray(x, dtype=self._spec.dtype))
        except Exception as error:  # ONNX Runtime raises a dozen unrelated classes
            raise EngineError(f"inference failed: {error}") from error
        if probabilities.shape != (len(x), self._n_clusters) or clusters.shape != (len(x),):
            raise EngineError(
                f"the graph returned shapes {probabilities.shape} and {clusters.shape} "
                f"for {len(x)} rows and {self._n_clusters} clusters"
            )
        strange = clusters >= self._n_clusters
        if strange.any():
            # Where no probability is a number, CUDA's ArgMax may answer 2^31 - 1, and the CPU's says 0: who
            # reads the probability there sees what is wrong with the row, and its batch is none the worse.
            clusters = np.where(strange & np.isnan(probabilities).all(axis=1), 0, clusters)
        novelty = rest[0] if rest else None
        if novelty is not None and novelty.shape != (len(x),):
            raise EngineError(f"the graph returned novelty of shape {novelty.shape} for {len(x)} rows")
        return Assignments(probabilities=probabilities, clusters=clusters, novelty=novelty)

    def _bind(self, sizes: Sequence[int]) -> BoundRuns:
        kinds = {
            PROBABILITIES: ((self._n_clusters,), "float32"),
            CLUSTER: ((), "int64"),
            NOVELTY: ((), "float32"),
        }
        return BoundRuns(
            self._session,
            self._device,
            input_name=INPUT_NAME,
            row_shape=self._spec.shape,
            dtype=self._spec.dtype,
            outputs=[Output(name, *kinds[name]) for name in self._outputs],
            sizes=sizes,
            graphs=self._graphs,
        )


def _session(bundle: Bundle, device: Device, threads: int, spin: bool, providers: GpuProviders) -> Any:
    try:
        return open_session(bundle.graph, device, threads, spin=spin, gpu_providers=providers)
    except DeviceError as error:
        raise EngineError(str(error)) from error
    except Exception as error:
        raise BundleError(
            f"{bundle.path}: ONNX Runtime cannot load the graph: {error}; export the model again"
        ) from error


class FakeEngine:
    """An engine without a model, for tests: the cluster is the sum of a row modulo the clusters.

    Parameters
    ----------
    n_clusters
        Number of clusters.
    novelty
        Whether to say a novelty: the sum of a row modulo 101, in hundredths.
    """

    device = "cpu"

    def __init__(self, n_clusters: int = 10, *, novelty: bool = False) -> None:
        self.n_clusters = n_clusters
        self.novelty = novelty
        self.batch_sizes: list[int] = []

    def prepare(self, sizes: Sequence[int]) -> None:
        """Do nothing: there is nothing to prepare."""

    def assign(self, x: np.ndarray) -> Assignments:
        """Assign deterministically, by arithmetic a test can repeat; records the batch size."""
        self.batch_sizes.append(len(x))
        sums = x.reshape(len(x), -1).sum(axis=1).astype(np.int64)
        clusters = sums % self.n_clusters
        probabilities = np.full((len(x), self.n_clusters), 0.1 / max(1, self.n_clusters - 1), np.float32)
        probabilities[np.arange(len(x)), clusters] = 0.9
        novelty = (sums % 101 / 100).astype(np.float32) if self.novelty else None
        return Assignments(probabilities=probabilities, clusters=clusters, novelty=novelty)
