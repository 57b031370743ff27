"""Files of features: from tables of rows to one NPY, NPZ or Parquet file, a table at a time."""

from __future__ import annotations

import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Any, BinaryIO

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from serving.files import remove_leftovers, write_atomically
from training.backbone import BackboneError

SUFFIXES = (".npy", ".npz", ".parquet")
ROW, VECTOR, LABEL = "row", "features", "label"

Tables = Callable[[], Iterator[pa.Table]]
"""Gives all tables in order, each time it is called."""


def check_suffix(path: Path) -> None:
    """Raise `BackboneError` unless ``path`` is named like a file that can be written."""
    if path.suffix not in SUFFIXES:
        raise BackboneError(f"--output {path}: must end in {', '.join(SUFFIXES)}")


def table_of(
    rows: np.ndarray, vectors: np.ndarray, labels: np.ndarray | None, ids: pa.Table | None
) -> pa.Table:
    """A table of features.

    Parameters
    ----------
    rows
        Index of each row in its source, int64 ``(n,)``.
    vectors
        float32 ``(n, C)``.
    labels
        ``(n,)``, whole numbers or text, or ``None``.
    ids
        Columns to keep beside them, or ``None``.
    """
    columns: dict[str, Any] = {ROW: pa.array(rows)}
    columns[VECTOR] = pa.FixedSizeListArray.from_arrays(pa.array(vectors.ravel()), vectors.shape[1])
    if labels is not None:
        columns[LABEL] = pa.array(labels)
    if ids is not None:
        columns |= {name: ids.column(name) for name in ids.column_names}
    return pa.table(columns)


def vectors_of(table: pa.Table) -> np.ndarray:
    """The features of a table, float32 ``(n, C)``."""
    column = table.column(VECTOR)
    return np.asarray(column.combine_chunks().flatten()).reshape(len(column), column.type.list_size)


def write_features(path: Path, tables: Tables, n_rows: int, width: int) -> None:
    """Write all tables to ``path``, atomically; its suffix decides the format.

    Parquet gets all columns. NPZ gets the features as ``x``, ``row``, and the labels as ``y``, numbered in
    alphabetical order where they are text (``label_names`` has the text). NPY holds the features alone.

    Parameters
    ----------
    n_rows, width
        Of all tables together.
    """
    remove_leftovers(path)

    def write(file: BinaryIO) -> None:
        if path.suffix == ".npy":
            _write_npy(file, tables, n_rows, width)
        elif path.suffix == ".npz":
            _write_npz(file, tables, n_rows, width)
        else:
            _write_parquet(file, tables)

    write_atomically(path, write)


def _write_npy(file: IO[bytes], tables: Tables, n_rows: int, width: int) -> None:
    header = {"descr": "<f4", "fortran_order": False, "shape": (n_rows, width)}
    np.lib.format.write_array_header_1_0(file, header)
    for table in tables():
        file.write(vectors_of(table).astype("<f4", copy=False).tobytes())


def _write_npz(file: IO[bytes], tables: Tables, n_rows: int, width: int) -> None:
    small: dict[str, list[np.ndarray]] = {ROW: [], LABEL: []}
    for table in tables():
        for name in set(small) & set(table.column_names):
            small[name].append(table.column(name).to_numpy())
    arrays = {ROW: np.concatenate(small[ROW])}
    if small[LABEL]:
        labels = np.concatenate(small[LABEL])
        if labels.dtype == object:
            names, labels = np.unique(labels.astype(str), return_inverse=True)
            arrays["label_names"] = names
        arrays["y"] = labels
    with zipfile.ZipFile(file, "w", zipfile.ZIP_STORED, allowZip64=True) as archive:
        with archive.open("x.npy", "w", force_zip64=True) as member:
            _write_npy(member, tables, n_rows, width)
        for name, array in arrays.items():
            with archive.open(f"{name}.npy", "w", force_zip64=True) as member:
                np.lib.format.write_array(member, array, allow_pickle=False)


def _write_parquet(file: BinaryIO, tables: Tables) -> None:
    writer: pq.ParquetWriter | None = None
    for table in tables():
        if writer is None:
            writer = pq.ParquetWriter(file, table.schema, use_dictionary=False, write_page_checksum=True)
        if len(table):
            writer.write_table(table)
    if writer is not None:
        writer.close()
