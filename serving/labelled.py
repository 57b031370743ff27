"""The table that labelling writes: one row out per row in, same order."""

from __future__ import annotations

import numpy as np
import pyarrow as pa

COLUMNS = {
    "row": pa.int64(),
    "cluster": pa.int64(),
    "confidence": pa.float32(),
    "error": pa.string(),
}


def refuse_clash(id_columns: tuple[str, ...]) -> None:
    """Raise `ValueError` if an id column is named like one that labelling writes."""
    clash = sorted(set(id_columns) & set(COLUMNS))
    if clash:
        raise ValueError(
            f"the output has columns {list(COLUMNS)} of its own; rename the id column {clash[0]!r}"
        )


def labelled_table(
    start: int,
    ids: pa.Table | None,
    clusters: np.ndarray,
    confidences: np.ndarray,
    errors: dict[int, str],
) -> pa.Table:
    """Table of consecutive rows: ``row``, the id columns, ``cluster``, ``confidence``, ``error``.

    Parameters
    ----------
    start
        Index of the first row in the data set.
    ids
        The id columns, one row per row, or ``None``.
    clusters, confidences
        int64 and float32 ``(n_rows - len(errors),)``: the model's answers for the rows without error.
    errors
        For each row that was not assigned, by its offset, why. Its cluster and confidence become null.
    """
    n_rows = len(clusters) + len(errors)
    failed = np.zeros(n_rows, bool)
    failed[list(errors)] = True
    all_clusters = np.zeros(n_rows, np.int64)
    all_clusters[~failed] = clusters
    all_confidences = np.zeros(n_rows, np.float32)
    all_confidences[~failed] = confidences
    columns = {
        "row": pa.array(np.arange(start, start + n_rows), COLUMNS["row"]),
        **({} if ids is None else {name: ids.column(name) for name in ids.column_names}),
        "cluster": pa.array(all_clusters, COLUMNS["cluster"], mask=failed),
        "confidence": pa.array(all_confidences, COLUMNS["confidence"], mask=failed),
        "error": pa.array([errors.get(i) for i in range(n_rows)], COLUMNS["error"]),
    }
    return pa.table(columns)
