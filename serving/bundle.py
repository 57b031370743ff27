"""The bundle: the contract between training and serving.

A bundle is a directory ``<repository>/<name>/<version>/`` with two files: ``model.onnx``, the graph of
q(y|x) with all preprocessing inside, and ``manifest.json``, a versioned description of it. The layout is
also a valid Triton model repository. Nothing in a bundle is ever unpickled.
"""

from __future__ import annotations

import hashlib
import math
import os
import re
import shutil
import tempfile
from pathlib import Path
from typing import Annotated, Any, Literal, Self

import numpy as np
from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    SerializerFunctionWrapHandler,
    StringConstraints,
    ValidationError,
    model_serializer,
    model_validator,
)

from serving.files import sync_directory, write_synced

GRAPH_FILE = "model.onnx"
MANIFEST_FILE = "manifest.json"
INPUT_NAME = "x"
PROBABILITIES = "probabilities"
CLUSTER = "cluster"
NOVELTY = "novelty"

_NAME = r"^[A-Za-z0-9][A-Za-z0-9._-]{0,127}$"
ModelName = Annotated[str, StringConstraints(pattern=_NAME)]
Sha256 = Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{64}$")]
_VERSION = re.compile(r"[1-9][0-9]{0,17}")  # fits an int64
_NUMPY_DTYPES = {dtype: np.dtype(dtype).newbyteorder("<") for dtype in ("uint8", "float32")}


class BundleError(ValueError):
    """A bundle cannot be read or written; the message says which file, what is wrong and what to do."""


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class InputSpec(_Part):
    """What one row looks like to the caller.

    Attributes
    ----------
    dtype
        ``"uint8"`` (images, 0..255) or ``"float32"`` (features, in the units of the training data).
    shape
        Shape of one row, without the batch axis: ``(28, 28)``, ``(32, 32, 3)``, ``(2048,)``.
    meaning
        ``"image"`` or ``"features"``.
    """

    dtype: Literal["uint8", "float32"]
    shape: tuple[Annotated[int, Field(ge=1)], ...] = Field(min_length=1)
    meaning: Literal["image", "features"]

    @property
    def numpy_dtype(self) -> np.dtype:
        """The dtype as numpy names it, little-endian."""
        return _NUMPY_DTYPES[self.dtype]

    @property
    def row_size(self) -> int:
        """Number of values in one row."""
        return math.prod(self.shape)

    @property
    def row_bytes(self) -> int:
        """Number of bytes in one row."""
        return self.row_size * self.numpy_dtype.itemsize


class Cluster(_Part):
    """One cluster: its id (the index in ``probabilities``), name, and what the training data said of it."""

    id: int = Field(ge=0)
    name: str
    share: float = Field(ge=0, le=1, description="share of the training rows assigned to it")
    mean_confidence: float | None = Field(
        ge=0, le=1, description="mean probability of its rows; null if it is empty"
    )


class Parity(_Part):
    """How closely the ONNX graph reproduces the torch model it was exported from."""

    max_abs_difference: float = Field(ge=0)
    equal_argmax_share: float = Field(ge=0, le=1)
    rows: int = Field(ge=1)


class Reference(_Part):
    """The training data's own distribution, against which drift of live traffic is measured.

    Attributes
    ----------
    cluster_shares
        Share of the training rows in each cluster, by id; sums to one.
    confidence_edges, confidence_shares
        Histogram of the assigned cluster's probability: ``len(edges) == len(shares) + 1``.
    rows
        Number of rows the two distributions were taken from.
    """

    cluster_shares: tuple[float, ...]
    confidence_edges: tuple[float, ...]
    confidence_shares: tuple[float, ...]
    rows: int = Field(ge=1)


class Novelty(_Part):
    """What the graph's third output, ``novelty``, means, and what it costs.

    Attributes
    ----------
    score
        What is ranked, in words.
    rows
        Number of training rows it is a rank among.
    cost_ratio
        Multiply-accumulates of the graph over those it would have without.
    max_abs_difference
        Parity: largest difference from torch on the rows that `Parity` was taken on.
    """

    score: str
    rows: int = Field(ge=1)
    cost_ratio: float = Field(ge=1)
    max_abs_difference: float = Field(ge=0)


class TrainingSummary(_Part):
    """Where the model came from; ``scores`` only if labels were there to score with."""

    data: str
    data_fingerprint: str
    rows: int = Field(ge=1)
    config_hash: str
    objective: str
    epochs: int = Field(ge=0)
    seed: int
    scores: dict[str, float] | None = None


class Manifest(_Part):
    """Everything a consumer must know of the graph beside it; the schema of ``manifest.json``.

    A manifest has the lowest schema version that can say what it says, so that older consumers read whatever
    they can use: 2 added ``novelty``, and a graph without it is still described by 1.
    """

    schema_version: Literal[1, 2] = 1
    name: ModelName
    version: int = Field(ge=1)
    input: InputSpec
    n_clusters: int = Field(ge=1)
    clusters: tuple[Cluster, ...]
    outputs: tuple[str, ...] = (PROBABILITIES, CLUSTER)
    graph_sha256: Sha256
    opset: int
    parity: Parity
    reference: Reference
    novelty: Novelty | None = None
    training: TrainingSummary
    package_version: str
    commit: str | None
    created: str = Field(description="ISO 8601, UTC")

    @model_validator(mode="after")
    def _novelty_is_said_once(self) -> Self:
        said = (self.schema_version == 2, NOVELTY in self.outputs, self.novelty is not None)
        if len(set(said)) != 1:
            raise ValueError("novelty takes schema_version 2, an output of that name and its description")
        return self

    @model_serializer(mode="wrap")
    def _without_what_version_1_has_not(self, serialise: SerializerFunctionWrapHandler) -> dict[str, Any]:
        fields: dict[str, Any] = serialise(self)
        if self.novelty is None:
            del fields["novelty"]
        return fields

    @model_validator(mode="after")
    def _one_cluster_per_id(self) -> Self:
        if [c.id for c in self.clusters] != list(range(self.n_clusters)):
            raise ValueError(f"clusters must list the ids 0..{self.n_clusters - 1} in order")
        if len(self.reference.cluster_shares) != self.n_clusters:
            raise ValueError(f"reference.cluster_shares must have {self.n_clusters} entries")
        if len(self.reference.confidence_edges) != len(self.reference.confidence_shares) + 1:
            raise ValueError("reference.confidence_edges must have one more entry than confidence_shares")
        return self


class Bundle(_Part):
    """A verified bundle on disk. ``graph`` holds the very bytes whose hash was checked."""

    path: Path
    manifest: Manifest
    graph: bytes = Field(repr=False)


def sha256(data: bytes) -> str:
    """SHA-256 of ``data`` in hexadecimal."""
    return hashlib.sha256(data).hexdigest()


def parse_version(text: str) -> int | None:
    """Version number of a directory name, or ``None`` if it is not a positive integer."""
    return int(text) if _VERSION.fullmatch(text) else None


def find_bundles(repository: Path) -> list[Path]:
    """All bundle directories ``<name>/<version>`` under ``repository``, sorted by name and version.

    Other files and whatever is not named like a model, such as hidden and temporary directories, are
    passed over.

    Raises
    ------
    BundleError
        If ``repository`` is not a directory, or a folder cannot be read.
    """
    try:
        if not repository.is_dir():
            raise BundleError(f"model repository {repository} is not a directory; create it or pass another")
        found = [
            (model.name, version, path)
            for model in repository.iterdir()
            if re.match(_NAME, model.name) and model.is_dir()
            for path in model.iterdir()
            if path.is_dir() and (version := parse_version(path.name)) is not None
        ]
    except OSError as error:
        raise BundleError(f"cannot read model repository: {error.filename}: {error.strerror}") from error
    return [path for _, _, path in sorted(found)]


def read_bundle(path: Path) -> Bundle:
    """Read and verify the bundle in directory ``path`` (``.../<name>/<version>``).

    The graph is read once; the hash is checked on the bytes that are returned, so that a file replaced
    in between cannot slip through.

    Raises
    ------
    BundleError
        If a file is missing or unreadable, the manifest does not fit its schema, or the hash differs.
    """
    path = Path(path)
    manifest_path, graph_path = path / MANIFEST_FILE, path / GRAPH_FILE
    try:
        text = manifest_path.read_bytes()
        graph = graph_path.read_bytes()
    except OSError as error:
        raise BundleError(
            f"cannot read bundle {path}: {error.strerror or error}: {error.filename}; "
            f"a bundle holds {GRAPH_FILE} and {MANIFEST_FILE}, export it again"
        ) from error
    try:
        manifest = Manifest.model_validate_json(text)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"]) or "the document"
        raise BundleError(f"{manifest_path}: {where}: {first['msg']}; export the model again") from error
    actual = sha256(graph)
    if actual != manifest.graph_sha256:
        raise BundleError(
            f"{graph_path}: SHA-256 is {actual}, the manifest says {manifest.graph_sha256}: "
            "the file is damaged or was replaced; copy or export the bundle again"
        )
    return Bundle(path=path, manifest=manifest, graph=graph)


def write_bundle(path: Path, manifest: Manifest, graph: bytes) -> Path:
    """Write a bundle atomically to ``path``: temporary directory, fsync, rename.

    A reader sees either nothing or the whole bundle.

    Raises
    ------
    BundleError
        If ``path`` does not end in ``<name>/<version>`` as the manifest has them, is already there, or
        cannot be written; nothing is left behind.
    """
    path = Path(path)
    if (path.parent.name, path.name) != (manifest.name, str(manifest.version)):
        raise BundleError(f"{path} must end in {manifest.name}/{manifest.version}")
    if manifest.graph_sha256 != sha256(graph):
        raise BundleError("the manifest's graph_sha256 is not the hash of the graph")
    if path.exists():
        raise BundleError(f"{path} already exists; versions are never overwritten, export to the next one")
    staging: Path | None = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        staging = Path(tempfile.mkdtemp(prefix=".staging-", dir=path.parent))
        staging.chmod(0o755)
        write_synced(staging / GRAPH_FILE, graph)
        write_synced(staging / MANIFEST_FILE, manifest.model_dump_json(indent=2).encode() + b"\n")
        sync_directory(staging)
        os.rename(staging, path)
        sync_directory(path.parent)
    except OSError as error:
        raise BundleError(f"cannot write bundle {path}: {error.strerror or error}") from error
    finally:
        if staging is not None:
            shutil.rmtree(staging, ignore_errors=True)
    return path
