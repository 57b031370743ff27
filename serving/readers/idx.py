"""IDX, the format of MNIST and its kin: a magic number, the sizes, then big-endian values."""

from __future__ import annotations

import gzip
import re
import zlib
from pathlib import Path

import numpy as np

from serving.readers.arrays import ArraySource
from serving.readers.source import DataError, Split

_TYPES = {0x08: "u1", 0x09: "i1", 0x0B: ">i2", 0x0C: ">i4", 0x0D: ">f4", 0x0E: ">f8"}
_PREFIX: dict[str, str] = {"train": "train", "test": "t10k"}
_IMAGES = re.compile(r"^(?P<prefix>.*)images(?P<a>[-.])idx3(?P<b>[-.])ubyte(?P<gz>\.gz)?$")
_IDX_NAME = re.compile(r"idx\d?([-.]ubyte)?(\.gz)?$")


def is_idx_name(name: str) -> bool:
    """Whether a file name ends as IDX files do: ``...-idx3-ubyte``, ``.idx3-ubyte``, ``.idx``, ``.gz``."""
    return _IDX_NAME.search(name) is not None


def find_images(folder: Path, split: Split) -> Path | None:
    """Find the images file of ``split`` in a folder with MNIST's names, or ``None`` if it has none at all.

    Raises
    ------
    DataError
        If the folder has such files, but not for this split.
    """
    named = {path: match for path in sorted(folder.iterdir()) if (match := _IMAGES.match(path.name))}
    if not named:
        return None
    wanted = [path for path, match in named.items() if match["prefix"].rstrip("-_.") == _PREFIX[split]]
    if not wanted:
        raise DataError(
            f"{folder}: has no {_PREFIX[split]}-images-idx3-ubyte[.gz] for split {split!r}, only "
            f"{[path.name for path in named]}; choose another split or name one of the files"
        )
    return wanted[0]


def open_idx(path: Path, images: Path, *, read_labels: bool = True) -> ArraySource:
    """Rows of the IDX file ``images``, with the labels of the file beside it if there is one.

    Compressed files are unpacked in memory, others are memory-mapped.

    Parameters
    ----------
    path
        What the user named: the file or its folder.
    images
        The file with the rows.
    read_labels
        Look for ``...labels-idx1-ubyte`` beside it.

    Raises
    ------
    DataError
        If a file is not IDX, is truncated or too long, or holds one number per row.
    """
    x = _read(images)
    if x.ndim < 2:
        raise DataError(
            f"{images}: holds one number per row; if these are labels, pass the images file instead"
        )
    labels_file = _labels_beside(images) if read_labels else None
    if labels_file is None:
        return ArraySource(path, (images,), x)
    return ArraySource(path, (images, labels_file), x, _read(labels_file))


def _labels_beside(images: Path) -> Path | None:
    match = _IMAGES.match(images.name)
    if match is None:
        return None
    candidates = [
        images.with_name(f"{match['prefix']}labels{separator}idx1{match['b']}ubyte{suffix}")
        for separator in dict.fromkeys([match["a"], "-", "."])
        for suffix in ("", ".gz")
    ]
    return next((path for path in candidates if path.is_file()), None)


def _read(path: Path) -> np.ndarray:
    packed = path.suffix == ".gz"
    try:
        data = np.frombuffer(gzip.decompress(path.read_bytes()), "u1") if packed else _mapped(path)
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise DataError(f"{path}: not a whole gzip file: {error}; copy or download it again") from error
    header = data[:4].tobytes()
    if len(header) < 4 or header[:2] != b"\0\0" or header[2] not in _TYPES or header[3] == 0:
        raise DataError(
            f"{path}: not an IDX file: it begins with 0x{header.hex()}, not 0x0000, a type and a rank"
        )
    dtype, rank = np.dtype(_TYPES[header[2]]), header[3]
    offset = 4 + 4 * rank
    if len(data) < offset:
        raise DataError(f"{path}: truncated within its header; copy or download it again")
    shape = tuple(int(n) for n in np.frombuffer(data[4:offset].tobytes(), ">u4"))
    needed = int(np.prod(shape, dtype=object)) * dtype.itemsize
    if len(data) - offset != needed:
        what = "truncated" if len(data) - offset < needed else "too long"
        raise DataError(
            f"{path}: {what}: shape {shape} of {dtype} takes {needed} bytes after the header, "
            f"{len(data) - offset} are there; copy or download it again"
        )
    return data[offset:].view(dtype).reshape(shape)


def _mapped(path: Path) -> np.ndarray:
    if path.stat().st_size == 0:  # an empty file cannot be mapped
        return np.empty(0, "u1")
    return np.memmap(path, "u1", mode="r")
