"""Clusters of a UMAP embedding: principal components, UMAP, a Gaussian mixture (McConville et al., 2020)."""

from __future__ import annotations

import warnings
from collections.abc import Callable

import numpy as np
from sklearn import config_context
from sklearn.decomposition import PCA

from training.config import TrainingConfig
from training.mixture import fit_mixture

COMPONENTS = 50
DIMENSIONS = 10
EMBEDDED_ROWS = 70_000
LEAST_ROWS = DIMENSIONS + 3


def embed(x: np.ndarray, n_neighbors: int, seed: int) -> np.ndarray:
    """UMAP embedding of rows: 50 principal components to 10 dimensions, minimum distance 0.

    Parameters
    ----------
    x
        ``(n, D)`` preprocessed rows.
    n_neighbors
        Neighbours of a row in UMAP's graph; fewer where there are not that many rows.
    seed
        Decides the embedding; for that UMAP runs in one thread.

    Returns
    -------
    ndarray
        float64 ``(n, 10)``, or the principal components themselves where ten dimensions are no
        reduction or the rows are too few for a graph.
    """
    # The caller may have scikit-learn's array API switched on, which UMAP does not know.
    with config_context(array_api_dispatch=False), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        width = min(COMPONENTS, *x.shape)
        components = PCA(width, random_state=seed).fit_transform(x)
        if width <= DIMENSIONS or len(x) < LEAST_ROWS:
            return np.asarray(components, np.float64)
        from umap import UMAP  # compiles for seconds; only this start needs it

        umap = UMAP(
            n_neighbors=min(n_neighbors, len(x) - 1),
            n_components=DIMENSIONS,
            min_dist=0.0,
            random_state=seed,
            n_jobs=1,
        )
        return np.asarray(umap.fit_transform(components), np.float64)


def responsibilities(x: np.ndarray, config: TrainingConfig, say: Callable[[str], None]) -> np.ndarray:
    """Clusters of ``x (n, D)`` by PCA, UMAP and the likeliest of several Gaussian mixtures: ``(n, K)``."""
    embedding = embed(x, config.n_neighbors, config.seed)
    say(f"umap: {len(x)} rows embedded in {embedding.shape[1]} dimensions")
    mixture = fit_mixture(embedding, config.n_clusters, config.gmm_starts, config.seed)
    return np.asarray(mixture.predict_proba(embedding))
