"""Restarts, selection, the run directory, and what a fit is not allowed to see."""

from __future__ import annotations

import dataclasses
import gzip
import math

import numpy as np
import pytest
import torch

from serving.manifest import InputSpec
from training import data
from training import fit as fit_module
from training.checkpoint import CheckpointError, read_json, write_json
from training.config import TrainingConfig
from training.divergence import DivergedError
from training.draw import draw
from training.fit import Silent, fit
from training.fitted import FIT_FILE, Fitted, RestartSummary
from training.run import open_run
from training.selection import choose

SPEC = InputSpec(dtype="float32", shape=(3,), meaning="features")


@pytest.fixture(scope="module")
def x() -> np.ndarray:
    random = np.random.default_rng(0)
    return (
        (5 * random.standard_normal((3, 1, 3)) + random.standard_normal((3, 40, 3)))
        .reshape(-1, 3)
        .astype("f4")
    )


def config(**changes) -> TrainingConfig:
    values = {
        "n_clusters": 3,
        "latent_dim": 2,
        "hidden_sizes": (8,),
        "n_importance_samples": 3,
        "epochs": 2,
        "epsilon_x": "auto",
    }
    return TrainingConfig(**values | changes)


def test_choose_takes_the_medoid_and_never_a_diverged_run():
    def summary(agreement, error=None):
        return RestartSummary(0, 0.0, 1, 0, 1.0, error, agreement)

    assert choose([summary(0.5), summary(0.7), summary(0.7)]) == 1
    assert choose([summary(None, "diverged"), summary(-0.1), summary(-0.2)]) == 1
    assert choose([summary(None, "diverged"), summary(None)]) == 1


class Listening(Silent):
    def __init__(self):
        self.heard = []

    def say(self, message):
        self.heard.append(message)


def test_a_diverging_restart_does_not_stop_the_others(x, monkeypatch):
    real = fit_module.train

    def sometimes(own, *arguments, **keywords):
        if own.seed == 1:
            raise DivergedError("the loss was not finite at epoch 0")
        return real(own, *arguments, **keywords)

    monkeypatch.setattr(fit_module, "train", sometimes)
    listening = Listening()
    fitted = fit(config(restarts=3), x, SPEC, progress=listening)
    assert fitted.chosen != 1
    assert fitted.restarts[1].score == -math.inf
    assert "not finite" in fitted.restarts[1].error
    assert any("given up: the loss" in message for message in listening.heard)
    with pytest.raises(DivergedError, match="the run diverged"):
        fit(config(seed=1), x, SPEC)


def test_saved_fit_reads_back(x, tmp_path, monkeypatch):
    fitted = fit(config(restarts=2, initialisation="gmm", pretrain_epochs=2), x, SPEC, name="toy")
    fitted.save(tmp_path)
    again = Fitted.load(tmp_path)
    assert again.restarts == fitted.restarts
    assert again.config == fitted.config
    assert again.data == fitted.data
    assert again.histories == fitted.histories
    assert again.rows.reference == fitted.rows.reference
    np.testing.assert_array_equal(again.rows.typical, fitted.rows.typical)
    np.testing.assert_array_equal(again.rows.ranks.energies, fitted.rows.ranks.energies)
    assert (again.rows.ranks.sigma, again.rows.ranks.rows) == (fitted.rows.ranks.sigma, len(x))
    for name, value in fitted.model.state_dict().items():
        assert torch.equal(value, again.model.state_dict()[name])
    assert (again.start.predict(again.model, x) == fitted.start.predict(fitted.model, x)).all()


def test_a_run_from_before_ranks_were_kept_still_loads(x, tmp_path):
    fitted = fit(config(), x, SPEC)
    dataclasses.replace(fitted, rows=dataclasses.replace(fitted.rows, ranks=None)).save(tmp_path)
    again = Fitted.load(tmp_path)
    assert again.rows.ranks is None
    np.testing.assert_array_equal(again.rows.sample, fitted.rows.sample)


def test_another_format_is_refused(x, tmp_path):
    fit(config(), x, SPEC).save(tmp_path)
    path = tmp_path / FIT_FILE
    path.write_text(path.read_text().replace('"format": 1', '"format": 99'))
    with pytest.raises(CheckpointError, match="format 99, expected 1"):
        Fitted.load(tmp_path)


def test_rows_kept_are_the_most_typical_ones(x):
    fitted = fit(config(epochs=8), x, SPEC)
    shares = np.array(fitted.rows.reference.cluster_shares)
    assert shares.sum() == pytest.approx(1)
    assert sum(fitted.rows.reference.confidence_shares) == pytest.approx(1)
    assert len(fitted.rows.sample) == len(x)
    for cluster in np.flatnonzero(shares * len(x) >= 10):
        rows = torch.from_numpy(fitted.rows.typical[cluster])
        assert (fitted.model(rows).argmax(1) == cluster).all()


def test_directory_with_a_run_is_neither_overwritten_nor_mixed(x, tmp_path):
    fit(config(), x, SPEC, directory=tmp_path / "run", fingerprint="a")
    with pytest.raises(CheckpointError, match="exists already: pass --resume"):
        fit(config(), x, SPEC, directory=tmp_path / "run", fingerprint="a")
    with pytest.raises(CheckpointError, match="run on other data"):
        fit(config(), x, SPEC, directory=tmp_path / "run", fingerprint="b", resume=True)
    with pytest.raises(CheckpointError, match="other hyper-parameters"):
        fit(config(learning_rate=1e-2), x, SPEC, directory=tmp_path / "run", fingerprint="a", resume=True)
    with pytest.raises(CheckpointError, match="holds no run to resume"):
        fit(config(), x, SPEC, directory=tmp_path / "other", resume=True)
    document = read_json(tmp_path / "run" / "run.json")
    assert document.pop("seed") == 0
    other = SPEC.model_copy(update={"shape": (*SPEC.shape, 1)})
    with pytest.raises(CheckpointError, match="begun on other rows of the same data, which are now"):
        open_run(tmp_path / "run", config(), "a", other, resume=True)
    # Runs begun by earlier versions do not say what their rows were.
    assert document.pop("input") == SPEC.model_dump(mode="json")
    write_json(tmp_path / "run" / "run.json", document | {"seed": 0})
    open_run(tmp_path / "run", config(), "a", SPEC, resume=True)


@pytest.mark.parametrize("shape", [(16,), (3, 4, 4), (4, 4, 4)])
def test_bytes_of_another_layout_than_an_image_are_reported_as_profiles(shape, tmp_path):
    rows = np.random.default_rng(0).integers(0, 256, (40, *shape), dtype=np.uint8)
    fitted = fit(config(epochs=1), rows, data.describe(rows))
    page = draw(dataclasses.replace(fitted, names=("ants", "bees", "cats")), tmp_path)
    assert "bees" in page.read_text()


def test_nothing_is_written_for_data_that_cannot_be_fitted(x, tmp_path):
    with pytest.raises(ValueError, match="n_clusters=500"):
        fit(config(n_clusters=500), x, SPEC, directory=tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_labels_are_neither_read_nor_felt_by_a_fit(tmp_path):
    """The same images with true, false and damaged labels give the same weights."""
    random = np.random.default_rng(1)
    images = random.integers(0, 256, size=(60, 4, 4), dtype=np.uint8)
    results = []
    for labels in (random.integers(0, 3, 60).astype(np.uint8).tobytes(), bytes(60), None):
        folder = tmp_path / str(len(results))
        folder.mkdir()
        header = np.array([0x803, 60, 4, 4], ">i4").tobytes()
        with gzip.open(folder / "train-images-idx3-ubyte.gz", "wb") as file:
            file.write(header + images.tobytes())
        body = b"not labels at all" if labels is None else np.array([0x801, 60], ">i4").tobytes() + labels
        (folder / "train-labels-idx1-ubyte").write_bytes(body)
        loaded = data.load(str(folder))
        assert loaded.labels is None
        results.append(fit(config(epsilon_x=1.0), loaded.x, loaded.spec).model.state_dict())
    for other in results[1:]:
        assert all(torch.equal(results[0][name], other[name]) for name in other)


def test_cuda_that_is_not_there_is_an_error(x):
    if torch.cuda.is_available():
        pytest.skip("this machine has a GPU")
    with pytest.raises(ValueError, match="device=cuda: torch sees no usable GPU"):
        fit(config(device="cuda"), x, SPEC)
