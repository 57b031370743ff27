"""Which of several mixtures is kept: the likeliest, or one whose clusters are of like sizes."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.mixture import GaussianMixture

from training import embedding
from training.config import TrainingConfig
from training.embedding import responsibilities
from training.mixture import even_score, fit_even_mixture, fit_mixture

ROWS = 300


def two_lobes_and_two_that_touch() -> np.ndarray:
    """Three clusters of a like size: one of two dense halves, and two broad ones that touch; ``(900, 4)``."""
    rng = np.random.default_rng(0)
    places = np.zeros((3, ROWS, 4))
    places[0, ::2, 0] = 1.0
    places[1, :, 0], places[2, :, 0] = 10.0, 14.0
    widths = np.array([0.08, 1.0, 1.0]).reshape(3, 1, 1)
    return np.concatenate(places + widths * rng.standard_normal(places.shape))


def mixture(points: np.ndarray, places: list[float]) -> GaussianMixture:
    means = np.zeros((len(places), points.shape[1]))
    means[:, 0] = places
    precisions = np.tile(np.eye(points.shape[1]), (len(places), 1, 1))
    return GaussianMixture(len(places), means_init=means, precisions_init=precisions, random_state=0).fit(
        points
    )


def test_halves_of_one_cluster_are_likelier_but_clusters_of_like_sizes_score_higher():
    points = two_lobes_and_two_that_touch()
    halves, even = mixture(points, [0, 1, 12]), mixture(points, [0.5, 10, 14])
    assert sorted(halves.weights_) == pytest.approx([1 / 6, 1 / 6, 2 / 3], abs=0.01)
    assert even.weights_ == pytest.approx([1 / 3] * 3, abs=0.02)
    assert halves.lower_bound_ > even.lower_bound_
    assert even_score(even) > even_score(halves)


def test_score_is_the_likelihood_a_dimension_less_the_divergence():
    found = mixture(two_lobes_and_two_that_touch(), [0, 1, 12])
    weights = found.weights_
    divergence = (weights * np.log(3 * weights)).sum()
    assert even_score(found) == pytest.approx(found.lower_bound_ / 4 - divergence)


def test_the_start_of_the_highest_score_is_kept_and_found_again():
    points = np.random.default_rng(1).standard_normal((200, 3))
    seeds = np.random.SeedSequence(5).generate_state(6) >> 1
    scores = [even_score(fit_mixture(points, 4, 1, int(seed))) for seed in seeds]
    assert len(set(np.round(scores, 6))) > 1, "the starts are all alike, and choose nothing"
    found = fit_even_mixture(points, 4, 6, 5)
    assert even_score(found) == pytest.approx(max(scores))
    assert np.array_equal(found.predict(points), fit_even_mixture(points, 4, 6, 5).predict(points))


@pytest.mark.parametrize("choice", ["likelihood", "even"])
def test_the_start_of_a_fit_takes_the_choice_it_is_told(choice, monkeypatch):
    points = np.random.default_rng(1).standard_normal((200, 3))
    config = TrainingConfig(n_clusters=4, initialisation="umap", gmm_starts=6, gmm_choice=choice)
    monkeypatch.setattr(embedding, "embed", lambda x, *_: x)
    found = responsibilities(points, config, lambda _: None)
    seed = int(np.random.SeedSequence((config.seed, 0)).generate_state(1)[0] >> 1)
    x = embedding.components(points, config.seed)
    other = {"likelihood": fit_even_mixture, "even": fit_mixture}[choice](x, 4, 6, seed).predict_proba(x)
    own = {"likelihood": fit_mixture, "even": fit_even_mixture}[choice](x, 4, 6, seed).predict_proba(x)
    np.testing.assert_allclose(found, own)
    assert not np.allclose(found, other)
