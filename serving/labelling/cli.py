"""``nvisa-label``: label a data set offline."""

from __future__ import annotations

import signal
import sys
import traceback
from collections.abc import Sequence
from types import FrameType

from serving.configuration import load_settings
from serving.labelling.failures import DONE, FORESEEN, Stopped, exit_status
from serving.labelling.job import Outcome, run_job
from serving.labelling.settings import LabelSettings


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit status, see `serving.labelling.failures`."""
    try:
        settings = load_settings(LabelSettings, arguments)
        with StopSignals() as signals:
            outcome = run_job(settings, signals.check)
    except Exception as error:
        status = exit_status(error)
        if not isinstance(error, FORESEEN):
            traceback.print_exc()
        print(f"nvisa-label: {_line(error)} (exit status {status})", file=sys.stderr)
        return status
    print(_summary(settings, outcome))
    return DONE


class StopSignals:
    """Remembers SIGTERM and SIGINT until it suits the job; a second one ends the process at once."""

    def __init__(self) -> None:
        self._received: int | None = None
        self._previous: dict[int, object] = {}

    def check(self) -> None:
        """Raise `Stopped` if a signal came."""
        if self._received is not None:
            raise Stopped(self._received)

    def __enter__(self) -> StopSignals:
        """Start to listen."""
        for number in (signal.SIGTERM, signal.SIGINT):
            self._previous[number] = signal.signal(number, self._remember)
        return self

    def __exit__(self, *_: object) -> None:
        """Stop to listen."""
        for number, handler in self._previous.items():
            signal.signal(number, handler)  # type: ignore[arg-type]

    def _remember(self, number: int, frame: FrameType | None) -> None:
        self._received = number
        signal.signal(number, signal.SIG_DFL)


def _line(error: Exception) -> str:
    if isinstance(error, OSError) and error.strerror:
        return f"{error.filename or 'input or output'}: {error.strerror}"
    return " ".join(str(error).split()) or type(error).__name__


def _summary(settings: LabelSettings, outcome: Outcome) -> str:
    done = f"labelled {outcome.rows:,} rows in {outcome.shards} shards at {outcome.rate:,.0f} rows/s"
    if outcome.skipped_shards:
        done += f" ({outcome.skipped_shards} shards were done before)"
    if outcome.success is None:
        return f"{done}; other processes' shards of {settings.output} are still missing"
    total = outcome.success
    return f"{done}; {settings.output} is complete: {total.rows:,} rows, {total.errors:,} unreadable"


if __name__ == "__main__":
    sys.exit(main())
