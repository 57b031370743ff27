"""A data set's rows, opened for a model, assigned chunk by chunk, and the table that comes of it.

One row out per row in, in the same order: ``row``, the id columns, ``cluster``, ``confidence``, ``error``.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa

from serving.bundle import InputSpec
from serving.readers import Chunk, DataError, Source, Split, open_source

Assign = Callable[[np.ndarray], tuple[np.ndarray, np.ndarray]]
"""Clusters (int64) and confidences (float32) of rows ``(n_rows, *row_shape)``, ``n_rows >= 1``."""

COLUMNS = {
    "row": pa.int64(),
    "cluster": pa.int64(),
    "confidence": pa.float32(),
    "error": pa.string(),
}


def open_for_model(
    path: Path,
    spec: InputSpec,
    model: str,
    *,
    split: Split,
    label_column: str | None,
    id_columns: tuple[str, ...],
    feature_columns: tuple[str, ...],
) -> Source:
    """Open the data set at ``path``, to have its rows assigned by a model that takes ``spec``.

    Parameters
    ----------
    model
        What to call the model in messages.
    split, label_column, id_columns, feature_columns
        See `serving.readers.open_source`.

    Raises
    ------
    DataError
        If the data cannot be read, its rows are not what the model takes, or an id column is named like one
        of the output's own.
    """
    clash = sorted(set(id_columns) & set(COLUMNS))
    if clash:
        raise DataError(
            f"{path}: the output has columns {list(COLUMNS)} of its own; rename the id column {clash[0]!r}"
        )
    source = open_source(
        path,
        split=split,
        label_column=label_column,
        id_columns=id_columns,
        feature_columns=feature_columns,
        read_labels=False,
        expected=spec,
    )
    found = source.input
    if (found.dtype, found.shape) != (spec.dtype, spec.shape):
        raise DataError(
            f"{path}: its rows are {found.dtype} {list(found.shape)}, but {model} takes {spec.dtype} "
            f"{list(spec.shape)}; convert the data, or choose another model"
        )
    return source


def label_chunk(chunk: Chunk, assign: Assign) -> pa.Table:
    """Table of the rows of ``chunk``.

    A row that could not be read, or for which the model has no finite probabilities, has a null cluster and
    confidence, and says why in ``error``.
    """
    n_rows, errors = len(chunk), dict(chunk.errors)
    good = np.ones(n_rows, bool)
    good[list(errors)] = False
    clusters, confidences = np.zeros(n_rows, np.int64), np.zeros(n_rows, np.float32)
    if good.any():
        clusters[good], confidences[good] = assign(chunk.x[good] if errors else chunk.x)
    for row in np.flatnonzero(~np.isfinite(confidences)):
        good[row] = False
        errors[int(row)] = "the model has no finite probabilities for it; its values are too large"
    columns = {
        "row": pa.array(np.arange(chunk.start, chunk.start + n_rows), COLUMNS["row"]),
        **({} if chunk.ids is None else {name: chunk.ids.column(name) for name in chunk.ids.column_names}),
        "cluster": pa.array(clusters, COLUMNS["cluster"], mask=~good),
        "confidence": pa.array(confidences, COLUMNS["confidence"], mask=~good),
        "error": pa.array([errors.get(i) for i in range(n_rows)], COLUMNS["error"]),
    }
    return pa.table(columns)


def count_clusters(table: pa.Table, n_clusters: int) -> np.ndarray:
    """Rows in each cluster, int64 ``(n_clusters,)``."""
    return np.bincount(table["cluster"].drop_null().to_numpy(), minlength=n_clusters)


def count_errors(table: pa.Table) -> int:
    """Rows without a cluster."""
    return len(table) - int(table["error"].null_count)
