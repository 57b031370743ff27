"""Arrow data in memory to an array of rows."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa

from serving.readers.columns import ColumnChoice, assign_roles
from serving.readers.decode import ImageRows, ListRows, NumericRows, RowDecoder
from serving.readers.source import DataError


def rows_of_arrow(
    data: pa.Table | pa.RecordBatch | pa.Array | pa.ChunkedArray,
) -> tuple[np.ndarray, tuple[str, ...]]:
    """Rows of ``data``, uint8 or float32 ``(n_rows, *row_shape)``, and their columns if they have names.

    A table's columns are chosen as those of a file; an array is the only column. ``data`` may also be what
    hands out a table through Arrow's PyCapsule interface, as data frames do.

    Raises
    ------
    DataError
        If it is empty, its columns do not make up a row, or a row cannot be read: the first one is named.
    """
    try:
        table = pa.table({"rows": data} if isinstance(data, pa.Array | pa.ChunkedArray) else data)
    except (TypeError, pa.ArrowInvalid) as error:
        raise DataError(f"{type(data).__name__} is no Arrow array and hands out no table: {error}") from error
    # A data frame of pandas brings its index along, which is no part of a row.
    index = (table.schema.pandas_metadata or {}).get("index_columns", [])
    table = table.drop_columns([name for name in index if isinstance(name, str)])
    if not table.num_rows:
        raise DataError("the Arrow data has no rows")
    roles = assign_roles(Path("the Arrow data"), table.schema, ColumnChoice())
    decoder: RowDecoder = NumericRows(roles)
    if roles.kind != "numeric":
        column = roles.features[0]
        build = ImageRows if roles.kind == "image" else ListRows
        try:
            decoder = build(column, table.column(column).combine_chunks(), None)
        except ValueError as error:
            raise DataError(f"column {column!r}: {error}") from error
    x, errors = decoder.decode(table)
    if errors:
        row = min(errors)
        raise DataError(f"row {row}: {errors[row]} ({len(errors)} such rows of {len(x)})")
    return x, decoder.input.columns
