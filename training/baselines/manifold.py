"""A Gaussian mixture on a UMAP embedding that also takes rows it has not seen (McInnes et al., 2018)."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from typing import Any

import numpy as np
from sklearn.mixture import GaussianMixture

from training.baselines.begin import Say
from training.config import TrainingConfig
from training.embedding import LEAST_ROWS, fit_umap
from training.mixture import fit_mixture


@dataclass(frozen=True)
class UmapMixture:
    """Where a point lies in the embedding, and the most probable component there.

    Attributes
    ----------
    umap
        A fitted UMAP, or ``None`` if points stay as they are.
    mixture
        Fitted to the embedding of the training points.
    """

    umap: Any
    mixture: GaussianMixture

    def predict(self, points: np.ndarray) -> np.ndarray:
        """Clusters of points, ``(n, D) -> (n,)``.

        New points are placed by ``UMAP.transform``, all at once: the place of one depends a little on the
        others it came with. The training points, given as they were, have their own places.
        """
        return np.asarray(self.mixture.predict(self._embed(points)))

    def _embed(self, points: np.ndarray) -> np.ndarray:
        if self.umap is None:
            return np.asarray(points, np.float64)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return np.asarray(self.umap.transform(points), np.float64)


def fit_umap_mixture(points: np.ndarray, config: TrainingConfig, say: Say, *, reduce: bool) -> UmapMixture:
    """Embed ``points (n, D)`` in 10 dimensions and fit the likeliest of ``gmm_starts`` mixtures there.

    Parameters
    ----------
    reduce
        Whether to embed at all; too few points for a graph never are.
    """
    umap = None
    if reduce and len(points) >= LEAST_ROWS:
        umap = fit_umap(points, config.n_neighbors, config.seed)
        say(f"umap: {len(points)} rows embedded")
    embedding = np.asarray(points if umap is None else umap.embedding_, np.float64)
    mixture = fit_mixture(embedding, config.n_clusters, config.gmm_starts, config.seed)
    return UmapMixture(umap, mixture)
