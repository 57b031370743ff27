"""The own binary files of CIFAR-10, CIFAR-100 and STL-10: records of one size, without a header.

What they are is known by their names alone, those of the published archives:

- CIFAR-10, ``data_batch_1.bin`` ... and ``test_batch.bin``: a label, then 32 x 32 pixels by channel;
- CIFAR-100, ``train.bin`` and ``test.bin``: a coarse and a fine label, then the same;
- STL-10, ``train_X.bin`` and ``test_X.bin``: 96 x 96 pixels channel by channel and column by column, with
  labels from 1 to 10 in ``train_y.bin`` and ``test_y.bin``; ``unlabeled_X.bin`` is read where it is
  named alone.

The "python versions" of CIFAR are pickles, which can run code when they are opened, and are refused.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import NamedTuple

import numpy as np

from serving.readers.arrays import ArraySource
from serving.readers.source import DataError, Split

COARSE, FINE = "coarse", "fine"
_PICKLED = re.compile(r"data_batch_\d|test_batch|batches\.meta|train|test|meta")


class _Form(NamedTuple):
    name: str
    train: re.Pattern[str]
    test: re.Pattern[str]
    record: np.dtype[np.void]
    labels: tuple[str, ...]
    order: tuple[int, ...]  # from a record's axes to (row, column, channel)


def _form(
    name: str, train: str, test: str, side: int, labels: tuple[str, ...], order: tuple[int, ...]
) -> _Form:
    fields = [(label, "u1") for label in labels]
    record = np.dtype([*fields, ("image", "u1", (3, side, side))])
    return _Form(name, re.compile(train), re.compile(test), record, labels, order)


_BY_CHANNEL, _BY_COLUMN = (0, 2, 3, 1), (0, 3, 2, 1)
_FORMS = (
    _form("CIFAR-10", r"data_batch_\d+\.bin", r"test_batch\.bin", 32, (FINE,), _BY_CHANNEL),
    _form("CIFAR-100", r"train\.bin", r"test\.bin", 32, (COARSE, FINE), _BY_CHANNEL),
    _form("STL-10", r"train_X\.bin", r"test_X\.bin", 96, (), _BY_COLUMN),
    _form("STL-10", r"unlabeled_X\.bin", r"unlabeled_X\.bin", 96, (), _BY_COLUMN),
)
_IN_FOLDERS = _FORMS[:3]


def find_records(path: Path, split: Split) -> tuple[Path, ...] | None:
    """The files with the images of ``split`` in a folder, or the file ``path``; ``None`` if it is none.

    Raises
    ------
    DataError
        If the folder has the other split only, or holds the pickles of a python version.
    """
    if not path.is_dir():
        return (path,) if any(_matches(form, path) for form in _FORMS) else None
    files = sorted(file for file in path.iterdir() if file.is_file())
    for form in _IN_FOLDERS:
        if any(_matches(form, file) for file in files):
            wanted = form.train if split == "train" else form.test
            found = tuple(file for file in files if wanted.fullmatch(file.name))
            if not found:
                raise DataError(
                    f"{path}: has no file of {form.name} for split {split!r}; choose the other one"
                )
            return found
    pickles = [file for file in files if _PICKLED.fullmatch(file.name)]
    if pickles and {"meta", "batches.meta"} & {file.name for file in pickles}:
        refuse_pickle(pickles[0])
    return None


def refuse_pickle(path: Path) -> None:
    """Raise `DataError` if ``path`` has a name of CIFAR's python version and begins as pickles do."""
    if _PICKLED.fullmatch(path.name) and path.is_file():
        with path.open("rb") as file:
            begin = file.read(2)
        if begin[:1] == b"\x80":
            raise DataError(
                f"{path}: is of CIFAR's python version, a pickle, which can run code when it is opened and "
                "never is here; take the binary version (cifar-10-binary.tar.gz, cifar-100-binary.tar.gz)"
            )


def open_records(
    path: Path, files: tuple[Path, ...], *, label_column: str | None, read_labels: bool
) -> ArraySource:
    """Rows ``(height, width, 3)`` of the ``files`` that `find_records` found, one after the other.

    Parameters
    ----------
    path
        What the user named.
    label_column
        Of CIFAR-100, ``fine`` (100 classes, the default) or ``coarse`` (20).
    read_labels
        ``False`` leaves labels unread.

    Raises
    ------
    DataError
        If a file is not a whole number of records, or labels do not fit.
    """
    form = next(form for form in _FORMS if _matches(form, files[0]))
    if label_column is not None and label_column not in form.labels:
        there = f"; it has {' and '.join(form.labels)}" if form.labels else ""
        raise DataError(f"{path}: {form.name} has no column of labels {label_column!r}{there}")
    parts = [_records(file, form) for file in files]
    records = parts[0] if len(parts) == 1 else np.concatenate(parts)
    labels: np.ndarray | None = None
    if read_labels and form.labels:
        labels = np.asarray(records[label_column or FINE])
    elif read_labels:
        labels, beside = _labels_beside(files[0])
        files = (*files, *beside)
    return ArraySource(path, files, records["image"].transpose(form.order), labels)


def _matches(form: _Form, path: Path) -> bool:
    return bool(form.train.fullmatch(path.name) or form.test.fullmatch(path.name))


def _records(path: Path, form: _Form) -> np.ndarray:
    size = path.stat().st_size
    if size == 0 or size % form.record.itemsize:
        raise DataError(
            f"{path}: {size} bytes are not a whole number of {form.name}'s records of "
            f"{form.record.itemsize}; copy or download it again"
        )
    return np.memmap(path, form.record, mode="r")


def _labels_beside(images: Path) -> tuple[np.ndarray | None, tuple[Path, ...]]:
    path = images.with_name(images.name.replace("_X", "_y"))
    if not path.exists():
        return None, ()
    labels = np.fromfile(path, np.uint8)
    if len(labels) and labels.min() == 0:
        raise DataError(f"{path}: holds the label 0; STL-10's are 1 to 10: copy or download it again")
    return labels.astype(np.int64) - 1, (path,)
