"""Progress: a bar on a terminal, plain lines elsewhere."""

from __future__ import annotations

import sys
import time
from types import TracebackType
from typing import Self, TextIO

from tqdm import tqdm

_SECONDS_BETWEEN_LINES = 10.0


class Progress:
    """Counts rows, and says so.

    Parameters
    ----------
    total
        Rows this process has to do, those already done included.
    done
        Rows already done.
    stream
        Where to write; standard error by default.
    """

    def __init__(self, total: int, done: int, stream: TextIO | None = None) -> None:
        stream = stream or sys.stderr
        self._total = total
        self._done = self._done_before = done
        self._stream = stream
        self._began = self._last_line = time.monotonic()
        self._bar = None
        if stream.isatty():
            self._bar = tqdm(total=total, initial=done, unit=" rows", unit_scale=True, file=stream)

    @property
    def rate(self) -> float:
        """Rows per second since the start, without those that were done before."""
        return (self._done - self._done_before) / max(1e-9, time.monotonic() - self._began)

    def add(self, n_rows: int) -> None:
        """Count ``n_rows`` more."""
        self._done += n_rows
        if self._bar is not None:
            self._bar.update(n_rows)
        elif time.monotonic() - self._last_line >= _SECONDS_BETWEEN_LINES or self._done == self._total:
            self._last_line = time.monotonic()
            seconds = (self._total - self._done) / max(1e-9, self.rate)
            self.say(
                f"{self._done:,} of {self._total:,} rows, {self.rate:,.0f} rows/s, "
                f"about {seconds:,.0f} s left"
            )

    def say(self, line: str) -> None:
        """Print a line without disturbing the bar."""
        if self._bar is not None:
            self._bar.write(line, file=self._stream)
        else:
            print(line, file=self._stream, flush=True)

    def __enter__(self) -> Self:
        """Return the progress itself."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Leave the bar as it stands."""
        if self._bar is not None:
            self._bar.close()
