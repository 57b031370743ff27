"""Two clusterings of the same rows, matched one to one so that most rows agree."""

from __future__ import annotations

import numpy as np

_FAR = np.iinfo(np.int64).max // 4


def matched_rows(counts: np.ndarray) -> int:
    """Return the most rows that any one-to-one renumbering of the clusters makes agree.

    The Hungarian method by shortest augmenting paths (Jonker and Volgenant, 1987), in whole numbers;
    O(K^3), with the innermost loop in numpy. Here because the server does without scipy.

    Parameters
    ----------
    counts
        Rows in cluster i of the one and j of the other clustering, int64 ``(K_1, K_2)``.
    """
    n = max(counts.shape)
    cost = np.zeros((n, n), np.int64)
    cost[: counts.shape[0], : counts.shape[1]] = -counts
    # Column 0 is none: it holds the row that looks for a column. Potentials of rows and columns.
    u, v = np.zeros(n + 1, np.int64), np.zeros(n + 1, np.int64)
    row_of, came_from = np.zeros(n + 1, np.int64), np.zeros(n + 1, np.int64)
    for row in range(1, n + 1):
        row_of[0], column = row, 0
        shortest = np.full(n + 1, _FAR)
        seen = np.zeros(n + 1, bool)
        while True:
            seen[column] = True
            here = row_of[column]
            length = np.concatenate(([_FAR], cost[here - 1] - u[here] - v[1:]))
            better = ~seen & (length < shortest)
            shortest[better], came_from[better] = length[better], column
            # Of several as near one that is free: the search ends there.
            nearest = int(np.argmin(np.where(seen, 2 * _FAR, 2 * shortest + (row_of != 0))))
            step = shortest[nearest]
            u[row_of[seen]] += step
            v[seen] -= step
            shortest[~seen] -= step
            column = nearest
            if row_of[column] == 0:
                break
        while column:
            before = came_from[column]
            row_of[column], column = row_of[before], before
    return int(-cost[row_of[1:] - 1, np.arange(n)].sum())
