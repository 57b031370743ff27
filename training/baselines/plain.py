"""Baselines without a network: k-means, and a mixture on a UMAP embedding of principal components."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from sklearn import config_context
from sklearn.cluster import KMeans
from sklearn.decomposition import PCA

from training.baselines.begin import Say, begin
from training.baselines.clusterer import Clusterer, PointClusterer, flat_rows
from training.baselines.manifold import UmapMixture, fit_umap_mixture
from training.config import TrainingConfig
from training.embedding import COMPONENTS, DIMENSIONS, EMBEDDED_ROWS, directions

STARTS = 10


def fit_kmeans(x: np.ndarray, config: TrainingConfig, say: Say) -> Clusterer:
    """k-means on preprocessed rows, the best of ten starts by inertia (scikit-learn)."""
    model, rows = begin(x, config, say)
    points = flat_rows(model, rows)
    with config_context(array_api_dispatch=False):
        kmeans = KMeans(config.n_clusters, n_init=STARTS, random_state=config.seed).fit(points)
    say(f"k-means: inertia {kmeans.inertia_:.4g} of {len(points)} rows")
    return PointClusterer(model, flat_rows, kmeans)


def fit_pca_umap_gmm(x: np.ndarray, config: TrainingConfig, say: Say) -> Clusterer:
    """50 principal components, UMAP to 10 dimensions, the likeliest of ``gmm_starts`` mixtures.

    NVISA's ``umap`` start with one embedding. At most 70,000 evenly spread rows are fitted.
    """
    model, rows = begin(x, config, say)
    points = flat_rows(model, rows[:: -(-len(rows) // EMBEDDED_ROWS)])
    mean = points.mean(0) if config.embedding_metric == "cosine" else None
    if mean is not None:
        points = directions(points, mean)
    with config_context(array_api_dispatch=False):
        # Not fit_transform: its last digits differ, and UMAP knows its training rows by their very bits.
        pca = PCA(min(COMPONENTS, *points.shape), random_state=config.seed).fit(points)
        components = pca.transform(points)
    reduces = components.shape[1] > DIMENSIONS
    return PointClusterer(
        model, flat_rows, _OnComponents(mean, pca, fit_umap_mixture(components, config, say, reduce=reduces))
    )


@dataclass(frozen=True)
class _OnComponents:
    mean: np.ndarray | None  # directions from it are what has components; None: the points themselves
    pca: Any
    assigner: UmapMixture

    def predict(self, points: np.ndarray) -> np.ndarray:
        if self.mean is not None:
            points = directions(points, self.mean)
        return self.assigner.predict(self.pca.transform(points))
