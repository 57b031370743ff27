"""Scores of a fit on a source of any size, and of what it started from."""

from __future__ import annotations

import numpy as np

from serving.readers import Source, readable_chunks
from training.fitted import Fitted
from training.inference import probabilities
from training.origin import check_same, read_beside
from training.run import check_rows
from training.scores import Scores, score


def evaluate(fitted: Fitted, source: Source) -> tuple[Scores, Scores | None]:
    """Score the clusters of all rows of ``source``, and those of the run's start; rows are read in chunks.

    Raises
    ------
    ValueError
        If its rows are not what the model takes, or are features of another backbone.
    DataError
        If a row or a label cannot be read.
    """
    check_rows(fitted.spec, source.input, str(source.path))
    check_same(fitted.origin, read_beside(source.files), str(source.path))
    clusters, confidences, starts, labels = [], [], [], []
    for chunk in readable_chunks(source):
        q = probabilities(fitted.model, chunk.x)
        clusters.append(q.argmax(1))
        confidences.append(q.max(1))
        if chunk.labels is not None:
            labels.append(chunk.labels)
        if fitted.start is not None:
            starts.append(fitted.start.predict(fitted.model, chunk.x))
    truth = np.concatenate(labels) if labels else None
    n_clusters = fitted.config.n_clusters
    scores = score(
        np.concatenate(clusters), n_clusters, labels=truth, confidences=np.concatenate(confidences)
    )
    return scores, score(np.concatenate(starts), n_clusters, labels=truth) if starts else None
