"""A folder of image files, sorted by path."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cached_property
from pathlib import Path

import numpy as np
import pyarrow as pa

from serving.manifest import InputSpec
from serving.readers.decode import PROBE_ROWS
from serving.readers.images import decode_image, promised_shape
from serving.readers.source import Chunk, DataError, Source, input_spec


class ImageFolderSource(Source):
    """One row per file, uint8; the id column ``path`` is relative to the folder.

    Parameters
    ----------
    path
        The folder.
    files
        The image files, in order.
    expected, resize
        See `serving.readers.open_source`.
    labelled
        Whether the name of the folder that an image lies in is its label.
    """

    def __init__(
        self,
        path: Path,
        files: tuple[Path, ...],
        expected: InputSpec | None = None,
        resize: bool = False,
        *,
        labelled: bool = False,
    ) -> None:
        self._resize = resize
        if labelled and (loose := next((file for file in files if file.parent == path), None)):
            raise DataError(f"{loose}: lies in no folder of its own below {path} that could be its label")
        if labelled and len(names := {file.parent.name for file in files}) == 1:
            raise DataError(f"{path}: all images lie in folders named {names.pop()!r}, which is no label")
        try:
            shape = promised_shape((file.read_bytes() for file in files[:PROBE_ROWS]), expected, resize)
        except ValueError as error:
            raise DataError(f"{path}: {error}") from error
        super().__init__(path, files, len(files), input_spec("uint8", shape), has_labels=labelled)

    @cached_property
    def label_names(self) -> tuple[str, ...] | None:
        """Names of the folders, sorted. See `Source.label_names`."""
        return tuple(sorted({file.parent.name for file in self.files})) if self.has_labels else None

    def _chunks(self, start: int, stop: int, chunk_rows: int) -> Iterator[Chunk]:
        for first in range(start, stop, chunk_rows):
            files = self.files[first : min(first + chunk_rows, stop)]
            x = np.zeros((len(files), *self.input.shape), np.uint8)
            errors: dict[int, str] = {}
            for row, file in enumerate(files):
                data = file.read_bytes()  # an OSError is the disk's fault, not the row's: let it through
                try:
                    x[row] = decode_image(data, self.input.shape, resize=self._resize)
                except ValueError as error:
                    errors[row] = str(error)
            names = [file.relative_to(self.path).as_posix() for file in files]
            labels = None
            if self.label_names is not None:
                labels = np.searchsorted(self.label_names, [file.parent.name for file in files])
            yield Chunk(start=first, x=x, labels=labels, ids=pa.table({"path": names}), errors=errors)
