"""From calls to a batch of the model's, and from its answer to the parts of the calls."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from serving.call_queue import Call, Part, Piece
from serving.errors import InvalidInput
from serving.inference import Batch
from serving.manifest import InputSpec


def join(pieces: list[Piece], spec: InputSpec, buckets: Sequence[int]) -> Batch[Call]:
    """Return ``pieces``, at least one, as one batch, padded to the next of ``buckets``, if there is one.

    A piece that is alone and needs no padding is not copied.
    """
    arrays = [call.x[start:stop] for call, start, stop in pieces]
    rows = sum(map(len, arrays))
    size = next((bucket for bucket in buckets if bucket >= rows), rows)
    if len(arrays) == 1 and size == rows:
        return Batch(arrays[0], pieces, rows, padding=0)
    x = np.empty((size, *spec.shape), spec.numpy_dtype)
    np.concatenate(arrays, out=x[:rows])
    x[rows:] = 0
    return Batch(x, pieces, rows, padding=size - rows)


class Parts:
    """The parts of a batch that the model has answered.

    Parameters
    ----------
    batch
        Without an error.

    Attributes
    ----------
    good
        Clusters, confidences, probabilities, and novelty if the model says it, of all rows with finite
        probabilities.
    """

    good: Part

    def __init__(self, batch: Batch[Call]) -> None:
        self._batch = batch
        self._values: Part = (batch.clusters, batch.confidences, batch.probabilities)
        if batch.novelty is not None:
            self._values += (batch.novelty,)
        self._finite = np.isfinite(batch.confidences)
        self._all_finite = bool(self._finite.all())
        self.good = self._values
        if not self._all_finite:
            self.good = tuple(values[self._finite] for values in self._values)

    def __iter__(self) -> Iterator[tuple[Call, int, Part | InvalidInput]]:
        """Yield every piece's call, first row, and part: an error if a row of it has no good answer."""
        offset = 0
        for call, start, stop in self._batch.pieces:
            part = slice(offset, offset + stop - start)
            offset = part.stop
            if self._all_finite or self._finite[part].all():
                yield call, start, tuple(values[part] for values in self._values)
            else:
                row = start + int(self._finite[part].argmin())
                why = "the model has no finite probabilities for it; its values are too large"
                yield call, start, InvalidInput(f"row {row}: {why}")
