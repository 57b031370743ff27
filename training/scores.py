"""Scores of a clustering: ACC, NMI and ARI against labels; sizes and confidence without them.

Labels are for scoring only. Nothing here is called by anything that fits, selects or stops.
"""

from __future__ import annotations

from textwrap import shorten

import numpy as np
from numpy.typing import ArrayLike
from pydantic import BaseModel, ConfigDict
from scipy.optimize import linear_sum_assignment
from sklearn.metrics import adjusted_rand_score, normalized_mutual_info_score

_COLUMNS = 5


class Scores(BaseModel):
    """What a clustering is worth; the keys of ``evaluate --json``.

    Attributes
    ----------
    acc
        Unsupervised clustering accuracy in [0, 1], one-to-one matching; ``None`` without labels.
    nmi
        Normalised mutual information in [0, 1], arithmetic mean of the entropies; ``None`` without labels.
    ari
        Adjusted Rand index in [-0.5, 1]; ``None`` without labels.
    n_rows
        Number of rows scored.
    cluster_sizes
        Rows of each cluster, by id; sums to ``n_rows``.
    empty_clusters
        Ids of the clusters that got no row.
    mean_confidence
        Mean probability of the assigned cluster; ``None`` if no confidences were given.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    acc: float | None
    nmi: float | None
    ari: float | None
    n_rows: int
    cluster_sizes: tuple[int, ...]
    empty_clusters: tuple[int, ...]
    mean_confidence: float | None

    def __str__(self) -> str:
        """Render as a table of text, see `render`."""
        return render(self)


def score(
    clusters: ArrayLike,
    n_clusters: int,
    *,
    labels: ArrayLike | None = None,
    confidences: ArrayLike | None = None,
) -> Scores:
    """Score an assignment of rows to clusters.

    Parameters
    ----------
    clusters
        Integers ``(n,)`` in ``[0, n_clusters)``.
    n_clusters
        Number of clusters of the model; the ones that got no row count as empty.
    labels
        True classes ``(n,)``, numbers or strings, for ACC, NMI and ARI.
    confidences
        Probability of the assigned cluster ``(n,)``.

    Raises
    ------
    ValueError
        If there are no rows, the lengths differ, or an id lies outside ``[0, n_clusters)``.
    """
    ids = np.asarray(clusters)
    if ids.ndim != 1 or len(ids) == 0:
        raise ValueError(f"clusters must be a vector with at least one row, got shape {ids.shape}")
    if not np.issubdtype(ids.dtype, np.integer):
        raise ValueError(f"clusters must be integers, got {ids.dtype}")
    if ids.min() < 0 or ids.max() >= n_clusters:
        raise ValueError(f"cluster ids run from {ids.min()} to {ids.max()}, expected [0, {n_clusters})")
    sizes = np.bincount(ids, minlength=n_clusters)
    acc = nmi = ari = None
    if labels is not None:
        acc = accuracy(labels, ids)
        # Labels may be strings or floats; scikit-learn wants one kind on both sides.
        classes = np.unique(np.asarray(labels), return_inverse=True)[1]
        nmi = float(normalized_mutual_info_score(classes, ids))
        ari = float(adjusted_rand_score(classes, ids))
    return Scores(
        acc=acc,
        nmi=nmi,
        ari=ari,
        n_rows=len(ids),
        cluster_sizes=tuple(sizes.tolist()),
        empty_clusters=tuple(np.flatnonzero(sizes == 0).tolist()),
        mean_confidence=None if confidences is None else _mean(confidences, len(ids)),
    )


def accuracy(labels: ArrayLike, clusters: ArrayLike) -> float:
    """Share of rows whose cluster is matched to their class, under the best one-to-one matching.

    Each cluster stands for at most one class and each class for at most one cluster. With more clusters
    than classes the rows of the clusters left over count as wrong, and the other way round.

    Parameters
    ----------
    labels, clusters
        Classes and clusters ``(n,)``; numbers or strings, their counts may differ.

    Raises
    ------
    ValueError
        If there are no rows or the lengths differ.
    """
    counts, _, _ = _contingency(labels, clusters)
    rows, columns = linear_sum_assignment(counts, maximize=True)
    return float(counts[rows, columns].sum() / counts.sum())


def match_classes(labels: ArrayLike, clusters: ArrayLike) -> dict[int, int | float | str]:
    """Name the class each cluster is matched to by `accuracy`.

    Returns
    -------
    dict
        From cluster to class, in the order of the clusters. A cluster is absent if it has no rows, shares
        no row with its match, or was left over because there are more clusters than classes.
    """
    counts, classes, ids = _contingency(labels, clusters)
    rows, columns = linear_sum_assignment(counts, maximize=True)
    pairs = [(column, row) for row, column in zip(rows, columns, strict=True) if counts[row, column]]
    return {ids[column].item(): classes[row].item() for column, row in sorted(pairs)}


def render(scores: Scores) -> str:
    """Write the scores as a table of text, at most 80 characters wide, without a newline at the end."""
    measures = [("rows", f"{scores.n_rows:,}")]
    measures += [
        (name, f"{value:.4f}")
        for name, value in (
            ("ACC", scores.acc),
            ("NMI", scores.nmi),
            ("ARI", scores.ari),
            ("mean confidence", scores.mean_confidence),
        )
        if value is not None
    ]
    # The ids in brackets, beside their number: a lone id would read as a count.
    ids = shorten(", ".join(map(str, scores.empty_clusters)), 52, placeholder=" …")
    empty = f"{len(scores.empty_clusters)} ({ids})" if ids else "none"
    measures += [("clusters", str(len(scores.cluster_sizes))), ("empty clusters", empty)]
    lines = [f"{name:<16}  {value}" for name, value in measures]
    lines += ["", "cluster: rows"]
    cells = [f"{index:>3}: {size:<9,}" for index, size in enumerate(scores.cluster_sizes)]
    lines += ["".join(cells[i : i + _COLUMNS]).rstrip() for i in range(0, len(cells), _COLUMNS)]
    return "\n".join(lines)


def _contingency(labels: ArrayLike, clusters: ArrayLike) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Count in int64 ``(n_classes, n_ids)``, and the classes and ids the rows and columns stand for."""
    truth, found = np.asarray(labels), np.asarray(clusters)
    if truth.ndim != 1 or truth.shape != found.shape or len(truth) == 0:
        raise ValueError(
            f"labels and clusters must be vectors of one length of at least 1, "
            f"got shapes {truth.shape} and {found.shape}"
        )
    classes, row = np.unique(truth, return_inverse=True)
    ids, column = np.unique(found, return_inverse=True)
    cells = np.bincount(row * len(ids) + column, minlength=len(classes) * len(ids))
    return cells.reshape(len(classes), len(ids)), classes, ids


def _mean(confidences: ArrayLike, n_rows: int) -> float:
    values = np.asarray(confidences, dtype=np.float64)
    if values.shape != (n_rows,):
        raise ValueError(f"confidences must have shape ({n_rows},), got {values.shape}")
    return float(values.mean())
