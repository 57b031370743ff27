"""``history.jsonl``: one JSON record an epoch."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Self

from training.checkpoint import CheckpointError, replace_file

HISTORY_FILE = "history.jsonl"


class History(list[Mapping[str, Any]]):
    """Records of the epochs so far: epoch, bound (nats a row), ε_x, ε_z, learning rate, seconds, ..."""

    def write(self, directory: Path) -> None:
        """Write all records to ``history.jsonl``, atomically."""
        lines = "".join(json.dumps(record) + "\n" for record in self)
        replace_file(directory / HISTORY_FILE, lines.encode())

    @classmethod
    def read(cls, directory: Path, epochs: int | None = None) -> Self:
        """Read the records of the first ``epochs`` epochs, or all.

        Raises
        ------
        CheckpointError
            If the file is missing, damaged or too short.
        """
        path = directory / HISTORY_FILE
        try:
            records = [json.loads(line) for line in path.read_text().splitlines()]
        except (OSError, json.JSONDecodeError) as error:
            raise CheckpointError(f"cannot read {path}: {error}") from error
        if epochs is not None and len(records) < epochs:
            raise CheckpointError(f"{path} has {len(records)} records for {epochs} epochs")
        return cls(records[:epochs])
