"""The estimator as scikit-learn has it, and as a user does."""

from __future__ import annotations

import os
import subprocess
import sys

import numpy as np
import pyarrow as pa
import pytest
from sklearn.base import clone
from sklearn.datasets import load_digits, load_iris, make_blobs
from sklearn.metrics import adjusted_rand_score
from sklearn.utils.estimator_checks import parametrize_with_checks

from training import NVISA
from training.checkpoint import CheckpointError
from training.config import TrainingConfig, load_preset

QUICK = {
    "n_clusters": 3,
    "epochs": 2,
    "pretrain_epochs": 5,
    "hidden_sizes": (16,),
    "latent_dim": 2,
    "gmm_starts": 2,
    "random_state": 0,
}


@parametrize_with_checks([NVISA(**QUICK)])
def test_scikit_learn_checks(estimator, check):
    check(estimator)


def test_the_check_that_needs_the_array_api_switched_on():
    """scikit-learn skips `check_array_api_input` unless this variable is there when it is imported."""
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", __file__, "-k", "check_array_api_input"],
        env=os.environ | {"SCIPY_ARRAY_API": "1"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout
    assert "1 passed" in done.stdout


@pytest.fixture(scope="module")
def blobs() -> np.ndarray:
    return make_blobs(150, centers=3, cluster_std=0.8, random_state=1)[0].astype(np.float32)


@pytest.fixture(scope="module")
def fitted(blobs) -> NVISA:
    return NVISA(**QUICK | {"pretrain_epochs": 60}).fit(blobs)


def test_parameters_are_those_of_the_configuration_and_defaults_those_of_the_preset():
    parameters = set(NVISA().get_params()) - {"random_state", "verbose", "warm_start"}
    assert parameters == set(TrainingConfig.model_fields) - {"seed", "checkpoint_seconds"}
    assert NVISA(random_state=0)._config() == TrainingConfig(**load_preset("default"))


def test_finds_blobs(blobs, fitted):
    truth = make_blobs(150, centers=3, cluster_std=0.8, random_state=1)[1]
    assert adjusted_rand_score(truth, fitted.labels_) > 0.9
    assert (fitted.labels_ == fitted.predict(blobs)).all()
    assert (fitted.labels_ == clone(fitted).fit_predict(blobs)).all()


def test_probabilities_sum_to_one_and_agree_with_predict(blobs, fitted):
    q = fitted.predict_proba(blobs)
    np.testing.assert_allclose(q.sum(1), 1, rtol=1e-5)
    assert (q.argmax(1) == fitted.predict(blobs)).all()


def test_score_samples_tells_training_rows_from_far_ones(blobs, fitted):
    near, far = fitted.score_samples(blobs), fitted.score_samples(blobs + 40)
    assert near.shape == (150,)
    assert near.min() > far.max()
    assert fitted.score(blobs) == pytest.approx(near.mean())
    with pytest.raises(ValueError, match="n_samples must be at least 1"):
        fitted.score_samples(blobs, 0)


def test_sample_has_the_shape_and_place_of_the_data(blobs, fitted):
    x, y = fitted.sample(300)
    assert x.shape == (300, 2)
    assert set(y) == {0, 1, 2}
    assert np.abs(np.median(x, 0) - np.median(blobs, 0)).max() < 6
    with pytest.raises(ValueError, match="n_samples must be at least 1"):
        fitted.sample(0)


def test_save_and_load(blobs, fitted, tmp_path):
    fitted.save(tmp_path / "model")
    again = NVISA.load(tmp_path / "model")
    assert (again.predict_proba(blobs) == fitted.predict_proba(blobs)).all()
    assert (again.score_samples(blobs) == fitted.score_samples(blobs)).all()
    # `auto` and `None` are given back as what they came to; the device is the one asked for on loading.
    for name, value in fitted.get_params().items():
        assert again.get_params()[name] == value, name
    with pytest.raises(CheckpointError, match="cannot read"):
        NVISA.load(tmp_path / "nothing")


def test_columns_of_a_data_frame_are_the_models(blobs, tmp_path):
    table = pa.table({name: blobs[:, j] for j, name in enumerate("cab"[: blobs.shape[1]])})
    model = NVISA(**QUICK).fit(table)
    assert model.fitted_.spec.columns == tuple(table.column_names)
    model.save(tmp_path / "model")
    again = NVISA.load(tmp_path / "model")
    assert again.feature_names_in_.tolist() == table.column_names
    np.testing.assert_array_equal(again.predict(table), model.labels_)
    for one in (model, again):
        with pytest.raises(ValueError, match="feature names should match"):
            one.predict(table.select(table.column_names[::-1]))
    swapped = table.select(table.column_names[::-1])
    with pytest.raises(ValueError, match="columns in another order"):
        model.set_params(warm_start=True).fit(swapped)
    model.set_params(warm_start=False)
    for column in swapped.column_names:
        broken = swapped.set_column(
            swapped.column_names.index(column), column, pa.nulls(len(blobs), pa.float32())
        )
        with pytest.raises(ValueError, match="NaN"):
            model.fit(broken)
    with pytest.raises(ValueError, match="feature names should match"):
        model.predict(swapped)  # the model is still the one of before
    images = (load_digits().images[:50] * 15).astype(np.uint8)
    assert model.set_params(n_clusters=2).fit(images).fitted_.spec.columns == ()


def test_load_refuses_a_damaged_model(fitted, tmp_path):
    fitted.save(tmp_path)
    path = tmp_path / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(CheckpointError, match="cannot read"):
        NVISA.load(tmp_path)


def test_images_are_taken_as_bytes_of_any_shape():
    x = (load_digits().images[:200] * 15).astype(np.uint8)
    model = NVISA(**QUICK | {"n_clusters": 4}).fit(x)
    assert model.predict_proba(x).shape == (200, 4)
    assert model.sample(5)[0].dtype == np.uint8
    assert model.sample(5)[0].shape == (5, 8, 8)
    with pytest.raises(ValueError, match="rows have shape"):
        model.predict(x[:, :4])
    with pytest.raises(ValueError, match="fitted on uint8"):
        model.predict(x.astype(np.float32))


def test_restarts_keep_all_scores_and_choose_the_medoid():
    x = load_iris().data
    model = NVISA(**QUICK | {"restarts": 3}).fit(x)
    assert len({restart.score for restart in model.fitted_.restarts}) == 3
    agreements = [restart.agreement for restart in model.fitted_.restarts]
    assert model.fitted_.chosen == int(np.argmax(agreements))
    assert [restart.seed for restart in model.fitted_.restarts] == [0, 1, 2]
    runs = [NVISA(**QUICK | {"random_state": seed}).fit_predict(x) for seed in range(3)]
    expected = [adjusted_rand_score(runs[0], runs[1]), adjusted_rand_score(runs[0], runs[2])]
    assert agreements[0] == pytest.approx(np.mean(expected))
    alone = NVISA(**QUICK | {"random_state": model.fitted_.chosen}).fit(x)
    assert (alone.predict_proba(x) == model.predict_proba(x)).all(), "a restart equals its own separate run"


def test_warm_start_goes_on_from_the_fit_before(blobs):
    model = NVISA(**QUICK | {"pretrain_epochs": 60, "warm_start": True}).fit(blobs)
    before = model.predict_proba(blobs)
    model.set_params(epochs=0).fit(blobs + 0.1)
    assert (model.predict_proba(blobs) == before).all(), "no epoch, no change"
    model.set_params(epochs=2).fit(blobs + 0.1)
    assert (model.labels_ == before.argmax(1)).mean() > 0.95
    assert model.n_iter_ == 2
    cold = clone(model).set_params(warm_start=False).fit(blobs + 0.1)
    assert not (cold.predict_proba(blobs) == model.predict_proba(blobs)).all()
    with pytest.raises(ValueError, match="latent_dim is 2 there and 3 here"):
        model.set_params(latent_dim=3).fit(blobs)
    assert model.n_iter_ == 2, "what cannot be used leaves the fit before as it was"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"n_clusters": 0}, "n_clusters: Input should be greater than or equal to 1"),
        ({"objective": "magic"}, "objective: Input should be 'vimco', 'elbo', 'nvil' or 'gumbel'"),
        ({"n_importance_samples": 1}, "objective vimco needs n_importance_samples >= 2"),
        ({"epsilon_x": -1.0}, "epsilon_x must be positive"),
        ({"epsilon_x": np.nan}, "epsilon_x.*finite number"),
        ({"learning_rate": np.inf}, "learning_rate: Input should be a finite number"),
        ({"likelihood": "bernoulli"}, r"Bernoulli p\(x\|z\) needs values in \[0, 1\]"),
        ({"n_clusters": 151}, "n_samples=150 should be >= n_clusters=151"),
    ],
)
def test_unusable_parameters_are_explained(blobs, changes, message):
    with pytest.raises(ValueError, match=message):
        NVISA(**QUICK | changes).fit(blobs)


@pytest.mark.parametrize(
    ("x", "message"),
    [
        (np.ones((50, 3)), "all rows are equal"),
        (np.array([[3e38], [0]] * 10), r"beyond ±1e\+37 overflow"),
        (np.ones((1, 3)), "n_samples=1"),
        (np.array([[1.0, np.nan]] * 10), "NaN"),
        (np.empty((0, 3)), "0 sample"),
    ],
)
def test_unusable_data_is_explained(x, message):
    with pytest.raises(ValueError, match=message):
        NVISA(**QUICK).fit(x)


def test_progress_is_shown_when_asked_for(blobs, capsys):
    NVISA(**QUICK | {"verbose": True}).fit(blobs)
    assert "epoch 2/2, bound" in capsys.readouterr().err


@pytest.mark.parametrize("dtype", ["f4", "f8"])
def test_a_mapped_file_is_used_in_place_and_gives_the_same(blobs, fitted, tmp_path, dtype):
    np.save(tmp_path / "x.npy", blobs.astype(dtype))
    mapping = np.load(tmp_path / "x.npy", mmap_mode="r")
    mapped = NVISA(**QUICK | {"pretrain_epochs": 60, "memory": "mapped"})
    assert np.shares_memory(mapped._rows(mapping, reset=True), mapping), "not copied, not cast"
    mapped.fit(mapping)
    assert (mapped.labels_ == fitted.labels_).all()
    np.testing.assert_array_equal(mapped.predict_proba(mapping), fitted.predict_proba(blobs))
    np.testing.assert_array_equal(mapped.transform(mapping), fitted.transform(blobs))
    with pytest.raises(ValueError, match="rows have shape"):
        mapped.predict(mapping[:, :1].reshape(-1, 1, 1))
