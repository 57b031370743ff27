"""A source as an array on disk that is read in any order: the file itself, or its rows written out once."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from pathlib import Path
from typing import IO

import numpy as np

from serving.readers import DataError, Source, readable_chunks
from training.rows import n_bytes, sized


def mapped(
    source: Source, scratch: Path | None = None, say: Callable[[str], None] = lambda _: None
) -> tuple[np.ndarray, np.ndarray | None]:
    """Rows and labels of ``source`` without ever holding more than a chunk of the rows in RAM.

    A file whose rows can be read in any order is used as it is. Otherwise they are written, decoded and
    uncompressed, to a temporary file: rows may be stored class by class, so a shuffle takes any of them at
    any time. The file has no name, so that its room is free again when the process ends, however it ends.

    Parameters
    ----------
    source
        What to read.
    scratch
        Folder for the temporary file; ``None`` for the system's.
    say
        Hears of its size before it is written.

    Returns
    -------
    x, labels
        ``(n_rows, *shape)``, read-only, and int64 ``(n_rows,)`` or ``None``.

    Raises
    ------
    DataError
        If a row cannot be read, or ``scratch`` has no room or cannot be written.
    """
    x = source.array
    if x is not None and not source.has_labels:
        return x, None
    size = n_bytes(source.n_rows, source.input)
    folder = scratch or Path(tempfile.gettempdir())
    labels = []
    with nullcontext() if x is not None else _temporary(folder, size) as file:
        if file is not None:
            say(f"writing {sized(size)} of rows to a temporary file in {folder}, to be read in random order")
        for chunk in readable_chunks(source):
            if chunk.labels is not None:
                labels.append(chunk.labels)
            if file is not None:
                with _explained(folder, size):
                    file.write(chunk.x.data)
        if file is not None:
            file.flush()
            x = np.memmap(file, source.input.dtype, "r", shape=(source.n_rows, *source.input.shape))
    assert x is not None
    return x, np.concatenate(labels) if labels else None


@contextmanager
def _temporary(folder: Path, size: int) -> Iterator[IO[bytes]]:
    """A nameless file that has its room already: better no room now than after an hour of decoding."""
    with ExitStack() as stack:
        with _explained(folder, size):
            file = stack.enter_context(tempfile.TemporaryFile(dir=folder))
            if hasattr(os, "posix_fallocate"):  # not everywhere
                os.posix_fallocate(file.fileno(), 0, size)
        yield file


@contextmanager
def _explained(folder: Path, size: int) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise DataError(
            f"cannot write {sized(size)} of rows to {folder}: {error.strerror}; make room, name another "
            "folder with --scratch, or store the rows as one .npy file, which is read in place"
        ) from error
