"""Tables as sources: what Parquet and CSV have in common."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator
from functools import cached_property
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from pyarrow import types

from serving.readers.arrays import integer_labels
from serving.readers.columns import ColumnChoice, Roles
from serving.readers.decode import RowDecoder
from serving.readers.source import Chunk, DataError, Source


class RowStream:
    """Record batches of any sizes as one sequence of rows.

    Attributes
    ----------
    position
        Index of the next row.
    """

    def __init__(self, batches: Iterator[pa.RecordBatch], position: int = 0) -> None:
        self._batches = batches
        self._rest: pa.RecordBatch | None = None
        self.position = position

    def take(self, n_rows: int) -> list[pa.RecordBatch]:
        """Take the next ``n_rows`` rows; fewer only at the end."""
        taken: list[pa.RecordBatch] = []
        while n_rows:
            batch = self._rest if self._rest is not None else next(self._batches, None)
            if batch is None:
                break
            part = batch.slice(0, n_rows)
            self._rest = batch.slice(len(part)) if len(part) < len(batch) else None
            taken.append(part)
            n_rows -= len(part)
            self.position += len(part)
        return taken

    def skip(self, n_rows: int) -> None:
        """Pass over ``n_rows`` rows."""
        while n_rows:
            step = min(n_rows, 1 << 16)
            self.take(step)
            n_rows -= step


class TableSource(Source):
    """Rows made of a table's columns.

    Parameters
    ----------
    path, files, n_rows
        See `Source`.
    schema
        The types of all columns.
    choice, roles
        What the user said, and what follows from it.
    decoder
        Turns the feature columns into rows.
    """

    def __init__(
        self,
        path: Path,
        files: tuple[Path, ...],
        n_rows: int,
        schema: pa.Schema,
        choice: ColumnChoice,
        roles: Roles,
        decoder: RowDecoder,
    ) -> None:
        labelled = choice.label is not None and choice.read_labels
        super().__init__(path, files, n_rows, decoder.input, has_labels=labelled)
        self._label = choice.label if labelled else None
        self._label_is_text = labelled and _is_text(schema.field(choice.label).type)
        self._ids = choice.ids
        self._decoder = decoder
        wanted: set[str | None] = {*roles.features, *choice.ids, *([self._label] if self._label else [])}
        self._columns = tuple(name for name in schema.names if name in wanted)
        self.features = roles.features
        wanted |= {choice.label}
        self.left_out = tuple(name for name in schema.names if name not in wanted)

    @abstractmethod
    def _stream(self, start: int, columns: tuple[str, ...]) -> RowStream:
        """Read the rows from ``start`` on, with these columns."""

    @cached_property
    def label_names(self) -> tuple[str, ...] | None:
        """Distinct text labels, sorted; reads the label column of all rows. See `Source.label_names`."""
        if not self._label_is_text or self._label is None:
            return None
        names: set[str] = set()
        stream = self._stream(0, (self._label,))
        while batches := stream.take(1 << 16):
            for batch in batches:
                names.update(pc.cast(batch.column(self._label), pa.string()).unique().drop_null().to_pylist())
        return tuple(sorted(names))

    def _chunks(self, start: int, stop: int, chunk_rows: int) -> Iterator[Chunk]:
        if self.has_labels:
            _ = self.label_names  # a scan of its own, so not in the middle of this one
        stream = self._stream(start, self._columns)
        for first in range(start, stop, chunk_rows):
            n_rows = min(chunk_rows, stop - first)
            batches = stream.take(n_rows)
            table = pa.Table.from_batches(batches) if batches else None
            if table is None or table.num_rows != n_rows:
                raise DataError(
                    f"{self.path}: ended before row {first + n_rows} of {self.n_rows}; "
                    "was it changed meanwhile? start again"
                )
            x, errors = self._decoder.decode(table)
            yield Chunk(
                start=first,
                x=x,
                labels=self._labels(table, first) if self.has_labels else None,
                ids=table.select(list(self._ids)) if self._ids else None,
                errors=errors,
            )

    def _labels(self, table: pa.Table, first: int) -> np.ndarray:
        column = table.column(self._label).combine_chunks()
        if self._label_is_text:
            text = pc.cast(column, pa.string())
            column = pc.index_in(text, value_set=pa.array(self.label_names, pa.string()))
        elif types.is_string(column.type):  # CSV: read as text, inferred as numbers
            try:
                column = pc.cast(column, pa.float64())
            except pa.ArrowInvalid as error:
                raise DataError(
                    f"{self.path}: label column {self._label!r}, rows {first} to {first + len(column) - 1}: "
                    f"{error}; labels are whole numbers throughout, or text throughout"
                ) from error
        if column.null_count:
            row = first + int(np.flatnonzero(column.is_null().to_numpy(zero_copy_only=False))[0])
            raise DataError(
                f"{self.path}: row {row} has no label in column {self._label!r}; fill or remove it"
            )
        return integer_labels(self.path, column.to_numpy(zero_copy_only=False), len(column))


def _is_text(kind: pa.DataType) -> bool:
    if types.is_dictionary(kind):
        kind = kind.value_type
    return types.is_string(kind) or types.is_large_string(kind) or types.is_string_view(kind)
