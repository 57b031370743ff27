"""Sources over numpy arrays, in memory or memory-mapped: what IDX, NPY and NPZ come down to."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from serving.readers.source import Chunk, DataError, Source, input_spec

if TYPE_CHECKING:
    import pyarrow as pa


class ArraySource(Source):
    """Rows of an array.

    Parameters
    ----------
    path, files
        See `Source`.
    x
        ``(n_rows, ...)``: uint8 stays uint8; booleans, other integers and floats become float32. A
        one-dimensional array is one feature per row.
    labels
        ``(n_rows,)`` or ``(n_rows, 1)``, integral, or ``None``.
    ids
        Id columns, or ``None``.
    """

    def __init__(
        self,
        path: Path,
        files: tuple[Path, ...],
        x: np.ndarray,
        labels: np.ndarray | None = None,
        ids: pa.Table | None = None,
    ) -> None:
        x = x.reshape(-1, 1) if x.ndim == 1 else x
        spec = input_spec("uint8" if x.dtype == np.uint8 else "float32", _row_shape(path, x))
        super().__init__(path, files, len(x), spec, has_labels=labels is not None)
        self._x = x
        self._labels = None if labels is None else integer_labels(path, labels, len(x))
        self._ids = ids

    @property
    def array(self) -> np.ndarray | None:
        """See `Source.array`; ``None`` where a row's values are not next to each other."""
        return self._x if self._x.flags.c_contiguous else None

    def _chunks(self, start: int, stop: int, chunk_rows: int) -> Iterator[Chunk]:
        for first in range(start, stop, chunk_rows):
            rows = slice(first, min(first + chunk_rows, stop))
            x = self._x[rows]
            errors: dict[int, str] = {}
            if self.input.dtype == "float32":
                x, errors = finite_float32(x)
            yield Chunk(
                start=first,
                x=np.ascontiguousarray(x),
                labels=None if self._labels is None else self._labels[rows],
                ids=None if self._ids is None else self._ids.slice(first, rows.stop - first),
                errors=errors,
            )


def finite_float32(x: np.ndarray, columns: Sequence[str] | None = None) -> tuple[np.ndarray, dict[int, str]]:
    """``x`` in float32 with every row zeroed that holds NaN or infinity, and what was wrong with those.

    Parameters
    ----------
    x
        ``(n_rows, ...)``, any real dtype.
    columns
        Names of the features, for the messages.
    """
    with np.errstate(over="ignore"):  # what is too large becomes infinite, and is reported below
        x = np.asarray(x, np.float32)
    finite = np.isfinite(x).reshape(len(x), -1)
    errors: dict[int, str] = {}
    bad_rows = np.flatnonzero(~finite.all(axis=1))
    if len(bad_rows):
        x = x.copy()
        x[bad_rows] = 0
    for row in bad_rows:
        bad = np.flatnonzero(~finite[row])
        where = f"column {columns[bad[0]]!r}" if columns else f"value {bad[0]}"
        errors[int(row)] = (
            f"{len(bad)} of {finite.shape[1]} values missing, NaN, infinite or beyond float32, first {where}"
        )
    return x, errors


def integer_labels(path: Path, labels: np.ndarray, n_rows: int) -> np.ndarray:
    """Labels as int64 ``(n_rows,)``.

    Raises
    ------
    DataError
        If their number differs from the rows', or they are not whole numbers.
    """
    if labels.shape == (n_rows, 1):
        labels = labels[:, 0]
    if labels.shape != (n_rows,):
        raise DataError(
            f"{path}: labels have shape {labels.shape} for {n_rows} rows; there must be one per row"
        )
    if labels.dtype.kind not in "buif" or (labels.dtype.kind == "f" and not _whole(labels)):
        raise DataError(f"{path}: labels of type {labels.dtype} are not whole numbers; encode them first")
    return labels.astype(np.int64)


def _whole(values: np.ndarray) -> bool:
    return bool(np.isfinite(values).all() and (values == np.floor(values)).all())


def _row_shape(path: Path, x: np.ndarray) -> tuple[int, ...]:
    if x.ndim == 0:
        raise DataError(f"{path}: holds a single number; the first axis must be rows")
    if x.dtype.kind not in "buif":
        raise DataError(
            f"{path}: holds values of type {x.dtype}; save it as uint8 (images) or a float type (features)"
        )
    if 0 in x.shape:
        raise DataError(f"{path}: has shape {x.shape}: no rows or no values; pass a file that has some")
    return x.shape[1:]
