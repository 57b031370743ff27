"""Who answers: the model in this process, or a server that has the very same one."""

from __future__ import annotations

from types import TracebackType
from typing import Protocol, Self

import numpy as np

from serving.bundle import Bundle
from serving.client import ClusterClient
from serving.engine import Engine, EngineError, OnnxEngine
from serving.labelling.failures import LabellingError
from serving.labelling.settings import LabelSettings


class Labeller(Protocol):
    """Assigns rows; used as a context manager."""

    @property
    def name(self) -> str:
        """Who answers, for people."""
        ...

    def label(self, x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Clusters (int64) and confidences (float32) of rows ``(n_rows, *row_shape)``, ``n_rows >= 1``."""
        ...

    def __enter__(self) -> Self: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...


class LocalLabeller:
    """The model in this process.

    Parameters
    ----------
    engine
        Runs the graph.
    batch_rows
        Rows per run.
    """

    def __init__(self, engine: Engine, batch_rows: int) -> None:
        self._engine = engine
        self._batch_rows = batch_rows

    @property
    def name(self) -> str:
        """The device."""
        return self._engine.device

    def label(self, x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """See `Labeller.label`."""
        runs = [
            self._engine.assign(x[first : first + self._batch_rows])
            for first in range(0, len(x), self._batch_rows)
        ]
        return np.concatenate([run.clusters for run in runs]), np.concatenate(
            [run.confidences for run in runs]
        )

    def __enter__(self) -> Self:
        """Return the labeller itself."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Nothing to close."""


class RemoteLabeller:
    """A server.

    Parameters
    ----------
    target
        ``host:port``.
    bundle
        The model that the server must have.
    timeout
        Seconds a call may take.

    Raises
    ------
    LabellingError
        If the server's model of this name and version is another.
    ClusterServiceError
        If it has none, or cannot be reached.
    """

    def __init__(self, target: str, bundle: Bundle, timeout: float) -> None:
        self._client = ClusterClient(target)
        self._model = bundle.manifest.name
        self._version = bundle.manifest.version
        self._timeout = timeout
        try:
            info = self._client.model(self._model, version=self._version, timeout=timeout)
            if info.graph_sha256 != bundle.manifest.graph_sha256:
                raise LabellingError(
                    f"{target}: its {self._model} version {self._version} has SHA-256 {info.graph_sha256}, "
                    f"but {bundle.path} has {bundle.manifest.graph_sha256}: not the same model; deploy "
                    "this one there, or label with the bundle that the server has"
                )
        except BaseException:
            self._client.close()
            raise
        self._device = info.device

    @property
    def name(self) -> str:
        """The server and its device."""
        return f"{self._client.target} ({self._device})"

    def label(self, x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """See `Labeller.label`."""
        result = self._client.assign(x, model=self._model, version=self._version, timeout=self._timeout)
        return result.clusters, result.confidences

    def __enter__(self) -> Self:
        """Return the labeller itself."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close the connection."""
        self._client.close()


def make_labeller(settings: LabelSettings, bundle: Bundle) -> Labeller:
    """Build the labeller that ``settings`` ask for.

    Raises
    ------
    LabellingError, BundleError, ClusterServiceError
        If it cannot be had.
    """
    if settings.target is not None:
        return RemoteLabeller(settings.target, bundle, settings.timeout)
    try:
        # A job runs the model back to back, so idle threads may spin.
        engine = OnnxEngine(bundle, settings.device, intra_op_threads=settings.threads, spin=True)
    except EngineError as error:
        raise LabellingError(str(error)) from error
    return LocalLabeller(engine, settings.batch_rows)
