"""Which of several clusterings of the same rows is the one most like the others."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from sklearn.metrics import adjusted_rand_score


def mean_agreement(clusterings: Sequence[np.ndarray]) -> list[float]:
    """Mean adjusted Rand index of each clustering ``(n,)`` with the others; the highest is their medoid."""
    pairs = np.array([[adjusted_rand_score(one, other) for other in clusterings] for one in clusterings])
    others = max(1, len(clusterings) - 1)
    return [float(total) for total in (pairs.sum(1) - 1) / others]
