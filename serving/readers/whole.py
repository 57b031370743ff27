"""A whole source, for training and scoring: here an unreadable row is an error."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from serving.readers.source import Chunk, DataError, Source

_SHOWN = 3


def readable_chunks(source: Source) -> Iterator[Chunk]:
    """All chunks of ``source``, and at the end an error if any row could not be read.

    Raises
    ------
    DataError
        If any row cannot be read: a corrupt image, another size than the rest, NaN or infinity.
    """
    n_bad = 0
    shown: list[str] = []
    for chunk in source.chunks():
        n_bad += len(chunk.errors)
        for offset, message in sorted(chunk.errors.items())[: _SHOWN - len(shown)]:
            name = "" if chunk.ids is None else f" ({_name_of(chunk.ids, offset)})"
            shown.append(f"row {chunk.start + offset}{name}: {message}")
        yield chunk
    if n_bad:
        more = f"; and {n_bad - len(shown)} more" if n_bad > len(shown) else ""
        raise DataError(
            f"{source.path}: {n_bad} of {source.n_rows} rows cannot be used: {'; '.join(shown)}{more}; "
            f"repair or remove them{_hint(shown, source.input.shape)}"
        )


def read_all(source: Source) -> tuple[np.ndarray, np.ndarray | None]:
    """All rows and labels of ``source``.

    Returns
    -------
    x, labels
        ``(n_rows, *shape)`` in the source's dtype, and int64 ``(n_rows,)`` or ``None``. Both are writable.

    Raises
    ------
    DataError
        If any row cannot be read, see `readable_chunks`.
    """
    x = np.empty((source.n_rows, *source.input.shape), source.input.dtype)
    labels = np.empty(source.n_rows, np.int64) if source.has_labels else None
    for chunk in readable_chunks(source):
        rows = slice(chunk.start, chunk.start + len(chunk))
        x[rows] = chunk.x
        if labels is not None and chunk.labels is not None:
            labels[rows] = chunk.labels
    return x, labels


def _hint(messages: list[str], shape: tuple[int, ...]) -> str:
    if len(shape) < 2:
        return ""
    # Not to where "4x4 colour, not 4x4 grey" is what is wrong.
    good = f": the image is {shape[1]}x{shape[0]} "
    other_size = any(": the image is " in message and good not in message for message in messages)
    return ", or bring all images to one size with --resize" if other_size else ""


def _name_of(ids: object, offset: int) -> str:
    row = ids.slice(offset, 1).to_pylist()[0]  # type: ignore[attr-defined]
    return ", ".join(str(value) for value in row.values())
