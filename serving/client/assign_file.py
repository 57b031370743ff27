"""Assign the rows of a file through a server, and show or write the result."""

from __future__ import annotations

import os
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.csv as pacsv
import pyarrow.parquet as pq

from serving.bundle import InputSpec
from serving.client.messages import ModelInfo
from serving.client.sync import ClusterClient
from serving.labelled import labelled_table, refuse_clash
from serving.readers import DataError, Source, open_source

OUTPUT_SUFFIXES = (".parquet", ".csv", ".npy")
_CHUNK_ROWS = 8192


@dataclass(frozen=True)
class Assigned:
    """The result for a whole file.

    Attributes
    ----------
    model, version
        What answered.
    cluster_names
        Names of the clusters, by id.
    table
        See `serving.labelled.labelled_table`.
    """

    model: str
    version: int
    cluster_names: tuple[str, ...]
    table: pa.Table

    @property
    def counts(self) -> np.ndarray:
        """int64 ``(n_clusters,)``: rows in each cluster."""
        clusters = self.table["cluster"].drop_null().to_numpy()
        return np.bincount(clusters, minlength=len(self.cluster_names))

    @property
    def mean_confidence(self) -> float | None:
        """Mean probability of the assigned cluster, or ``None`` if no row was assigned."""
        confidences = self.table["confidence"].drop_null().to_numpy()
        return float(confidences.mean(dtype=np.float64)) if len(confidences) else None

    @property
    def n_errors(self) -> int:
        """Number of rows that could not be read."""
        return len(self.table) - int(self.table["error"].null_count)


def assign_file(
    client: ClusterClient,
    path: Path,
    *,
    model: str,
    version: int | None = None,
    timeout: float,
    split: str = "train",
    label_column: str | None = None,
    id_columns: tuple[str, ...] = (),
    feature_columns: tuple[str, ...] = (),
) -> Assigned:
    """Assign every row of a data set; all of them by one version of the model.

    Raises
    ------
    DataError
        If the data cannot be read, or its rows are not what the model takes.
    ClusterServiceError
        If the server refuses or cannot be reached.
    """
    info = client.model(model, version=version, timeout=timeout)
    source = open_source(
        path,
        split="test" if split == "test" else "train",
        label_column=label_column,
        id_columns=id_columns,
        feature_columns=feature_columns,
        read_labels=False,
        expected=_spec(info),
    )
    if (source.input.dtype, source.input.shape) != (info.dtype, info.shape):
        raise DataError(
            f"{path}: its rows are {source.input.dtype} {list(source.input.shape)}, but {info.name} version "
            f"{info.version} takes {info.dtype} {list(info.shape)}; convert the data or choose another model"
        )
    try:
        refuse_clash(id_columns)
    except ValueError as error:
        raise DataError(f"{path}: {error}") from error
    table = pa.concat_tables(_tables(client, source, info, timeout))
    return Assigned(info.name, info.version, info.cluster_names, table)


def write_table(table: pa.Table, path: Path) -> None:
    """Write the result as Parquet, CSV or NPY (the clusters alone), atomically.

    Raises
    ------
    DataError
        If the suffix is none of these, or the file is NPY and a row has no cluster.
    OSError
        If it cannot be written.
    """
    refuse_suffix(path)
    if path.suffix == ".npy" and table["cluster"].null_count:
        raise DataError(
            f"{path}: {table['cluster'].null_count} rows have no cluster, which .npy cannot say; "
            "write .parquet instead"
        )
    staging = path.with_name(f".{path.name}.{uuid.uuid4().hex}.tmp")
    try:
        with staging.open("wb") as file:
            if path.suffix == ".parquet":
                pq.write_table(table, file)
            elif path.suffix == ".csv":
                pacsv.write_csv(table, file)
            else:
                np.save(file, table["cluster"].to_numpy())
        os.replace(staging, path)
    finally:
        staging.unlink(missing_ok=True)


def refuse_suffix(path: Path) -> None:
    """Raise `DataError` unless `write_table` can write such a file."""
    if path.suffix not in OUTPUT_SUFFIXES:
        raise DataError(f"{path}: cannot write this format; end the name in {', '.join(OUTPUT_SUFFIXES)}")


def _spec(info: ModelInfo) -> InputSpec:
    return InputSpec.model_validate({"dtype": info.dtype, "shape": info.shape, "meaning": info.meaning})


def _tables(client: ClusterClient, source: Source, info: ModelInfo, timeout: float) -> Iterator[pa.Table]:
    for chunk in source.chunks(chunk_rows=_CHUNK_ROWS):
        good = np.ones(len(chunk), bool)
        good[list(chunk.errors)] = False
        clusters, confidences = np.empty(0, np.int64), np.empty(0, np.float32)
        if good.any():
            x = chunk.x[good] if chunk.errors else chunk.x
            result = client.assign(x, model=info.name, version=info.version, timeout=timeout)
            clusters, confidences = result.clusters, result.confidences
        yield labelled_table(chunk.start, chunk.ids, clusters, confidences, chunk.errors)
