"""Contrastive learning of the encoder: the loss, what it changes, and when it happens."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from serving.manifest import InputSpec
from training import augment, contrastive, embedding
from training.augment import view
from training.config import TrainingConfig
from training.contrastive import contrast, contrastive_features, nt_xent
from training.divergence import DivergedError
from training.embedding import responsibilities
from training.initialise import initialise_umap
from training.model import NVISAModel

IMAGES = InputSpec(dtype="uint8", shape=(16, 16), meaning="image")
FEATURES = InputSpec(dtype="float32", shape=(6,), meaning="features")


def config(**changes) -> TrainingConfig:
    values = {"n_clusters": 2, "latent_dim": 2, "hidden_sizes": (32,), "network": "conv"}
    values |= {"initialisation": "umap", "contrastive_steps": 40, "pretrain_epochs": 2, "gmm_starts": 2}
    return TrainingConfig(**values | changes)


def model_of(settings: TrainingConfig, spec: InputSpec = IMAGES) -> NVISAModel:
    torch.manual_seed(0)
    return NVISAModel(settings, spec)


@pytest.fixture(scope="module")
def images():
    """Two kinds of strokes, at places that differ."""
    random = np.random.default_rng(1)
    x = random.integers(0, 30, (120, 16, 16))
    for index, place in enumerate(random.integers(3, 13, 120)):
        x[(index, place) if index % 2 else (index, slice(None), place)] = 220
    return torch.from_numpy(x.astype(np.uint8))


def test_the_loss_is_that_of_simclr():
    """Equation 1 of the paper, pair by pair."""
    projected = torch.randn(8, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    unit = projected / projected.norm(dim=1, keepdim=True)
    similarity = (unit @ unit.T / contrastive.TEMPERATURE).exp()
    losses = []
    for one in range(8):
        other = (one + 4) % 8
        losses.append(-math.log(similarity[one, other] / (similarity[one].sum() - similarity[one, one])))
    assert nt_xent(projected).item() == pytest.approx(np.mean(losses), rel=1e-12)


@pytest.mark.parametrize("shape", [(16, 16), (16, 16, 3), (3, 16, 20)])
def test_a_view_without_extent_is_the_image(monkeypatch, shape):
    for name in ("TURN", "LOG_STRETCH", "LOG_GAMMA", "CONTRAST"):
        monkeypatch.setattr(augment, name, 0.0)
    monkeypatch.setattr(augment, "LEAST_AREA", 1.0)
    spec = InputSpec(dtype="uint8", shape=shape, meaning="image")
    rows = torch.rand(5, math.prod(shape))
    torch.testing.assert_close(view(rows, spec, torch.Generator().manual_seed(0)), rows)


def test_a_view_is_a_part_of_the_image(monkeypatch):
    """Of a ramp from left to right a part is a less steep ramp, and never anything from outside."""
    for name in ("TURN", "LOG_STRETCH", "LOG_GAMMA", "CONTRAST"):
        monkeypatch.setattr(augment, name, 0.0)
    ramp = torch.linspace(0, 1, 16).expand(16, 16).flatten().repeat(400, 1)
    views = view(ramp, IMAGES, torch.Generator().manual_seed(0)).view(-1, 16, 16)[:, 4:12, 1:-1]
    steps = (views[:, :, 1:] - views[:, :, :-1]) * 15
    slopes = steps.mean((1, 2))
    assert slopes.min() > math.sqrt(augment.LEAST_AREA) - 0.02
    assert slopes.max() < 1 + 1e-5
    assert slopes.max() - slopes.min() > 0.35
    assert (steps - slopes[:, None, None]).abs().max() < 1e-4
    assert views.mean((1, 2)).std() > 0.03, "parts lie at different places"


def test_tones_of_channels_differ_and_views_of_equal_images_do():
    spec = InputSpec(dtype="uint8", shape=(3, 16, 16), meaning="image")
    grey = torch.full((50, 3 * 256), 0.5)
    views = view(grey, spec, torch.Generator().manual_seed(0)).view(50, 3, 256)
    tones = views.median(2).values
    assert tones.std(0).min() > 0.05
    assert (tones[:, 0] - tones[:, 1]).abs().mean() > 0.05


def test_the_encoder_learns_which_images_are_alike_and_nothing_else_changes(images):
    settings = config(contrastive_steps=150)
    model = model_of(settings)
    before = {name: value.clone() for name, value in model.state_dict().items()}

    @torch.no_grad()
    def alike() -> float:
        """How much nearer new views of an image lie to each other than to those of the other kind."""
        x = model.preprocess(images)
        one, two = (
            F.normalize(model.encoder(view(x, IMAGES, torch.Generator().manual_seed(s))), dim=1)
            for s in (5, 6)
        )
        return float((one * two).sum(1).mean() - (one[::2] @ two[1::2].T).mean())

    untrained, said = alike(), []
    contrast(model, images, settings, said.append)
    assert alike() > 2 * untrained
    assert 5 <= len(said) <= 10
    assert said[-1].startswith("contrastive step 150/150: loss ")
    changed = {name for name, value in model.state_dict().items() if not torch.equal(value, before[name])}
    assert changed
    assert all(name.startswith("encoder.") for name in changed)
    features = contrastive_features(model, images)
    assert features.shape == (120, 32)
    torch.testing.assert_close(features.norm(dim=1), torch.ones(120))


def test_the_same_seed_learns_the_same_and_another_does_not(images):
    learned = []
    for seed in (0, 0, 1):
        model = model_of(config(seed=seed))
        contrast(model, images, config(seed=seed, contrastive_steps=10), lambda _: None)
        learned.append(contrastive_features(model, images))
    assert torch.equal(learned[0], learned[1])
    assert not torch.equal(learned[0], learned[2])


def test_a_start_embeds_images_by_their_values_and_what_was_learned_and_features_by_their_values(
    images, monkeypatch
):
    given = []

    def remembered(x, settings, say, features=None):
        given.append((x, features))
        return np.eye(2)[np.arange(len(x)) % 2]

    monkeypatch.setattr("training.initialise.responsibilities", remembered)
    said: list[str] = []
    model = model_of(config())
    initialise_umap(model, images, config(), said.append)
    assert [line for line in said if line.startswith("contrastive")][-1].startswith("contrastive step 40/40")
    x, features = given[0]
    np.testing.assert_allclose(x, (images.flatten(1).numpy() + 0.5) / 256)
    assert features.shape == (120, 32)
    said.clear()
    settings = config(network="auto")
    initialise_umap(model_of(settings, FEATURES), torch.randn(40, 6), settings, said.append)
    assert not [line for line in said if line.startswith("contrastive")]
    assert given[1][0].shape == (40, 6)
    assert given[1][1] is None


def test_features_count_as_much_as_values_whatever_their_scale(monkeypatch):
    embedded = []
    monkeypatch.setattr(embedding, "embed", lambda points, *_: embedded.append(points) or points)
    random = np.random.default_rng(0)
    x, features = 100 * random.standard_normal((60, 6)), 0.01 * random.standard_normal((60, 90))
    responsibilities(x, config(), lambda _: None, features)
    points = embedded[0]
    assert points.shape == (60, 6 + 50)
    assert np.square(points[:, :6]).sum(1).mean() == pytest.approx(1)
    assert np.square(points[:, 6:]).sum(1).mean() == pytest.approx(1)
    distances = np.linalg.norm(points[:, None, :6] - points[None, :, :6], axis=2)
    own = np.linalg.norm(x[:, None] - x[None], axis=2)
    np.testing.assert_allclose(distances / distances.max(), own / own.max(), atol=1e-9)


def test_without_pixels_what_was_learned_is_embedded_alone_and_features_by_their_values(images, monkeypatch):
    given = []

    def remembered(x, settings, say, features=None):
        given.append((x, features))
        return np.eye(2)[np.arange(len(x)) % 2]

    monkeypatch.setattr("training.initialise.responsibilities", remembered)
    settings = config(embed_pixels=False)
    model = model_of(settings)
    monkeypatch.setattr("training.initialise.agree", lambda *_: None)  # it would train the encoder on
    initialise_umap(model, images, settings, lambda _: None)
    np.testing.assert_array_equal(given[0][0], contrastive_features(model, images).numpy())
    settings = config(network="auto", embed_pixels=False)
    initialise_umap(model_of(settings, FEATURES), torch.randn(40, 6), settings, lambda _: None)
    assert given[1][0].shape == (40, 6)
    assert [features for _, features in given] == [None, None]


def test_what_is_not_finite_is_told(images, monkeypatch):
    monkeypatch.setattr(contrastive, "LEARNING_RATE", math.inf)
    with pytest.raises(DivergedError, match="contrastive learning diverged"):
        contrast(model_of(config()), images, config(contrastive_steps=20), lambda _: None)
