"""What callers have, as rows that can be sent: numpy arrays, Arrow tables and arrays, images."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Protocol, TypeAlias, cast

import numpy as np

if TYPE_CHECKING:
    import pyarrow as pa
    from PIL.Image import Image

    class ArrowStream(Protocol):
        """A table of any library, by Arrow's PyCapsule interface."""

        def __arrow_c_stream__(self, requested_schema: object | None = None) -> object: ...

    # Images are PIL's, or encoded (PNG, JPEG, BMP, WebP); all of one size.
    Rows: TypeAlias = (
        np.ndarray
        | pa.Table
        | pa.RecordBatch
        | pa.Array
        | pa.ChunkedArray
        | ArrowStream
        | Sequence[Image]
        | Sequence[bytes]
    )


def as_rows(x: Rows) -> tuple[np.ndarray, tuple[str, ...]]:
    """``x`` as it is sent: uint8 or float32, little-endian, C-contiguous, rows first; and its columns' names.

    Parameters
    ----------
    x
        An array ``(n_rows, *row_shape)`` of uint8 or a float type; an Arrow table or record batch, or a data
        frame that hands one out (polars', and pandas' from 2.2, less its index), of which the only image
        column, else the only list column, else all numeric columns are the row, as when `nvisa-label` reads a
        file; an Arrow array of lists or encoded images; or a list of images. Numeric columns have names,
        which the server compares with the model's.

    Raises
    ------
    ValueError
        If it is none of these, a row is missing or broken (the first one is named), or images differ in size.
    ImportError
        If pyarrow, or Pillow for images, is not installed: ``pip install 'nvisa[data]'``.
    """
    columns: tuple[str, ...] = ()
    if type(x).__module__.partition(".")[0] == "pyarrow" or hasattr(x, "__arrow_c_stream__"):
        try:
            from serving.readers.arrow import rows_of_arrow
        except ImportError as error:
            raise ImportError(f"a table needs pyarrow: pip install 'nvisa[data]' ({error})") from error

        array, columns = rows_of_arrow(cast(Any, x))
    elif _are_images(x):
        from serving.readers.images import rows_of_images

        array = rows_of_images(cast("Sequence[Image | bytes]", x))
    else:
        array = np.asarray(x)
    if array.ndim == 0:
        raise ValueError("x is a single number; its first axis must be rows")
    if array.dtype != np.uint8 and array.dtype.kind != "f":
        raise ValueError(
            f"x has dtype {array.dtype}; convert it to uint8 (images) or float32 (features), as the model "
            "has it"
        )
    with np.errstate(over="ignore"):
        rows = np.ascontiguousarray(array, np.uint8 if array.dtype == np.uint8 else "<f4")
    if rows.dtype.itemsize < array.dtype.itemsize:
        _refuse_overflow(array, rows)
    return rows, columns


def _refuse_overflow(array: np.ndarray, rows: np.ndarray) -> None:
    """Name the first row that is finite in ``array`` and not in ``rows``; the server names the others."""
    with np.errstate(over="ignore", invalid="ignore"):
        if np.isfinite(rows.sum()):
            return
    beyond = (np.isfinite(array) & ~np.isfinite(rows)).reshape(len(rows), -1).any(axis=1)
    if beyond.any():
        raise ValueError(
            f"row {int(beyond.argmax())} has a value beyond float32's largest, 3.4e38, which is what is sent "
            f"({int(beyond.sum())} such rows of {len(rows)}); rescale as the training data was"
        )


def _are_images(x: object) -> bool:
    if not isinstance(x, (list, tuple)) or not x:
        return False
    return isinstance(x[0], bytes) or type(x[0]).__module__.partition(".")[0] == "PIL"
