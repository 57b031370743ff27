"""Parquet: one file or a folder of parts, read by row group."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from serving.manifest import InputSpec
from serving.readers.columns import ColumnChoice, Roles, assign_roles
from serving.readers.decode import PROBE_ROWS, ImageRows, ListRows, NumericRows, RowDecoder
from serving.readers.source import DataError
from serving.readers.tables import RowStream, TableSource

_BATCH_ROWS = 8192


class ParquetSource(TableSource):
    """Rows of Parquet files, one after the other.

    Parameters
    ----------
    path
        What the user named.
    files
        The parts in order; all must have the same columns.
    choice, expected, resize
        See `serving.readers.open_source`.
    """

    def __init__(
        self,
        path: Path,
        files: tuple[Path, ...],
        choice: ColumnChoice,
        expected: InputSpec | None = None,
        resize: bool = False,
    ) -> None:
        schema = None
        rows = []
        for file in files:
            with _reading(file), _open(file) as parquet:
                rows.append(parquet.metadata.num_rows)
                if schema is None:
                    schema = parquet.schema_arrow
                elif not parquet.schema_arrow.equals(schema):
                    raise DataError(
                        f"{file}: has other columns or types than {files[0].name}; all parts of a folder "
                        "must have the same"
                    )
        if not sum(rows):
            raise DataError(f"{path}: holds no rows; pass a file with at least one")
        assert schema is not None
        self._first_rows = np.cumsum([0, *rows])
        self.files = files
        roles = assign_roles(path, schema, choice)
        if resize and roles.kind != "image":
            raise DataError(f"{path}: has no column of encoded images, so there is nothing to resize")
        decoder = self._decoder_for(path, roles, expected, resize)
        super().__init__(path, files, sum(rows), schema, choice, roles, decoder)

    def _decoder_for(self, path: Path, roles: Roles, expected: InputSpec | None, resize: bool) -> RowDecoder:
        features = roles.features
        if roles.kind == "numeric":
            return NumericRows(roles)
        batches = self._stream(0, features).take(PROBE_ROWS)
        sample = pa.Table.from_batches(batches).column(features[0]).combine_chunks()
        try:
            if roles.kind == "image":
                return ImageRows(features[0], sample, expected, resize)
            return ListRows(features[0], sample, expected)
        except ValueError as error:
            raise DataError(f"{path}: column {features[0]!r}: {error}") from error

    def _stream(self, start: int, columns: tuple[str, ...]) -> RowStream:
        return RowStream(self._batches(start, columns), start)

    def _batches(self, start: int, columns: tuple[str, ...]) -> Iterator[pa.RecordBatch]:
        for file, first, end in zip(self.files, self._first_rows[:-1], self._first_rows[1:], strict=True):
            if end <= start:
                continue
            with _reading(file), _open(file) as parquet:
                groups, skip = _groups_from(parquet.metadata, max(0, start - int(first)))
                for batch in parquet.iter_batches(_BATCH_ROWS, row_groups=groups, columns=list(columns)):
                    yield batch.slice(min(skip, len(batch)))
                    skip -= min(skip, len(batch))


def _open(file: Path) -> pq.ParquetFile:
    # Flipped bits often still decode, to other numbers: use the checksums of files that have them.
    return pq.ParquetFile(file, page_checksum_verification=True)


def _groups_from(metadata: pq.FileMetaData, row: int) -> tuple[list[int], int]:
    """Row groups from the one that holds ``row`` on, and how many rows of the first come before it."""
    group = 0
    while row >= metadata.row_group(group).num_rows:
        row -= metadata.row_group(group).num_rows
        group += 1
    return list(range(group, metadata.num_row_groups)), row


@contextmanager
def _reading(file: Path) -> Iterator[None]:
    """Name the file in what Arrow raises; errors of the operating system may pass, and are left alone."""
    try:
        yield
    except DataError:
        raise
    except pa.ArrowInvalid as error:
        raise _damaged(file, error) from error
    except OSError as error:
        if error.errno is not None:
            raise
        raise _damaged(file, error) from error


def _damaged(file: Path, error: Exception) -> DataError:
    detail = str(error).strip().splitlines()[0]
    return DataError(f"{file}: not a whole Parquet file: {detail}; write or copy it again")
