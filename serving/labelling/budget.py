"""How many rows may be unreadable before the job gives up."""

from __future__ import annotations

from pathlib import Path

from serving.labelling.failures import LabellingError
from serving.readers import Chunk


class ErrorBudget:
    """Counts rows that cannot be read, and gives up once there are too many for the whole job.

    Parameters
    ----------
    data
        The input, for messages.
    share
        Share of its rows that may be unreadable.
    n_rows
        Rows of the whole input.
    spent
        Such rows in shards that are done.
    """

    def __init__(self, data: Path, share: float, n_rows: int, spent: int) -> None:
        self._data = data
        self._share = share
        self._n_rows = n_rows
        self._spent = spent

    def spend(self, chunk: Chunk) -> None:
        """Count the errors of ``chunk``.

        Raises
        ------
        LabellingError
            If there are more than allowed; it names the first row of this chunk.
        """
        self._spent += len(chunk.errors)
        if chunk.errors and self._spent > self._share * self._n_rows:
            first = min(chunk.errors)
            raise LabellingError(
                f"{self._data}: row {chunk.start + first}: {chunk.errors[first]}; {self._spent} of "
                f"{self._n_rows} rows cannot be read so far, more than --max-error-share {self._share:g} "
                "allows; repair the input, or allow more and --resume"
            )

    def settle(self, errors: int) -> None:
        """Judge the job as a whole, from ``errors`` of all shards.

        Raises
        ------
        LabellingError
            If there are more than allowed.
        """
        if errors > self._share * self._n_rows:
            raise LabellingError(
                f"{self._data}: {errors} of {self._n_rows} rows could not be read, more than "
                f"--max-error-share {self._share:g} allows; the output's column 'error' says why; repair the "
                "input, or allow more and --resume"
            )
