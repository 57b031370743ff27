"""CSV with a header line, plain or gzipped, streamed."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pyarrow as pa
import pyarrow.csv as pacsv
from pyarrow import types

from serving.readers.columns import ColumnChoice, assign_roles
from serving.readers.decode import NumericRows
from serving.readers.source import DataError
from serving.readers.tables import RowStream, TableSource

# Cells of a column that are looked at for whether they are numbers.
_TRIED_CELLS = 10_000


class CsvSource(TableSource):
    """Rows of a CSV file's numeric columns, as float32.

    Which columns are numeric is inferred from the first megabyte: those of which at least half of the cells
    are, empty ones aside. Cells are read as text and parsed here, so that one bad cell spoils its row only,
    and ids keep their leading zeros. Opening counts the rows, which reads the file once; reading on from
    where the last chunk ended does not start over.

    Parameters
    ----------
    path, choice
        See `serving.readers.open_source`.
    """

    def __init__(self, path: Path, choice: ColumnChoice) -> None:
        with _reading(path), pacsv.open_csv(path, read_options=_read_options()) as reader:
            schema = reader.schema
            names = schema.names
        _refuse_headerless(path, names)
        for field in schema:
            if types.is_binary(field.type):  # Arrow's word for cells that are not UTF-8
                raise DataError(f"{path}: column {field.name!r} is not UTF-8; save the file as UTF-8")
        self.path = path
        schema = self._with_numbers(schema, {choice.label, *choice.ids}, set(choice.expected))
        roles = assign_roles(path, schema, choice)
        n_rows = sum(len(batch) for batch in self._batches((names[0],)))
        super().__init__(path, (path,), n_rows, schema, choice, roles, NumericRows(roles))
        self._open_stream: tuple[tuple[str, ...], RowStream] | None = None

    def _stream(self, start: int, columns: tuple[str, ...]) -> RowStream:
        # CSV cannot be entered in the middle: keep the stream, and start over only to go back.
        of_columns, stream = self._open_stream or (None, None)
        if stream is None or of_columns != columns or stream.position > start:
            stream = RowStream(self._batches(columns))
            self._open_stream = (columns, stream)
        stream.skip(start - stream.position)
        return stream

    def _with_numbers(self, schema: pa.Schema, others: set[str | None], expected: set[str]) -> pa.Schema:
        """Make numeric what Arrow takes for text on account of some cells; of ``expected``, of most."""
        names = [f.name for f in schema if types.is_string(f.type) and f.name not in others]
        if len(set(schema.names)) < len(schema) or not names:
            return schema
        batch = next(self._batches(tuple(names)), None)
        if batch is None:
            return schema
        for name in names:
            cells = [cell for cell in batch.column(name).slice(0, _TRIED_CELLS).to_pylist() if cell.strip()]
            numbers = sum(map(_is_number, cells))
            if 2 * numbers >= len(cells) > 0 or (name in expected and numbers):
                index = schema.get_field_index(name)
                schema = schema.set(index, pa.field(name, pa.float64()))
        return schema

    def _batches(self, columns: tuple[str, ...]) -> Iterator[pa.RecordBatch]:
        options = pacsv.ConvertOptions(
            include_columns=list(columns),
            column_types=dict.fromkeys(columns, pa.string()),
            strings_can_be_null=False,
        )
        with (
            _reading(self.path),
            pacsv.open_csv(self.path, read_options=_read_options(), convert_options=options) as reader,
        ):
            yield from reader


def _is_number(cell: str) -> bool:
    try:
        float(cell)
    except ValueError:
        return False
    return True


def _read_options() -> pacsv.ReadOptions:
    return pacsv.ReadOptions(use_threads=False)  # with threads, errors do not name the row


def _refuse_headerless(path: Path, names: list[str]) -> None:
    """Take a first line of numbers for data, unless it counts the columns as data frames do: 0, 1, 2."""
    if names == [str(i) for i in range(len(names))]:
        return
    try:
        for name in names:
            float(name)
    except ValueError:
        return
    raise DataError(
        f"{path}: has no header: its first line is {','.join(names[:4])}...; add a line with the column names"
    )


@contextmanager
def _reading(path: Path) -> Iterator[None]:
    try:
        yield
    except pa.ArrowInvalid as error:
        raise DataError(f"{path}: not a readable CSV file: {str(error).strip()}") from error
    except UnicodeDecodeError as error:  # Arrow looks at cells, and not at the header
        raise DataError(
            f"{path}: the header is not UTF-8: {error.object[: error.end]!r}; save the file as UTF-8"
        ) from error
    except OSError as error:
        if error.errno is not None:
            raise
        raise DataError(f"{path}: not a readable CSV file: {str(error).strip()}") from error
