"""How many rows may go without a cluster before the job gives up."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc

from serving.labelled import count_errors
from serving.labelling.failures import LabellingError


class ErrorBudget:
    """Counts rows that cannot be assigned, and gives up once there are too many for the whole job.

    Parameters
    ----------
    data
        The input, for messages.
    share
        Share of its rows that may go without a cluster.
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

    def spend(self, table: pa.Table) -> None:
        """Count the errors of ``table``, rows in a row as `serving.labelled.label_chunk` gives them.

        Raises
        ------
        LabellingError
            If there are more than allowed; it names the first row of this table.
        """
        errors = count_errors(table)
        self._spent += errors
        if errors and self._spent > self._share * self._n_rows:
            first = table.filter(pc.is_valid(table["error"])).slice(0, 1).to_pylist()[0]
            raise LabellingError(
                f"{self._data}: row {first['row']}: {first['error']}; {self._spent} of {self._n_rows} rows "
                f"cannot be assigned so far, more than --max-error-share {self._share:g} allows; repair the "
                "input, or allow more and --resume"
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
                f"{self._data}: {errors} of {self._n_rows} rows could not be assigned, more than "
                f"--max-error-share {self._share:g} allows; the output's column 'error' says why; repair the "
                "input, or allow more and --resume"
            )
