"""CSV with a header line, plain or gzipped, streamed."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pyarrow as pa
import pyarrow.csv as pacsv

from serving.readers.columns import ColumnChoice, assign_roles
from serving.readers.decode import NumericRows
from serving.readers.source import DataError
from serving.readers.tables import RowStream, TableSource


class CsvSource(TableSource):
    """Rows of a CSV file's numeric columns, as float32.

    Which columns are numeric is inferred from the first megabyte. Cells are read as text and parsed here,
    so that one bad cell spoils its row only, and ids keep their leading zeros. Opening counts the rows,
    which reads the file once; reading on from where the last chunk ended does not start over.

    Parameters
    ----------
    path, choice
        See `serving.readers.open_source`.
    """

    def __init__(self, path: Path, choice: ColumnChoice) -> None:
        with _reading(path), pacsv.open_csv(path, read_options=_read_options()) as reader:
            schema = reader.schema
        _refuse_headerless(path, schema.names)
        self.path = path
        roles = assign_roles(path, schema, choice)
        n_rows = sum(len(batch) for batch in self._batches((schema.names[0],)))
        super().__init__(path, (path,), n_rows, schema, choice, roles, NumericRows(roles.features))
        self._open_stream: tuple[tuple[str, ...], RowStream] | None = None

    def _stream(self, start: int, columns: tuple[str, ...]) -> RowStream:
        # CSV cannot be entered in the middle: keep the stream, and start over only to go back.
        of_columns, stream = self._open_stream or (None, None)
        if stream is None or of_columns != columns or stream.position > start:
            stream = RowStream(self._batches(columns))
            self._open_stream = (columns, stream)
        stream.skip(start - stream.position)
        return stream

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
    except OSError as error:
        if error.errno is not None:
            raise
        raise DataError(f"{path}: not a readable CSV file: {str(error).strip()}") from error
