"""A data set's rows, opened for a model, assigned chunk by chunk, and the table that comes of it.

One row out per row in, in the same order: ``row``, the id columns, ``cluster``, ``confidence``, ``novelty``
if the model says it, and ``error``.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow as pa

from serving.manifest import InputSpec
from serving.readers import Chunk, DataError, Source, Split, open_source


class Labels(NamedTuple):
    """Labels of rows, each ``(n_rows,)``; ``novelty`` is ``None`` if the model does not say it."""

    clusters: np.ndarray  # int64
    confidences: np.ndarray  # float32
    novelty: np.ndarray | None  # float32


Assign = Callable[[np.ndarray], Labels]
"""Labels of rows ``(n_rows, *row_shape)``, ``n_rows >= 1``."""


def own_columns(novelty: bool) -> list[str]:
    """Names of the table's columns beside the id columns."""
    return ["row", "cluster", "confidence", *(["novelty"] if novelty else []), "error"]


def open_for_model(
    path: Path,
    spec: InputSpec,
    model: str,
    *,
    novelty: bool,
    split: Split,
    label_column: str | None,
    id_columns: tuple[str, ...],
    feature_columns: tuple[str, ...],
    resize: bool,
) -> Source:
    """Open the data set at ``path``, to have its rows assigned by a model that takes ``spec``.

    Parameters
    ----------
    model
        What to call the model in messages.
    novelty
        Whether the model says novelty.
    split, label_column, id_columns, feature_columns, resize
        See `serving.readers.open_source`.

    Raises
    ------
    DataError
        If the data cannot be read, its rows are not what the model takes, or an id column is named like one
        of the output's own.
    """
    own = own_columns(novelty)
    clash = sorted(set(id_columns) & set(own))
    if clash:
        raise DataError(f"{path}: the output has columns {own} of its own; rename the id column {clash[0]!r}")
    source = open_source(
        path,
        split=split,
        label_column=label_column,
        id_columns=id_columns,
        feature_columns=feature_columns,
        read_labels=False,
        expected=spec,
        resize=resize,
    )
    found = source.input
    if (found.dtype, found.shape) != (spec.dtype, spec.shape):  # its columns are as `open_source` found them
        convert = "convert the data" + (" (--resize does, of image files)" if spec.dtype == "uint8" else "")
        raise DataError(
            f"{path}: its rows are {found.dtype} {list(found.shape)}, but {model} takes {spec.dtype} "
            f"{list(spec.shape)}; {convert}, or choose another model"
        )
    return source


def label_chunk(chunk: Chunk, assign: Assign, novelty: bool = False) -> pa.Table:
    """Table of the rows of ``chunk``; with a column ``novelty`` if ``novelty``, which ``assign`` then gives.

    A row that could not be read, or for which the model has no finite probabilities, has a null cluster,
    confidence and novelty, and says why in ``error``.
    """
    n_rows, errors = len(chunk), dict(chunk.errors)
    good = np.ones(n_rows, bool)
    good[list(errors)] = False
    clusters, confidences = np.zeros(n_rows, np.int64), np.zeros(n_rows, np.float32)
    novelties = np.zeros(n_rows, np.float32)
    if good.any():
        labels = assign(chunk.x[good] if errors else chunk.x)
        clusters[good], confidences[good] = labels.clusters, labels.confidences
        if novelty:
            novelties[good] = labels.novelty
    for row in np.flatnonzero(~np.isfinite(confidences)):
        good[row] = False
        errors[int(row)] = "the model has no finite probabilities for it; its values are too large"
    columns = {
        "row": pa.array(np.arange(chunk.start, chunk.start + n_rows), pa.int64()),
        **({} if chunk.ids is None else {name: chunk.ids.column(name) for name in chunk.ids.column_names}),
        "cluster": pa.array(clusters, pa.int64(), mask=~good),
        "confidence": pa.array(confidences, pa.float32(), mask=~good),
        **({"novelty": pa.array(novelties, pa.float32(), mask=~good)} if novelty else {}),
        "error": pa.array([errors.get(i) for i in range(n_rows)], pa.string()),
    }
    return pa.table(columns)


def count_clusters(table: pa.Table, n_clusters: int) -> np.ndarray:
    """Rows in each cluster, int64 ``(n_clusters,)``."""
    return np.bincount(table["cluster"].drop_null().to_numpy(), minlength=n_clusters)


def count_errors(table: pa.Table) -> int:
    """Rows without a cluster."""
    return len(table) - int(table["error"].null_count)
