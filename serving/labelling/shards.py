"""Finished shards on disk: the part, then its sidecar. A shard is done when its sidecar says so and fits."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from serving.files import remove_leftovers, write_atomically
from serving.labelled import count_errors
from serving.labelling.failures import LabellingError
from serving.labelling.plan import Plan, Shard
from serving.readers.fingerprint import content_fingerprint

SIDECAR_FOLDER = "_shards"
SUCCESS_FILE = "_SUCCESS"


class Sidecar(BaseModel):
    """What is known of a finished shard."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    schema_version: Literal[1] = 1
    shard: Shard
    rows: int = Field(ge=1)
    errors: int = Field(ge=0, description="rows without a cluster")
    cluster_counts: tuple[int, ...]
    input_fingerprint: str
    graph_sha256: str
    output_bytes: int
    output_sha256: str


class Success(BaseModel):
    """What ``_SUCCESS`` holds. Nothing of when or by whom: processes that finish together write the same."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    schema_version: Literal[1] = 1
    plan: Plan
    rows: int
    errors: int
    cluster_counts: tuple[int, ...]
    parts: tuple[str, ...]


def part_path(output: Path, shard: Shard) -> Path:
    """Path of the shard's rows."""
    return output / f"{shard.name}.parquet"


def sidecar_path(output: Path, shard: Shard) -> Path:
    """Path of the shard's sidecar."""
    return output / SIDECAR_FOLDER / f"{shard.name}.json"


def write_shard(
    output: Path, plan: Plan, shard: Shard, table: pa.Table, cluster_counts: Sequence[int]
) -> Sidecar:
    """Write the rows of a shard, and then its sidecar.

    Raises
    ------
    OSError
        If they cannot be written; the shard then counts as not done.
    """
    part = part_path(output, shard)
    write_atomically(part, lambda file: pq.write_table(table, file))
    sidecar = Sidecar(
        shard=shard,
        rows=table.num_rows,
        errors=count_errors(table),
        cluster_counts=tuple(cluster_counts),
        input_fingerprint=plan.input.fingerprint,
        graph_sha256=plan.model.graph_sha256,
        output_bytes=part.stat().st_size,
        output_sha256=content_fingerprint(part, (part,)),
    )
    write_atomically(sidecar_path(output, shard), sidecar.model_dump_json(indent=2).encode() + b"\n")
    return sidecar


def finished(output: Path, plan: Plan, shard: Shard, *, verify: bool) -> Sidecar | None:
    """Sidecar of a finished shard, or ``None`` if the shard is to be done (again).

    Parameters
    ----------
    verify
        Read the part and compare its hash, instead of its size only.
    """
    part = part_path(output, shard)
    try:
        sidecar = Sidecar.model_validate_json(sidecar_path(output, shard).read_bytes())
        size = part.stat().st_size
    except (FileNotFoundError, ValidationError):
        return None
    fits = (
        sidecar.shard == shard
        and sidecar.rows == shard.n_rows
        and sidecar.input_fingerprint == plan.input.fingerprint
        and sidecar.graph_sha256 == plan.model.graph_sha256
        and sidecar.output_bytes == size
    )
    if not fits or (verify and sidecar.output_sha256 != content_fingerprint(part, (part,))):
        return None
    return sidecar


def clean_shard(output: Path, shard: Shard) -> None:
    """Remove what killed processes left of a shard."""
    remove_leftovers(part_path(output, shard))
    remove_leftovers(sidecar_path(output, shard))


def write_success(output: Path, plan: Plan, sidecars: Sequence[Sidecar]) -> Success:
    """Write ``_SUCCESS`` once the counts reconcile: sidecars, the parts' own row counts, and the plan.

    Raises
    ------
    LabellingError
        If they do not.
    OSError
        If it cannot be written.
    """
    for sidecar in sidecars:
        part = part_path(output, sidecar.shard)
        n_rows = pq.read_metadata(part).num_rows
        if n_rows != sidecar.shard.n_rows:
            raise LabellingError(
                f"{part}: has {n_rows} rows, the plan says {sidecar.shard.n_rows}; remove it"
            )
    rows = sum(sidecar.rows for sidecar in sidecars)
    if rows != plan.input.n_rows:
        raise LabellingError(f"{output}: {rows} rows are done, the plan says {plan.input.n_rows}")
    success = Success(
        plan=plan,
        rows=rows,
        errors=sum(sidecar.errors for sidecar in sidecars),
        cluster_counts=tuple(
            sum(counts) for counts in zip(*(sidecar.cluster_counts for sidecar in sidecars), strict=True)
        ),
        parts=tuple(part_path(output, sidecar.shard).name for sidecar in sidecars),
    )
    write_atomically(output / SUCCESS_FILE, success.model_dump_json(indent=2).encode() + b"\n")
    return success
