"""How far the live mix of clusters has moved from the training data's."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

# Shares are held away from zero, or a cluster that is empty on one side would make the index infinite.
SMALLEST_SHARE = 1e-4


def population_stability_index(counts: np.ndarray, reference: np.ndarray) -> float:
    """Return the sum over clusters of ``(p - q) * ln(p / q)``.

    Zero if the shares are equal; by custom below 0.1 is stable and above 0.25 has shifted. It is the
    symmetrised Kullback-Leibler divergence, KL(p || q) + KL(q || p).

    Parameters
    ----------
    counts
        Live rows per cluster, ``(n_clusters,)``; not all zero.
    reference
        Share of the training rows per cluster, ``(n_clusters,)``.
    """
    live = np.maximum(counts / counts.sum(), SMALLEST_SHARE)
    expected = np.maximum(reference, SMALLEST_SHARE)
    return float(np.sum((live - expected) * np.log(live / expected)))


def noise_of_index(n_clusters: int, live_rows: int, reference_rows: int) -> float:
    """Return what the index shows on average if both sides are drawn from the same mix.

    Its expectation is close to ``(n_clusters - 1) * (1 / live_rows + 1 / reference_rows)``, by the
    second-order term of the logarithm (Yurdakul, 2018). What counts as drift is what the index exceeds this
    by. It holds while a cluster can expect several rows; with fewer, the index says nothing.
    """
    return (n_clusters - 1) * (1 / live_rows + 1 / reference_rows)


@dataclass(frozen=True)
class Mix:
    """Clusters of some recent rows, beside those of the training data.

    Attributes
    ----------
    counts
        Live rows per cluster, ``(n_clusters,)``.
    reference
        Share of the training rows per cluster, ``(n_clusters,)``.
    reference_rows
        Number of training rows.
    """

    counts: np.ndarray
    reference: np.ndarray
    reference_rows: int

    def drift(self) -> tuple[float, float, int]:
        """Return the population stability index, its noise, and the number of live rows.

        Index and noise are NaN before the first row.
        """
        rows = int(self.counts.sum())
        if not rows:
            return float("nan"), float("nan"), 0
        index = population_stability_index(self.counts, self.reference)
        return index, noise_of_index(len(self.counts), rows, self.reference_rows), rows


class SlidingCounts:
    """Rows per cluster over about the last ``window_rows`` rows.

    Two half-windows are kept, and the older is forgotten when the newer is full; so the counts cover
    between half a window and a whole one, in constant memory and without a clock.
    """

    def __init__(self, n_clusters: int, window_rows: int) -> None:
        self._half = max(1, window_rows // 2)
        # In one attribute, so that a reader in another thread never sees one half twice.
        self._halves = (np.zeros(n_clusters, np.int64), np.zeros(n_clusters, np.int64))

    def add(self, counts: np.ndarray) -> None:
        """Add ``counts``, rows per cluster, ``(n_clusters,)``."""
        older, newer = self._halves[0], self._halves[1] + counts
        full = newer.sum() >= self._half
        self._halves = (newer, np.zeros_like(newer)) if full else (older, newer)

    def counts(self) -> np.ndarray:
        """Rows per cluster in the window, int64 ``(n_clusters,)``."""
        older, newer = self._halves
        return older + newer
