"""Clusters of a UMAP embedding: principal components, UMAP, a Gaussian mixture (McConville et al., 2020)."""

from __future__ import annotations

import os
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
from joblib import Parallel, delayed
from sklearn import config_context
from sklearn.decomposition import PCA

from training.config import EmbeddingMetric, TrainingConfig
from training.medoid import mean_agreement
from training.mixture import fit_even_mixture, fit_mixture

COMPONENTS = 50
DIMENSIONS = 10
EMBEDDED_ROWS = 70_000
WORKER_IDLE_SECONDS = 5  # then a process ends, and gives its memory back
PARALLEL_ROWS = 20_000  # of fewer, an embedding takes no longer than a process to start and import UMAP
LEAST_ROWS = DIMENSIONS + 3


def components(x: np.ndarray, seed: int) -> np.ndarray:
    """At most 50 principal components of rows ``(n, D)``: ``(n, min(50, n, D))``."""
    # The caller may have scikit-learn's array API switched on, which is slower here.
    with config_context(array_api_dispatch=False):
        return np.asarray(PCA(min(COMPONENTS, *x.shape), random_state=seed).fit_transform(x))


def directions(x: np.ndarray, mean: np.ndarray) -> np.ndarray:
    """Rows ``(n, D)`` from ``mean (D,)``, each of length 1, or 0 if it is the mean: ``(n, D)``, of x's dtype.

    Distances between them are those of the cosine: ``|u - v|² = 2 - 2 cos(u, v)``.
    """
    centred = x - mean
    lengths = np.linalg.norm(centred, axis=1, keepdims=True)
    return np.divide(centred, lengths, out=np.zeros_like(centred), where=lengths > 0)


def comparable(x: np.ndarray, metric: EmbeddingMetric, seed: int) -> np.ndarray:
    """Points whose Euclidean distances are those of rows ``x (n, D)`` by ``metric``: ``(n, min(50, n, D))``.

    Principal components of the rows or, for ``"cosine"``, of their `directions` from the mean row.
    """
    return components(directions(x, x.mean(0)) if metric == "cosine" else x, seed)


def side_by_side(*parts: np.ndarray) -> np.ndarray:
    """Centred points ``(n, D_i)`` next to each other, each with a mean square of 1: ``(n, sum of D_i)``."""
    return np.concatenate([part / np.sqrt(np.square(part).sum(1).mean()) for part in parts], axis=1)


def embed(x: np.ndarray, n_neighbors: int, seed: int) -> np.ndarray:
    """UMAP embedding of points in 10 dimensions, minimum distance 0.

    Parameters
    ----------
    x
        ``(n, D)``, such as principal components.
    n_neighbors
        Neighbours of a row in UMAP's graph; fewer where there are not that many rows.
    seed
        Decides the embedding; for that UMAP runs in one thread.

    Returns
    -------
    ndarray
        float64 ``(n, 10)``, or ``x`` itself where ten dimensions are no reduction or the rows are too few
        for a graph.
    """
    if not _can_be_embedded(x):
        return np.asarray(x, np.float64)
    return np.asarray(fit_umap(x, n_neighbors, seed).embedding_, np.float64)


def _can_be_embedded(x: np.ndarray) -> bool:
    return x.shape[1] > DIMENSIONS and len(x) >= LEAST_ROWS


def fit_umap(x: np.ndarray, n_neighbors: int, seed: int) -> Any:
    """UMAP itself, fitted to ``x (n, D)`` as for `embed`: ``embedding_`` is ``(n, 10)``.

    There must be `LEAST_ROWS` rows.
    """
    # Numba leaves OpenMP, and so torch, with as many threads as there are processors, and with another number
    # of them torch rounds otherwise: a run that goes on from a checkpoint has had no UMAP before it.
    threads = torch.get_num_threads()
    # The caller may have scikit-learn's array API switched on, which UMAP does not know.
    with config_context(array_api_dispatch=False), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from umap import UMAP  # compiles for seconds; only this start needs it

        umap = UMAP(
            n_neighbors=min(n_neighbors, len(x) - 1),
            n_components=DIMENSIONS,
            min_dist=0.0,
            random_state=seed,
            n_jobs=1,
        )
        try:
            return umap.fit(x)
        finally:
            torch.set_num_threads(threads)


def responsibilities(
    x: np.ndarray,
    config: TrainingConfig,
    say: Callable[[str], None],
    features: np.ndarray | None = None,
) -> np.ndarray:
    """Clusters of ``x (n, D)`` by PCA, UMAP and one of several Gaussian mixtures: ``(n, K)``.

    Which, ``gmm_choice`` says: the likeliest, or by `training.mixture.even_score`.

    With ``embedding_metric`` cosine, rows of ``x`` count by their direction from the mean row, not by how far
    from it they are. ``features (n, H)``, learned of the same rows, count as much as ``x`` does: the
    principal components of both lie side by side, either's a mean square of 1 from their centre. What the
    one cannot tell apart the other may.

    Of ``config.embeddings`` embeddings, the medoid is taken: likelihoods in different spaces do not compare,
    and a clustering that the others find too is no accident of its seed. Where there are many rows they are
    made side by side, in as many processes as torch has threads: UMAP with a seed runs in one thread.
    """
    points = comparable(x, config.embedding_metric, config.seed)
    if features is not None:
        points = side_by_side(points, components(features, config.seed))
    by, done = ("umap", "embedded and clustered") if _can_be_embedded(points) else ("mixture", "clustered")
    found = []
    if by == "umap":
        say(f"umap: embedding {len(x)} rows; the first on a machine compiles, for up to a minute")
    for clustering in _clusterings(points, config):
        found.append(clustering)
        say(f"{by} {len(found)}/{config.embeddings}: {len(x)} rows {done}")
    agreements = mean_agreement([r.argmax(1) for r in found])
    if len(found) > 1:
        say(f"mean agreement with the others: {', '.join(f'{a:.3f}' for a in agreements)}")
    return found[int(np.argmax(agreements))]


def _clusterings(points: np.ndarray, config: TrainingConfig) -> Iterator[np.ndarray]:
    """Clusters ``(n, K)`` by each of the embeddings of ``points``, in order, each as soon as it is there."""
    states = (np.random.SeedSequence((config.seed, index)) for index in range(config.embeddings))
    seeds = [int(state.generate_state(1)[0] >> 1) for state in states]
    workers = min(len(seeds), torch.get_num_threads()) if len(points) >= PARALLEL_ROWS else 1
    tasks = (delayed(_clustering)(points, config, seed, os.getpid()) for seed in seeds)
    clusterings: Iterator[np.ndarray] = Parallel(
        workers,
        backend="loky",
        return_as="generator",
        inner_max_num_threads=1,
        idle_worker_timeout=WORKER_IDLE_SECONDS,
    )(tasks)
    return clusterings


def _clustering(points: np.ndarray, config: TrainingConfig, seed: int, parent: int) -> np.ndarray:
    if os.getpid() != parent:
        _end_with(parent)
    embedding = embed(points, config.n_neighbors, seed)
    choose = fit_even_mixture if config.gmm_choice == "even" else fit_mixture
    mixture = choose(embedding, config.n_clusters, config.gmm_starts, seed)
    return np.asarray(mixture.predict_proba(embedding))


def _end_with(parent: int) -> None:
    """End this process soon after ``parent``, which started it: nobody else would, and it has much memory."""

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(1)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
