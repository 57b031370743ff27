"""What a UMAP start takes as alike: rows by their place, or by their direction."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from sklearn.metrics import adjusted_rand_score

from training import embedding
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


def test_of_many_rows_embeddings_are_made_in_processes_and_are_the_same(monkeypatch):
    # Of three columns UMAP makes no embedding: it is the processes that count here.
    x = np.random.default_rng(0).standard_normal((300, 3)).astype(np.float32)
    config = TrainingConfig(n_clusters=3, initialisation="umap", gmm_starts=2, embeddings=3)
    alone, said = responsibilities(x, config, lambda _: None), []
    threads = torch.get_num_threads()
    monkeypatch.setattr(embedding, "PARALLEL_ROWS", len(x))
    monkeypatch.setattr(embedding, "fit_mixture", None)  # here, not in the processes
    torch.set_num_threads(2)
    try:
        found = responsibilities(x, config, said.append)
    finally:
        torch.set_num_threads(threads)
    np.testing.assert_allclose(found, alone, rtol=1e-6, atol=1e-12)
    assert [line.partition(":")[0] for line in said[:3]] == ["mixture 1/3", "mixture 2/3", "mixture 3/3"]
