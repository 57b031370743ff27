"""NPY (memory-mapped) and NPZ. Nothing is ever unpickled."""

from __future__ import annotations

import zipfile
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from serving.readers.arrays import ArraySource
from serving.readers.source import DataError, Split

_X_NAMES = ("x", "X", "data", "images", "features", "embeddings", "arr_0")
_Y_NAMES = ("y", "Y", "labels", "label", "target", "targets")


def open_npy(path: Path) -> ArraySource:
    """Rows of an NPY file, memory-mapped.

    Raises
    ------
    DataError
        If the file is not NPY, is truncated, or holds objects.
    """
    try:
        with path.open("rb") as file:
            version = np.lib.format.read_magic(file)
            read = np.lib.format.read_array_header_1_0
            if version != (1, 0):
                read = np.lib.format.read_array_header_2_0
            shape, _, dtype = read(file)
            present = path.stat().st_size - file.tell()
        _refuse_objects(path, dtype)
        needed = int(np.prod(shape, dtype=object)) * dtype.itemsize
        if present < needed:
            raise DataError(
                f"{path}: truncated: shape {shape} of {dtype} takes {needed} bytes, {present} are there; "
                "write or copy it again"
            )
        x = np.load(path, mmap_mode="r" if needed else None, allow_pickle=False)
    except DataError:
        raise
    except (ValueError, EOFError) as error:
        raise DataError(f"{path}: not a readable NPY file: {error}; write it with numpy.save") from error
    return ArraySource(path, (path,), x)


def open_npz(
    path: Path,
    *,
    split: Split,
    label_column: str | None,
    id_columns: Sequence[str],
    feature_columns: Sequence[str],
    read_labels: bool,
) -> ArraySource:
    """Rows of one array of an NPZ file, with labels and ids from others.

    The rows are the array named by ``feature_columns``, or else the first there is of ``x``, ``X``,
    ``data``, ``images``, ``features``, ``embeddings``, ``arr_0``, also as ``x_train`` or ``train_images``
    for the split; labels likewise by ``label_column``, or ``y``, ``labels``, ``target``.

    Raises
    ------
    DataError
        If the file is not NPZ or damaged, or an array is not there; the message lists those that are.
    """
    try:
        with path.open("rb") as file, np.load(file, allow_pickle=False) as arrays:
            names = arrays.files
            x_name = _pick(path, names, feature_columns, _X_NAMES, split)
            if x_name is None:
                raise DataError(
                    f"{path}: holds the arrays {names}, none of them named like rows "
                    f"({', '.join(_X_NAMES)}); name one with --feature-columns"
                )
            y_name = _pick(path, names, [label_column] if label_column else [], _Y_NAMES, split)
            x = arrays[x_name]
            y = arrays[y_name] if y_name and read_labels else None
            ids = {name: arrays[_known(path, names, name)] for name in id_columns}
    except DataError:
        raise
    except (ValueError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        raise DataError(
            f"{path}: not a readable NPZ file: {error}; write it with numpy.savez, without objects"
        ) from error
    for name, column in ids.items():
        if column.shape != x.shape[:1]:
            raise DataError(f"{path}: id array {name!r} has shape {column.shape} for {len(x)} rows")
    table = None
    if ids:
        import pyarrow as pa

        table = pa.table(ids)
    return ArraySource(path, (path,), x, y, table)


def _refuse_objects(path: Path, dtype: np.dtype) -> None:
    if dtype.hasobject:
        raise DataError(
            f"{path}: holds Python objects, which are never unpickled; save it as uint8 or a float type"
        )


def _pick(
    path: Path, names: list[str], asked: Sequence[str], usual: tuple[str, ...], split: str
) -> str | None:
    if len(asked) > 1:
        raise DataError(f"{path}: one array holds the rows of an NPZ file; name one, not {list(asked)}")
    if asked:
        return _known(path, names, asked[0])
    return next((name for name in _candidates(usual, split) if name in names), None)


def _candidates(usual: tuple[str, ...], split: str) -> Iterator[str]:
    for name in usual:
        yield name
        yield f"{name}_{split}"
        yield f"{split}_{name}"


def _known(path: Path, names: list[str], name: str) -> str:
    if name not in names:
        raise DataError(f"{path}: has no array {name!r}; it holds {names}")
    return name
