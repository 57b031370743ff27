"""What a UMAP start takes as alike: rows by their place, or by their direction."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.metrics import adjusted_rand_score

from training.config import TrainingConfig
from training.embedding import directions, responsibilities


def test_directions_are_of_length_1_and_of_the_mean_there_is_none():
    x = np.array([[3, 4], [-3, -4], [0, 1], [0, -1], [0, 0]], np.float32)
    found = directions(x, x.mean(0))
    np.testing.assert_allclose(found, [[0.6, 0.8], [-0.6, -0.8], [0, 1], [0, -1], [0, 0]], rtol=1e-6)
    assert found.dtype == np.float32
    np.testing.assert_allclose(directions(7 * x + 2, 7 * x.mean(0) + 2), found, atol=1e-6)


@pytest.mark.parametrize(("metric", "finds_rays"), [("cosine", True), ("euclidean", False)])
def test_rows_on_rays_from_the_mean_are_alike_by_cosine(metric, finds_rays):
    rng = np.random.default_rng(0)
    ray = np.arange(200) % 2
    angle = ray * np.pi / 2 + rng.normal(0, 0.05, 200)
    # Along a ray rows lie further apart than rays do. Each has an opposite, so that the mean is where rays meet.
    half = np.exp(rng.normal(0, 2, (200, 1))) * np.stack([np.cos(angle), np.sin(angle)], 1)
    config = TrainingConfig(n_clusters=4, initialisation="umap", embedding_metric=metric, gmm_starts=3)
    found = responsibilities(np.concatenate([half, -half]), config, lambda _: None).argmax(1)
    assert (adjusted_rand_score(np.concatenate([ray, ray + 2]), found) > 0.95) is finds_rays
