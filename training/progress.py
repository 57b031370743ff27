"""Progress for a person: a bar with ETA on a terminal, plain lines elsewhere."""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping, Sequence
from typing import Any, TextIO

from tqdm import tqdm

LINE_SECONDS = 10.0


class TerminalProgress:
    """Writes to ``stream``: a tqdm bar if it is a terminal, a line every ten seconds if not."""

    def __init__(self, stream: TextIO | None = None) -> None:
        self._stream = stream or sys.stderr
        self._tty = self._stream.isatty()
        self._bar: tqdm | None = None
        self._epochs = 0
        self._prefix = ""
        self._spent = 0.0
        self._first: int | None = None
        self._done = 0
        self._last_line = 0.0

    def say(self, message: str) -> None:
        """Print a message without disturbing the bar."""
        if self._tty:
            tqdm.write(self._prefix + message, file=self._stream)
        else:
            print(self._prefix + message, file=self._stream, flush=True)

    def restart(self, index: int, total: int, epochs: int) -> None:
        """Begin the bar of a restart."""
        self._begin(f"restart {index + 1}/{total}: " if total > 1 else "", epochs)

    def stack(self, indices: Sequence[int], total: int, epochs: int) -> None:
        """Begin the bar of restarts that train at once; their messages name them."""
        names = ", ".join(str(index + 1) for index in indices)
        self._begin("", epochs, f"restarts {names} of {total}")

    def _begin(self, prefix: str, epochs: int, name: str = "") -> None:
        self.close()
        self._prefix = prefix
        self._epochs, self._spent, self._first, self._last_line = epochs, 0.0, None, 0.0
        if self._tty:
            self._bar = tqdm(
                total=epochs, unit="epoch", file=self._stream, desc=name or self._prefix.rstrip(": ") or "fit"
            )

    def epoch(self, record: Mapping[str, Any]) -> None:
        """Show an epoch's record."""
        done = record["epoch"] + 1
        self._epochs = done + record["epochs_left"]  # fewer than at first, once a stage has converged early
        shown = (
            f"bound {record['bound']:.2f}, epsilon_x {record['epsilon_x']:.3g}, "
            f"effective clusters {record['effective_clusters']:.1f}"
        )
        if self._first is None or done <= self._done:
            # A bar's first, or of another run that has stayed behind its stack.
            self._first, self._spent = record["epoch"], 0.0
            if self._bar is not None:
                self._bar.initial = self._first  # epochs of an earlier process say nothing of the speed
        self._done = done
        if self._bar is not None:
            self._bar.n, self._bar.total = done, self._epochs
            self._bar.set_postfix_str(shown)
            return
        self._spent += record["seconds"]
        if done < self._epochs and time.monotonic() - self._last_line < LINE_SECONDS:
            return
        self._last_line = time.monotonic()
        left = self._spent / (done - self._first) * (self._epochs - done)
        self.say(f"epoch {done}/{self._epochs}, {shown}, {left:.0f} s left")

    def close(self) -> None:
        """Finish the bar."""
        if self._bar is not None:
            self._bar.close()
            self._bar = None
