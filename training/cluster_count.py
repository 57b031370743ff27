"""Measures of how many clusters there are, K by K: Gaussian mixtures on the embedding a fit would start from.

Every measure is also taken of a single Gaussian cloud of the same covariance, put through the same steps:
an embedding makes islands of anything, and a mixture finds clusters in them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import combinations

import numpy as np
from pydantic import BaseModel, ConfigDict
from sklearn.metrics import adjusted_rand_score, silhouette_score

from serving.manifest import InputSpec
from training.config import EmbeddingMetric, TrainingConfig
from training.data import check_fit
from training.embedding import comparable, embed
from training.mixture import fit_mixture
from training.model import NVISAModel

MOST_ROWS = 20_000
SILHOUETTE_ROWS = 3_000
SUBSAMPLE_ROWS = 5_000
Say = Callable[[str], None]


class Measure(BaseModel):
    """What is known of one K.

    Attributes
    ----------
    bic
        Bayesian information criterion of the mixture; lower is better.
    silhouette
        Mean silhouette of up to 3,000 rows in the embedding, in [-1, 1]; NaN if all are in one cluster.
    stability, stability_std
        Mean and std of the adjusted Rand index between mixtures of overlapping halves of the rows.
    cloud_silhouette, cloud_stability
        The same of a single Gaussian cloud.
    """

    model_config = ConfigDict(frozen=True)

    k: int
    bic: float
    silhouette: float
    stability: float
    stability_std: float
    cloud_silhouette: float
    cloud_stability: float


def check_range(n_rows: int, first: int, last: int) -> None:
    """Refuse a range of K that cannot be measured on ``n_rows`` rows.

    Raises
    ------
    ValueError
        If it is empty, begins below 2, or ends where half of the rows are fewer than the clusters.
    """
    if first < 2:
        raise ValueError(f"--from {first}: with fewer than 2 clusters there is nothing to compare")
    if first > last:
        raise ValueError(f"--from {first} is more than --to {last}")
    if 2 * last > n_rows:
        raise ValueError(
            f"--to {last} needs at least {2 * last} rows, twice as many as clusters, and there are {n_rows}"
        )


def measure(
    x: np.ndarray,
    spec: InputSpec,
    ks: range,
    *,
    n_neighbors: int,
    embedding_metric: EmbeddingMetric,
    starts: int,
    repeats: int,
    seed: int,
    say: Say,
) -> Iterator[Measure]:
    """Measure every K of ``ks`` on rows ``x (n, *shape)``, one after the other.

    Parameters
    ----------
    n_neighbors
        Of a row in UMAP's graph.
    embedding_metric
        By which rows are alike: see `training.embedding.comparable`.
    starts
        Starts of every mixture, the likeliest kept.
    repeats
        Mixtures of halves of the rows, compared in pairs, for the stability.

    Raises
    ------
    ValueError
        If the range does not fit the rows, or they cannot be clustered at all.
    """
    check_range(len(x), ks.start, ks.stop - 1)
    check_fit(x, ks.stop - 1)
    points = comparable(preprocessed(x, spec), embedding_metric, seed)
    say(f"embedding of {len(x)} rows")
    embedding = embed(points, n_neighbors, seed)
    say("embedding of a Gaussian cloud, for comparison")
    cloud = embed(gaussian_cloud(points, seed), n_neighbors, seed)
    for k in ks:
        bic, silhouette, stability, std = _of(embedding, k, starts, repeats, seed)
        _, cloud_silhouette, cloud_stability, _ = _of(cloud, k, starts, repeats, seed)
        say(f"K = {k}: BIC {bic:.0f}, silhouette {silhouette:.3f}, stability {stability:.3f}")
        yield Measure(
            k=k,
            bic=bic,
            silhouette=silhouette,
            stability=stability,
            stability_std=std,
            cloud_silhouette=cloud_silhouette,
            cloud_stability=cloud_stability,
        )


def subsample(x: np.ndarray, most: int, seed: int) -> np.ndarray:
    """At most ``most`` random rows of ``x``, in their order."""
    if len(x) <= most:
        return x
    return x[np.sort(np.random.default_rng(seed).permutation(len(x))[:most])]


def preprocessed(x: np.ndarray, spec: InputSpec) -> np.ndarray:
    """Rows ``(n, *shape)`` as a model would see them, float32 ``(n, D)``."""
    import torch

    model = NVISAModel(TrainingConfig(n_clusters=1, hidden_sizes=(1,), latent_dim=1), spec)
    if spec.dtype == "float32":
        columns = x.reshape(len(x), -1).astype(np.float64)
        model.standardise_as(torch.from_numpy(columns.mean(0)), torch.from_numpy(columns.std(0)))
    parts = [model.preprocess(part) for part in torch.from_numpy(np.ascontiguousarray(x)).split(8192)]
    return torch.cat(parts).numpy()


def gaussian_cloud(points: np.ndarray, seed: int) -> np.ndarray:
    """As many draws from one Gaussian with the covariance of principal components ``points (n, D)``."""
    return np.random.default_rng(seed).standard_normal(points.shape) * points.std(0, ddof=1)


def _of(
    points: np.ndarray, k: int, starts: int, repeats: int, seed: int
) -> tuple[float, float, float, float]:
    """BIC, silhouette, and mean and std of the stability."""
    mixture = fit_mixture(points, k, starts, seed)
    shown = subsample(points, SILHOUETTE_ROWS, seed)
    labels = mixture.predict(shown)
    apart = 1 < len(np.unique(labels)) < len(shown)
    silhouette = float(silhouette_score(shown, labels)) if apart else float("nan")
    size = min(len(points) // 2, SUBSAMPLE_ROWS)
    runs = [
        fit_mixture(_part(points, size, (seed, run)), k, starts, seed + run).predict(shown)
        for run in range(repeats)
    ]
    agreement = [adjusted_rand_score(a, b) for a, b in combinations(runs, 2)]
    return float(mixture.bic(points)), silhouette, float(np.mean(agreement)), float(np.std(agreement))


def _part(points: np.ndarray, size: int, entropy: tuple[int, int]) -> np.ndarray:
    return points[np.random.default_rng(entropy).permutation(len(points))[:size]]
