"""The manifest of a bundle: what a consumer must know of the graph beside it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Annotated, Any, Literal, Self

import numpy as np
from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    SerializerFunctionWrapHandler,
    StringConstraints,
    model_serializer,
    model_validator,
)

INPUT_NAME = "x"
PROBABILITIES = "probabilities"
CLUSTER = "cluster"
NOVELTY = "novelty"

MODEL_NAME_PATTERN = r"^[A-Za-z0-9][A-Za-z0-9._-]{0,127}$"
ModelName = Annotated[str, StringConstraints(pattern=MODEL_NAME_PATTERN)]
Sha256 = Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{64}$")]
_NUMPY_DTYPES = {dtype: np.dtype(dtype).newbyteorder("<") for dtype in ("uint8", "float32")}


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
    columns
        Names of the values of a row, in order, where they were columns of a table; else empty.
    """

    dtype: Literal["uint8", "float32"]
    shape: tuple[Annotated[int, Field(ge=1)], ...] = Field(min_length=1)
    meaning: Literal["image", "features"]
    columns: tuple[str, ...] = ()

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

    def difference(self, other: InputSpec) -> str:
        """In what rows of ``other`` differ from these, in words; empty if in nothing that both know."""
        if (self.dtype, self.shape, self.meaning) != (other.dtype, other.shape, other.meaning):
            return (
                f"{other.dtype} {list(other.shape)} ({other.meaning}), "
                f"not {self.dtype} {list(self.shape)} ({self.meaning})"
            )
        return columns_difference(self.columns, other.columns)

    @model_validator(mode="after")
    def _one_column_per_value(self) -> Self:
        if self.columns and (len(self.columns),) != self.shape:
            raise ValueError(f"columns names {len(self.columns)} values of a row of shape {list(self.shape)}")
        if len(set(self.columns)) < len(self.columns):
            raise ValueError("columns names a value twice")
        return self

    @model_serializer(mode="wrap")
    def _without_unknown_columns(self, serialise: SerializerFunctionWrapHandler) -> dict[str, Any]:
        fields: dict[str, Any] = serialise(self)
        if not self.columns:
            del fields["columns"]
        return fields


def columns_difference(expected: Sequence[str], found: Sequence[str]) -> str:
    """In what two orders of columns differ, in words; empty if in nothing, or if one is not known.

    ``expected`` names no column twice.
    """
    if not expected or not found or tuple(expected) == tuple(found):
        return ""
    known, there = set(expected), set(found)
    missing, more = [n for n in expected if n not in there], [n for n in found if n not in known]
    if missing or more:
        said = {"without": missing, "with": more}
        return "other columns, " + " and ".join(
            f"{w} {listed(names, 6)}" for w, names in said.items() if names
        )
    place, old, new = next(
        (i, old, new) for i, (old, new) in enumerate(zip(expected, found, strict=False)) if old != new
    )
    return f"columns in another order: number {place} is {short(new)!r}, not {short(old)!r}"


def listed(names: Sequence[str], most: int = 12) -> str:
    """The first of some names, and of each its beginning, for a message."""
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return f"{[short(name) for name in names[:most]]}{more}"


def short(name: str) -> str:
    """The beginning of a name, for a message: gRPC has 8 KiB for one, and nine bytes for some characters."""
    return name if len(name) <= 60 else f"{name[:59]}…"


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


def schema_version(spec: InputSpec, *, novelty: bool) -> Literal[1, 2, 3]:
    """Lowest schema version that can describe a model of such rows."""
    if spec.columns:
        return 3
    return 2 if novelty else 1


class Manifest(_Part):
    """Everything a consumer must know of the graph beside it; the schema of ``manifest.json``.

    A manifest has the lowest schema version that can say what it says, so that older consumers read whatever
    they can use: 2 added ``novelty``, 3 ``input.columns``, and what has neither is still described by 1.
    """

    schema_version: Literal[1, 2, 3] = 1
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
        if (NOVELTY in self.outputs) != (self.novelty is not None):
            raise ValueError("novelty takes an output of that name and its description")
        return self

    @model_validator(mode="after")
    def _schema_is_the_lowest(self) -> Self:
        lowest = schema_version(self.input, novelty=self.novelty is not None)
        if self.schema_version != lowest:
            raise ValueError(f"what is said takes schema_version {lowest}")
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
