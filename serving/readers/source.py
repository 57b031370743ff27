"""What every reader gives: a source of rows, read in chunks."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np

from serving.manifest import InputSpec
from serving.readers.fingerprint import content_fingerprint, stat_fingerprint

if TYPE_CHECKING:
    import pyarrow as pa

Split = Literal["train", "test"]


class DataError(ValueError):
    """Data cannot be read as asked; the message says which file, what is wrong and what to do."""


@dataclass(frozen=True)
class Chunk:
    """Consecutive rows of a source.

    Attributes
    ----------
    start
        Index of the first row within the source.
    x
        ``(n_rows, *source.input.shape)`` in ``source.input.dtype``, C-contiguous; may be read-only. Zeros
        where a row could not be read.
    labels
        int64 ``(n_rows,)``, or ``None`` if the source has no labels or was opened without them.
    ids
        The id columns, one row per row of ``x``, or ``None``.
    errors
        For each unreadable row, by its offset in this chunk, what is wrong with it.
    """

    start: int
    x: np.ndarray
    labels: np.ndarray | None = None
    ids: pa.Table | None = None
    errors: dict[int, str] = field(default_factory=dict)

    def __len__(self) -> int:
        """Return the number of rows."""
        return len(self.x)


class Source(ABC):
    """A data set on disk. Not safe to read from several threads at once.

    Attributes
    ----------
    path
        What was opened.
    files
        The files that are read, in order; for a folder, those of the chosen split.
    n_rows
        Number of rows, at least 1.
    input
        What one row looks like: uint8 rows are images, everything else is float32 features.
    has_labels
        Whether chunks carry labels.
    features, left_out
        Names of the columns that make up a row, in order, and of those that nobody asked for and that are no
        part of it; empty where there are no columns.
    """

    features: tuple[str, ...] = ()
    left_out: tuple[str, ...] = ()

    def __init__(
        self, path: Path, files: tuple[Path, ...], n_rows: int, spec: InputSpec, *, has_labels: bool
    ) -> None:
        if n_rows == 0:
            raise DataError(f"{path}: holds no rows; pass a file with at least one")
        self.path = path
        self.files = files
        self.n_rows = n_rows
        self.input = spec
        self.has_labels = has_labels

    @property
    def label_names(self) -> tuple[str, ...] | None:
        """Names behind the integer labels if the file holds text: label ``i`` is ``label_names[i]``."""
        return None

    @property
    def array(self) -> np.ndarray | None:
        """All rows ``(n_rows, *input.shape)``, to be read in any order, if that takes no decoding.

        uint8 for images, for features any real type that is cast to float32, NaN and infinity as they are.
        ``None`` if rows come out of the file only in chunks.
        """
        return None

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 of the content of ``files`` and, in a folder, their names. Reads every byte once."""
        return content_fingerprint(self.path, self.files)

    @cached_property
    def stat_fingerprint(self) -> str:
        """SHA-256 of the names, sizes and modification times of ``files``, without reading them."""
        return stat_fingerprint(self.path, self.files)

    def chunks(self, start: int = 0, stop: int | None = None, chunk_rows: int = 8192) -> Iterator[Chunk]:
        """Rows ``start`` to ``stop`` in order, in chunks of ``chunk_rows`` (the last may be shorter).

        Where chunks begin and end depends on ``start``, ``stop`` and ``chunk_rows`` alone.

        Raises
        ------
        ValueError
            If the range is not within the source or ``chunk_rows < 1``.
        DataError
            If the file is damaged, or labels are missing or not integral. A fault that is confined to a
            row is no exception: it is in `Chunk.errors`.
        OSError
            If the operating system cannot read a file.
        """
        stop = self.n_rows if stop is None else stop
        if not 0 <= start <= stop <= self.n_rows or chunk_rows < 1:
            raise ValueError(
                f"rows {start}:{stop} in chunks of {chunk_rows} are not within {self.path} "
                f"({self.n_rows} rows)"
            )
        return self._chunks(start, stop, chunk_rows)

    @abstractmethod
    def _chunks(self, start: int, stop: int, chunk_rows: int) -> Iterator[Chunk]:
        """See `chunks`; the range has been checked."""


def input_spec(dtype: str, shape: tuple[int, ...], columns: Sequence[str] = ()) -> InputSpec:
    """Spec of rows of ``shape``: uint8 rows are images, float32 rows are features, maybe named columns."""
    if dtype == "uint8":
        return InputSpec(dtype="uint8", shape=shape, meaning="image")
    return InputSpec(dtype="float32", shape=shape, meaning="features", columns=tuple(columns))
