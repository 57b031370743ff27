"""The baselines: what they find, that a seed decides it, unseen rows, and bad fits."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.datasets import load_digits

from training.baselines import BASELINES
from training.config import TrainingConfig
from training.divergence import DivergedError
from training.scores import accuracy

CONFIG = TrainingConfig(
    n_clusters=4,
    latent_dim=3,
    hidden_sizes=(48, 32),
    pretrain_epochs=30,
    epochs=30,
    batch_size=32,
    learning_rate=2e-3,
    gmm_starts=3,
    seed=3,
)
WITH_NETS = sorted(BASELINES.keys() - {"kmeans", "pca-umap-gmm"})


def quiet(_: str) -> None:
    pass


@pytest.fixture(scope="module")
def blobs():
    """Four long parallel clouds, on which k-means cuts some in two: features and their classes."""
    random = np.random.default_rng(1)
    truth = np.repeat(np.arange(4), 110)
    x = random.standard_normal((440, 12))
    x[:, :2] += 7 * np.array([[0, 0], [0, 1], [1, 0], [1, 1]])[truth]
    order = random.permutation(440)
    mixing = np.linalg.qr(random.standard_normal((12, 12)))[0]
    return (3 * x @ mixing + 5).astype(np.float32)[order], truth[order]


@pytest.fixture(scope="module")
def some_digits():
    digits = load_digits(n_class=4)
    return np.round(digits.images * (255 / 16)).astype(np.uint8), digits.target


@pytest.fixture(scope="module", params=BASELINES)
def fitted(request, blobs):
    said = []
    return BASELINES[request.param].fit(blobs[0][:320], CONFIG, said.append), request.param, said


def test_finds_the_clouds_in_rows_it_has_not_seen(fitted, blobs):
    clusterer, name, said = fitted
    # GMVAE starts at random and may leave a cluster empty.
    floor = 0.7 if name == "gmvae" else 0.95
    x, truth = blobs
    clusters = clusterer.predict(x[320:])
    assert clusters.dtype == np.int64
    assert clusters.shape == (120,)
    assert set(clusters) <= set(range(4))
    assert accuracy(truth[320:], clusters) > floor
    assert accuracy(truth[:320], clusterer.predict(x[:320])) > floor
    assert said


def test_a_seed_decides_it(fitted, blobs):
    clusterer, name, _ = fitted
    x = blobs[0]
    again = BASELINES[name].fit(x[:320], CONFIG, quiet)
    assert (again.predict(x[320:]) == clusterer.predict(x[320:])).all()
    assert (again.predict(x[:320]) == clusterer.predict(x[:320])).all()


def test_a_rows_cluster_does_not_depend_on_its_company(fitted, blobs):
    clusterer, name, _ = fitted
    x = blobs[0][320:]
    if name in {"pca-umap-gmm", "n2d"}:
        pytest.skip("UMAP places new rows together")
    assert (
        np.concatenate([clusterer.predict(part) for part in np.split(x, 4)]) == clusterer.predict(x)
    ).all()


def test_by_cosine_how_far_from_the_mean_a_row_is_does_not_count():
    random = np.random.default_rng(0)
    truth = np.arange(200) % 2
    angle = truth * np.pi / 2 + random.normal(0, 0.05, 200)
    length = np.exp(random.normal(0, 1.5, (200, 1)))
    half = length * np.stack([np.cos(angle), np.sin(angle)], 1)
    x, truth = np.concatenate([half, -half]).astype(np.float32), np.concatenate([truth, truth + 2])
    config = CONFIG.model_copy(update={"embedding_metric": "cosine"})
    clusterer = BASELINES["pca-umap-gmm"].fit(x, config, quiet)
    clusters = clusterer.predict(x)
    assert accuracy(truth, clusters) > 0.98
    assert (clusterer.predict(x / 3) == clusters).mean() > 0.98


@pytest.mark.parametrize("name", BASELINES)
def test_digits_as_images(name, some_digits):
    x, truth = some_digits
    # GMVAE has no pretraining. With a short one the others' result is that of the processor's rounding.
    epochs, floor = (60, 0.6) if name == "gmvae" else (30, 0.8)
    config = CONFIG.model_copy(update={"latent_dim": 6, "pretrain_epochs": 100, "epochs": epochs, "seed": 0})
    clusterer = BASELINES[name].fit(x[:500], config, quiet)
    assert accuracy(truth[500:], clusterer.predict(x[500:])) > floor


@pytest.mark.parametrize("name", WITH_NETS)
def test_a_fit_that_diverges_says_so(name, blobs):
    config = CONFIG.model_copy(update={"learning_rate": 1e30, "pretrain_epochs": 2, "epochs": 2})
    with pytest.raises(DivergedError, match="lower learning_rate"):
        BASELINES[name].fit(blobs[0][:60], config, quiet)


@pytest.mark.parametrize("name", BASELINES)
def test_rows_that_cannot_be_clustered_are_refused(name, blobs):
    x = blobs[0].copy()
    x[7, 2] = np.nan
    with pytest.raises(ValueError, match="row 7 contains NaN"):
        BASELINES[name].fit(x, CONFIG, quiet)


@pytest.mark.parametrize("name", ["dec", "gmvae"])
def test_rows_on_disk_give_the_same_clusters(name, blobs, tmp_path):
    x = blobs[0][:100]
    np.save(tmp_path / "x.npy", x)
    config = CONFIG.model_copy(update={"pretrain_epochs": 2, "epochs": 2})
    mapped = BASELINES[name].fit(
        np.load(tmp_path / "x.npy", mmap_mode="r"), config.model_copy(update={"memory": "mapped"}), quiet
    )
    assert (mapped.predict(x) == BASELINES[name].fit(x, config, quiet).predict(x)).all()


@pytest.mark.parametrize("name", ["n2d", "vade", "gmvae"])
def test_convolutions(name):
    random = np.random.default_rng(0)
    x = np.zeros((40, 16, 16), np.uint8)
    x[:20, 2:6, 2:14] = 200
    x[20:, 2:14, 8:12] = 200
    x += random.integers(0, 40, x.shape, dtype=np.uint8)
    config = CONFIG.model_copy(
        update={"n_clusters": 2, "network": "conv", "decoder": "conv", "pretrain_epochs": 12, "epochs": 6}
    )
    clusters = BASELINES[name].fit(x, config, quiet).predict(x)
    assert accuracy(np.repeat([0, 1], 20), clusters) > 0.9
