"""What is kept of a fit's epochs, however it ends: its curves, and how far it came."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from training.fit import Silent
from training.history import HISTORY_FILE, History

# Digits of a curve's values: enough for Fig. 2, in a file that stays small.
DIGITS = 6


class Recorder(Silent):
    """Keeps an epoch's records, and tells of them now and then."""

    SECONDS = 30.0

    def __init__(self, say: Callable[[str], None]) -> None:
        self._say = say
        self._epochs = 0
        self._last = time.monotonic()
        self.records: dict[int, Mapping[str, Any]] = {}

    def say(self, message: str) -> None:
        """Pass on."""
        self._say(message)

    def restart(self, index: int, total: int, epochs: int) -> None:
        """Learn how long the run is to be."""
        self._epochs = epochs

    def epoch(self, record: Mapping[str, Any]) -> None:
        """Keep a record."""
        self.records[record["epoch"]] = record
        if time.monotonic() - self._last >= self.SECONDS:
            self._last = time.monotonic()
            self._say(f"epoch {record['epoch'] + 1}/{self._epochs}, bound {record['bound']:.2f}")

    def epochs_done(self, folder: Path) -> int:
        """Epochs that went well, this process's and those before its checkpoint."""
        return len(self._all(folder))

    def curves(self, folder: Path) -> dict[str, list[float]]:
        """Bound and ε_x of each epoch."""
        records = self._all(folder)
        return {
            key: [float(f"{record[key]:.{DIGITS}g}") for record in records] for key in ("bound", "epsilon_x")
        }

    def _all(self, folder: Path) -> Sequence[Mapping[str, Any]]:
        earlier = folder / "restart-0"
        known = {}
        if (earlier / HISTORY_FILE).exists():
            known = {record["epoch"]: record for record in History.read(earlier)}
        both = known | self.records
        # A history may be ahead of the checkpoint that was gone on from.
        last = max(self.records, default=max(known, default=-1))
        return [both[epoch] for epoch in sorted(both) if epoch <= last]
