"""Features as they are computed: finished parts in a folder beside the output, so that a kill loses one."""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from serving.files import write_atomically
from training.checkpoint import CheckpointError, read_json, write_json

_PLAN = "plan.json"


class Parts:
    """The parts of ``output``, in a folder of its name and ``.parts``.

    Parameters
    ----------
    output
        The file that they will become.
    n_parts
        How many there will be.
    """

    def __init__(self, output: Path, n_parts: int) -> None:
        self.folder = output.with_name(output.name + ".parts")
        self.n_parts = n_parts

    def open(self, plan: Mapping[str, Any], *, resume: bool) -> None:
        """Begin, or go on with parts that were begun with an equal ``plan``.

        Raises
        ------
        CheckpointError
            If there are parts and ``resume`` is not set, or they are of another plan.
        """
        path = self.folder / _PLAN
        if not path.exists():
            self.folder.mkdir(parents=True, exist_ok=True)
            write_json(path, plan)
            return
        if not resume:
            raise CheckpointError(
                f"{self.folder} holds parts of an earlier run: pass --resume to go on with them, or remove it"
            )
        known = read_json(path)
        differing = sorted(key for key in {*known, *plan} if known.get(key) != plan.get(key))
        if differing:
            raise CheckpointError(
                f"{self.folder} was begun with another {', '.join(differing)}: resume as it was begun, or "
                "remove it and begin anew"
            )

    def n_done(self) -> int:
        """How many parts there are, up to the first that is missing."""
        return next((i for i in range(self.n_parts) if not self._path(i).exists()), self.n_parts)

    def write(self, index: int, table: pa.Table) -> None:
        """Keep a finished part."""
        write_atomically(self._path(index), lambda file: pq.write_table(table, file, use_dictionary=False))

    def tables(self) -> Iterator[pa.Table]:
        """All parts in order."""
        for index in range(self.n_parts):
            yield pq.read_table(self._path(index))

    @property
    def n_rows(self) -> int:
        """Rows of all parts."""
        return sum(pq.read_metadata(self._path(index)).num_rows for index in range(self.n_parts))

    def remove(self) -> None:
        """Remove the folder, if it is there."""
        shutil.rmtree(self.folder, ignore_errors=True)

    def _path(self, index: int) -> Path:
        return self.folder / f"part-{index:08d}.parquet"
