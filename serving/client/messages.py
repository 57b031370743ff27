"""Between numpy and the messages of `nvisa.v1`: no transport here."""

from __future__ import annotations

import uuid
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TypeAlias

import numpy as np

from serving.pb.nvisa.v1 import cluster_pb2 as pb

READINESS_SERVICE = "nvisa.v1.ClusterService"
ROWS_PER_CALL = 4096
SMALL_CALL_BYTES = 1 << 20
_OVERHEAD_BYTES = 4096
_DTYPES = {"uint8": pb.DATA_TYPE_UINT8, "float32": pb.DATA_TYPE_FLOAT32}
_DTYPE_NAMES = {number: name for name, number in _DTYPES.items()}

Version: TypeAlias = int | str | None
"""The number of a version, a label that points at one, or the server's choice."""


@dataclass(frozen=True)
class AssignResult:
    """What the server says of the rows, in their order.

    Attributes
    ----------
    clusters
        int64 ``(n_rows,)``, the most probable cluster of each row.
    confidences
        float32 ``(n_rows,)``, its probability.
    probabilities
        float32 ``(n_rows, n_clusters)``, or ``None`` if they were not asked for.
    model, version
        What answered: one version for all rows.
    novelty
        float32 ``(n_rows,)`` in [0, 1], or ``None`` if it was not asked for: the share of the training rows
        that the model finds more likely; 0.99 is reached by one in a hundred of rows like those.
    request_id
        By which the server's log and traces name the call, or all calls if it took several.
    """

    clusters: np.ndarray
    confidences: np.ndarray
    probabilities: np.ndarray | None
    model: str
    version: int
    novelty: np.ndarray | None = None
    request_id: str = ""

    def __len__(self) -> int:
        """Return the number of rows."""
        return len(self.clusters)


@dataclass(frozen=True)
class ModelInfo:
    """A model on the server, and what one call may ask of it.

    Attributes
    ----------
    name, version
        What to name it by.
    is_default
        Whether it answers calls that name no version.
    state
        ``"loading"``, ``"ready"`` or ``"failed"``; ``state_reason`` says why.
    device
        ``"cpu"`` or ``"cuda"``.
    dtype, shape, meaning
        What one row looks like; ``meaning`` is ``"image"`` or ``"features"``.
    columns
        Names of a row's values, in order, if the model was fitted to columns of a table; else empty.
    n_clusters, cluster_names
        The clusters.
    graph_sha256
        SHA-256 of the ONNX graph.
    created
        ISO 8601, UTC.
    has_novelty
        Whether it says novelty.
    labels
        Labels that point at it: ``"stable"``, ``"canary"``, ``"shadow"``.
    max_message_bytes, max_queue_rows
        The server's limits; 0 if it does not say.
    """

    name: str
    version: int
    is_default: bool
    state: str
    state_reason: str
    device: str
    dtype: str
    shape: tuple[int, ...]
    meaning: str
    columns: tuple[str, ...] = field(repr=False)
    n_clusters: int
    cluster_names: tuple[str, ...] = field(repr=False)
    graph_sha256: str
    created: str
    has_novelty: bool
    labels: tuple[str, ...]
    max_message_bytes: int
    max_queue_rows: int


@dataclass(frozen=True)
class Health:
    """Whether the server's process is alive, and whether its models are ready."""

    alive: bool
    ready: bool


def is_small(x: np.ndarray, columns: tuple[str, ...]) -> bool:
    """Whether ``x`` goes into one call of any server, whatever its limits."""
    return len(x) <= ROWS_PER_CALL and x.nbytes + _sent_bytes(columns) <= SMALL_CALL_BYTES


def _sent_bytes(columns: tuple[str, ...]) -> int:
    """Room that the names take in a message, at most: each has a tag and a length beside it."""
    return sum(len(name.encode()) + 6 for name in columns)


def slices(x: np.ndarray, columns: tuple[str, ...], info: ModelInfo, max_message_bytes: int) -> list[slice]:
    """Cut ``x`` so that request and reply of each part keep within the limits of server and client."""
    sent = min(info.max_message_bytes or max_message_bytes, max_message_bytes) - _OVERHEAD_BYTES
    sent -= _sent_bytes(columns)
    received = max_message_bytes - _OVERHEAD_BYTES
    n_rows = min(
        ROWS_PER_CALL,
        info.max_queue_rows or ROWS_PER_CALL,
        sent // max(1, x.nbytes // len(x)),
        received // (16 + 4 * info.n_clusters),  # int64, twice float32, and the probabilities
    )
    return [slice(first, first + max(1, n_rows)) for first in range(0, len(x), max(1, n_rows))]


def new_request_id() -> str:
    """Return an id by which nobody has called yet."""
    return uuid.uuid4().hex


def version_and_label(version: Version) -> tuple[int, str]:
    """Return the number and the label to ask for: one of them, or neither.

    Raises
    ------
    ValueError
        If it is neither a number nor the name of a label.
    """
    if version is None:
        return 0, ""
    if isinstance(version, str):
        if not version or version.isdecimal():
            raise ValueError(
                f"version {version!r} is not a label; pass a number as an int, or a label such as 'canary'"
            )
        return 0, version
    return version, ""


def model_request(model: str, version: Version, request_id: str = "") -> pb.GetModelRequest:
    """Message that asks what a model is: the version named, or that which calls with ``request_id`` go to."""
    number, label = version_and_label(version)
    return pb.GetModelRequest(
        model_name=model, model_version=number, model_label=label, request_id=request_id
    )


def assign_request(
    x: np.ndarray,
    columns: tuple[str, ...],
    model: str,
    version: Version,
    probabilities: bool,
    novelty: bool,
    request_id: str = "",
) -> pb.AssignRequest:
    """Message that asks for the clusters of ``x``, an array from `as_rows`, with its columns' names."""
    number, label = version_and_label(version)
    return pb.AssignRequest(
        request_id=request_id,
        model_name=model,
        model_version=number,
        model_label=label,
        want_probabilities=probabilities,
        want_novelty=novelty,
        input=pb.Tensor(dtype=_DTYPES[x.dtype.name], shape=x.shape, data=x.tobytes(), columns=columns),
    )


def assign_result(replies: Sequence[pb.AssignResponse]) -> AssignResult:
    """Join the replies, in order, to the parts of one array."""
    first = replies[0]
    probabilities = None
    if first.probabilities_data:
        probabilities = _joined([r.probabilities_data for r in replies], "<f4").reshape(-1, first.n_clusters)
    novelty = None
    if first.novelty_data:
        novelty = _joined([r.novelty_data for r in replies], "<f4")
    return AssignResult(
        clusters=_joined([r.clusters_data for r in replies], "<i8"),
        confidences=_joined([r.confidences_data for r in replies], "<f4"),
        probabilities=probabilities,
        model=first.model_name,
        version=first.model_version,
        novelty=novelty,
        request_id=first.request_id,
    )


def model_info(model: pb.Model, limits: pb.Limits) -> ModelInfo:
    """Unpack what the server says of a model."""
    return ModelInfo(
        name=model.name,
        version=model.version,
        is_default=model.is_default,
        state=pb.ModelState.Name(model.state).removeprefix("MODEL_STATE_").lower(),
        state_reason=model.state_reason,
        device=model.device,
        dtype=_DTYPE_NAMES.get(model.input.dtype, "unknown"),
        shape=tuple(model.input.shape),
        meaning=model.input.meaning,
        columns=tuple(model.input.columns),
        n_clusters=model.n_clusters,
        cluster_names=tuple(cluster.name for cluster in model.clusters),
        graph_sha256=model.graph_sha256,
        created=model.created,
        has_novelty=model.HasField("novelty"),
        labels=tuple(model.labels),
        max_message_bytes=limits.max_message_bytes,
        max_queue_rows=limits.max_queue_rows,
    )


def _joined(parts: list[bytes], dtype: str) -> np.ndarray:
    return np.frombuffer(bytearray(b"".join(parts)), dtype)  # bytearray: the caller may write to it
