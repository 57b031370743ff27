"""The umap start: clusters of an embedding, and the model brought to agree on them; anchors; the guard."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from sklearn.metrics import adjusted_rand_score

from serving.manifest import InputSpec
from training import embedding
from training.agreement import agree, anchor_loss
from training.config import TrainingConfig
from training.divergence import DivergedError
from training.embedding import embed, responsibilities
from training.initialise import Start, initialise_umap
from training.loop import train
from training.medoid import mean_agreement
from training.model import NVISAModel
from training.schedule import epoch_generator
from training.step import batch_objective

FEATURES = InputSpec(dtype="float32", shape=(6,), meaning="features")
IMAGES = InputSpec(dtype="uint8", shape=(16, 16), meaning="image")


def config(**changes) -> TrainingConfig:
    values = {
        "n_clusters": 3,
        "latent_dim": 2,
        "hidden_sizes": (32,),
        "initialisation": "umap",
        "pretrain_epochs": 20,
        "gmm_starts": 3,
        "batch_size": 30,
        "n_importance_samples": 3,
        "epsilon_every": 2,
        "epsilon_floor": 0.5,
    }
    return TrainingConfig(**values | changes)


@pytest.fixture(scope="module")
def blobs():
    random = np.random.default_rng(0)
    x = 4 * random.standard_normal((3, 1, 6)) + random.standard_normal((3, 60, 6))
    return torch.from_numpy(x.reshape(-1, 6).astype("f4")), np.repeat(np.arange(3), 60)


@pytest.fixture(scope="module")
def images():
    """Three kinds of strokes, at places that differ."""
    random = np.random.default_rng(1)
    x = random.integers(0, 30, (90, 16, 16))
    for index, (place, kind) in enumerate(
        zip(random.integers(5, 10, 90), np.repeat(range(3), 30), strict=True)
    ):
        if kind != 1:
            x[index, place, 2:14] = 220
        if kind != 0:
            x[index, 2:14, place] = 220
    return torch.from_numpy(x.astype(np.uint8)), np.repeat(np.arange(3), 30)


def model_of(settings: TrainingConfig, spec: InputSpec) -> NVISAModel:
    torch.manual_seed(0)
    return NVISAModel(settings, spec)


def test_umap_start_finds_the_blobs_and_everything_agrees_on_them(blobs):
    rows, truth = blobs
    settings = config(learning_rate=1e-2, pretrain_epochs=60)
    model = model_of(settings, FEATURES)
    model.standardise_as(rows.mean(0), rows.std(0))
    start = initialise_umap(model, rows, settings, lambda _: None)
    with torch.no_grad():
        q = model(rows)
        hidden = model.encode(model.preprocess(rows)).hidden
        mean, _ = model.q_z(hidden, q.argmax(1))
        nearest = torch.cdist(mean, model.prior_mean).argmin(1)
    assert adjusted_rand_score(truth, q.argmax(1)) > 0.95
    assert (nearest == q.argmax(1)).float().mean() > 0.9, "each row's code lies with its cluster's prior"
    assert np.array_equal(start.predict(model, rows.numpy()), q.argmax(1))


def test_umap_start_survives_a_checkpoint(blobs):
    rows, _ = blobs
    settings = config(pretrain_epochs=2)
    model = model_of(settings, FEATURES)
    start = initialise_umap(model, rows, settings, lambda _: None)
    again = Start.from_tensors(start.tensors())
    with torch.no_grad():
        model.y_head.bias.add_(torch.tensor([50.0, 0.0, 0.0]))  # what was trained since does not count
    assert again.mixture is None
    assert np.array_equal(again.predict(model, rows.numpy()), start.predict(model, rows.numpy()))
    assert len(np.unique(again.predict(model, rows.numpy()))) > 1


def test_the_medoid_of_the_embeddings_is_taken(monkeypatch):
    """Two of three clusterings agree; whichever is odd, one of the two is taken."""
    good, odd = np.repeat([0, 1], 10), np.tile([0, 1], 10)
    for place in range(3):
        found = [good, good, good]
        found[place] = odd
        turn = iter(found)

        class Mixture:
            def __init__(self, clusters):
                self.clusters = clusters

            def predict_proba(self, _):
                return np.eye(2)[self.clusters]

        monkeypatch.setattr(embedding, "embed", lambda x, *_: x)
        monkeypatch.setattr(embedding, "fit_mixture", lambda *_, turn=turn, kind=Mixture: kind(next(turn)))
        settings = config(n_clusters=2, embeddings=3)
        chosen = responsibilities(np.random.default_rng(0).random((20, 4)), settings, lambda _: None)
        assert np.array_equal(chosen.argmax(1), good)


def test_mean_agreement_is_the_mean_of_adjusted_rand_indices():
    one, two, three = (np.random.default_rng(s).integers(0, 3, 40) for s in range(3))
    expected = (adjusted_rand_score(one, two) + adjusted_rand_score(one, three)) / 2
    assert mean_agreement([one, two, three])[0] == pytest.approx(expected)
    assert mean_agreement([one]) == [0.0]


def test_few_rows_or_columns_are_left_as_they_are():
    assert embed(np.ones((5, 30)), 20, 0).shape == (5, 30)
    assert embed(np.ones((50, 4)), 20, 0).shape == (50, 4)


def test_an_embedding_is_a_function_of_its_seed():
    x = np.random.default_rng(0).standard_normal((60, 12))
    threads = torch.get_num_threads()
    first, second, other = (embed(x, 10, seed) for seed in (1, 1, 2))
    assert torch.get_num_threads() == threads, "of which how torch rounds depends"
    assert np.array_equal(first, second)
    assert not np.allclose(first, other)


def test_anchors_count_both_the_rows_and_their_changed_selves(images):
    rows, truth = images
    settings = config(augment=True)
    model = model_of(settings, IMAGES)
    x, clusters = model.preprocess(rows), torch.from_numpy(truth)

    def loss(settings: TrainingConfig, **options: bool) -> torch.Tensor:
        generator = epoch_generator(0, 0, rows.device)
        return anchor_loss(model, model.encode(x), x, clusters, settings, generator, **options)

    plain = loss(config(augment=False))
    expected = -model.encode(x).log_q_y[torch.arange(len(x)), clusters]
    torch.testing.assert_close(plain, expected)
    changed = loss(settings, changed_only=True)
    assert not torch.allclose(plain, changed)
    torch.testing.assert_close(loss(settings), (plain + changed) / 2)


def test_agreement_on_images_reaches_clusters_that_moved(images):
    rows, truth = images
    settings = config(network="conv", augment=True, pretrain_epochs=12)
    model = model_of(settings, IMAGES)
    said: list[str] = []
    agree(model, rows, torch.from_numpy(truth), settings, said.append)
    with torch.no_grad():
        assert (model(rows).argmax(1).numpy() == truth).mean() > 0.9
    assert said[-1].startswith("agreement epoch 12/12")


def test_agreement_that_diverges_says_so(blobs):
    rows, truth = blobs
    settings = config(learning_rate=1e30, pretrain_epochs=3)
    with pytest.raises(DivergedError, match="agreement with the start diverged"):
        agree(model_of(settings, FEATURES), rows, torch.from_numpy(truth), settings, lambda _: None)


def test_anchors_are_taken_anew_at_each_stage_and_hold_q(blobs):
    rows, truth = blobs
    settings = config(anchor=10.0, epsilon_floor=0.25)
    run = train(settings, rows, FEATURES)
    assert run.anchors is not None
    with torch.no_grad():
        assert adjusted_rand_score(truth, run.model(rows).argmax(1)) > 0.95
        # The anchors are q's own clusters at the start of the last stage.
        assert (run.model(rows).argmax(1) == run.anchors).float().mean() > 0.95


def test_a_random_start_has_no_anchors_before_its_second_stage(blobs):
    rows, _ = blobs
    settings = config(initialisation="random", anchor=10.0)
    assert train(settings.model_copy(update={"epochs": 2}), rows, FEATURES).anchors is None
    assert train(settings.model_copy(update={"epochs": 3}), rows, FEATURES).anchors is not None


def test_the_guard_pulls_at_empty_clusters_and_leaves_the_bound_alone(blobs):
    rows, _ = blobs
    plain, guarded = config(initialisation="random"), config(initialisation="random", balance=5.0)
    model = model_of(plain, FEATURES)
    with torch.no_grad():
        model.y_head.weight.zero_()
        model.y_head.bias.copy_(torch.tensor([4.0, 0.0, 0.0]))
    x = model.preprocess(rows)
    steps, slopes = [], []
    for settings in (plain, guarded):
        model.zero_grad()
        step = batch_objective(model, None, x, settings, epoch_generator(0, 0, rows.device))
        step.objective.surrogate.mean().backward()
        steps.append(step)
        slopes.append(model.y_head.bias.grad.clone())
    torch.testing.assert_close(steps[0].objective.bound, steps[1].objective.bound)
    difference = slopes[1] - slopes[0]
    # d/db_k of -sum p log p at p = softmax(b): -p_k (log p_k + H).
    p = torch.softmax(torch.tensor([4.0, 0.0, 0.0]), 0)
    entropy = -(p * p.log()).sum()
    torch.testing.assert_close(difference, -5 * p * (p.log() + entropy), rtol=1e-3, atol=1e-4)
    assert math.isclose(float(steps[0].mean_q_y.sum()), 1, rel_tol=1e-5)
