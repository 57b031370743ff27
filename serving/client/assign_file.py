"""Assign the rows of a file through a server, and show or write the result."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np
import pyarrow as pa
import pyarrow.csv as pacsv
import pyarrow.parquet as pq

from serving.client.messages import Version
from serving.client.status import refuse_unready
from serving.client.sync import ClusterClient
from serving.files import write_atomically
from serving.labelled import Labels, count_clusters, count_errors, label_chunk, open_for_model
from serving.manifest import InputSpec
from serving.readers import DataError, Split

OUTPUT_SUFFIXES = (".parquet", ".csv", ".npy")


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
        See `serving.labelled`.
    """

    model: str
    version: int
    cluster_names: tuple[str, ...]
    table: pa.Table

    @property
    def counts(self) -> np.ndarray:
        """int64 ``(n_clusters,)``: rows in each cluster."""
        return count_clusters(self.table, len(self.cluster_names))

    @property
    def mean_confidence(self) -> float | None:
        """Mean probability of the assigned cluster, or ``None`` if no row was assigned."""
        return self._mean("confidence")

    @property
    def mean_novelty(self) -> float | None:
        """Mean novelty, 0.5 for rows like the training data, or ``None`` if the model does not say it."""
        return self._mean("novelty") if "novelty" in self.table.column_names else None

    @property
    def n_errors(self) -> int:
        """Number of rows that could not be assigned."""
        return count_errors(self.table)

    def _mean(self, column: str) -> float | None:
        values = self.table[column].drop_null().to_numpy()
        return float(values.mean(dtype=np.float64)) if len(values) else None


def assign_file(
    client: ClusterClient,
    path: Path,
    *,
    model: str,
    version: Version = None,
    timeout: float,
    split: Split = "train",
    label_column: str | None = None,
    id_columns: tuple[str, ...] = (),
    feature_columns: tuple[str, ...] = (),
    resize: bool = False,
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
    refuse_unready(info, client.target)
    source = open_for_model(
        path,
        InputSpec.model_validate(
            {name: getattr(info, name) for name in ("dtype", "shape", "meaning", "columns")}
        ),
        f"{info.name} version {info.version}",
        novelty=info.has_novelty,
        split=split,
        label_column=label_column,
        id_columns=id_columns,
        feature_columns=feature_columns,
        resize=resize,
    )

    def assign(x: np.ndarray) -> Labels:
        result = client.assign(
            x, model=info.name, version=info.version, novelty=info.has_novelty, timeout=timeout
        )
        return Labels(result.clusters, result.confidences, result.novelty)

    table = pa.concat_tables(label_chunk(chunk, assign, info.has_novelty) for chunk in source.chunks())
    return Assigned(info.name, info.version, info.cluster_names, table)


def write_table(table: pa.Table, path: Path) -> None:
    """Write the result as Parquet, CSV or NPY (the clusters alone), by the suffix, atomically.

    Raises
    ------
    DataError
        If the file is NPY and a row has no cluster.
    OSError
        If it cannot be written.
    """
    if path.suffix == ".npy" and table["cluster"].null_count:
        raise DataError(
            f"{path}: {table['cluster'].null_count} rows have no cluster, which .npy cannot say; "
            "write .parquet instead"
        )

    def write(file: BinaryIO) -> None:
        if path.suffix == ".parquet":
            pq.write_table(table, file)
        elif path.suffix == ".csv":
            pacsv.write_csv(table, file)
        else:
            np.save(file, table["cluster"].to_numpy())

    write_atomically(path, write)


def refuse_output(path: Path) -> None:
    """Raise `DataError` unless `write_table` can write such a file there; asked before the work is done."""
    if path.suffix not in OUTPUT_SUFFIXES:
        raise DataError(f"{path}: cannot write this format; end the name in {', '.join(OUTPUT_SUFFIXES)}")
    if not path.parent.is_dir():
        raise DataError(f"{path}: there is no folder {path.parent}; make it first")
