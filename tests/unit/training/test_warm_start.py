"""Refits from an older run's weights: what is kept, what is refused, and exact resume."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch

from training.checkpoint import CheckpointError
from training.config import TrainingConfig
from training.data import describe
from training.fit import Silent, fit
from training.fitted import Fitted
from training.inference import probabilities


def rows(seed: int = 0, shift: float = 0.0) -> np.ndarray:
    """Three clusters of 40 rows around the same centres, whatever the seed."""
    centres = 5 * np.random.default_rng(0).standard_normal((3, 1, 3))
    noise = np.random.default_rng(seed + 1).standard_normal((3, 40, 3))
    return (centres + noise + shift).reshape(-1, 3).astype("f4")


def config(**changes) -> TrainingConfig:
    values = {
        "n_clusters": 3,
        "latent_dim": 2,
        "hidden_sizes": (8,),
        "n_importance_samples": 3,
        "epochs": 4,
        "epsilon_every": 2,
        "epsilon_x": "auto",
        "initialisation": "gmm",
        "pretrain_epochs": 30,
        "gmm_starts": 2,
        "checkpoint_seconds": 0,
    }
    return TrainingConfig(**values | changes)


class Listening(Silent):
    def __init__(self):
        self.heard = []

    def say(self, message):
        self.heard.append(message)


@pytest.fixture(scope="module")
def old() -> Fitted:
    x = rows()
    fitted = fit(config(), x, describe(x))
    return dataclasses.replace(fitted, names=("wolves", "bears", "seals"))


def test_without_an_epoch_it_is_the_old_model(old):
    x = rows(1, shift=0.2)
    new = fit(config(epochs=0, seed=9), x, describe(x), warm_start=old)
    assert (probabilities(new.model, x) == probabilities(old.model, x)).all()
    assert torch.equal(new.model.shift, old.model.shift), "the nets were fitted under the old standardisation"
    assert (new.start.predict(new.model, x) == probabilities(old.model, x).argmax(1)).all()
    assert new.cluster_names == ("wolves", "bears", "seals")
    assert new.start_name == "the old model"


def test_first_epsilon_is_that_of_the_new_data(old):
    x = np.concatenate([rows(1), 3 * rows(2)])
    new = fit(config(epochs=0), x, describe(x), warm_start=old)
    assert new.model.first_epsilon_x > 1.2 * old.model.first_epsilon_x
    assert fit(config(epochs=0, epsilon_x=0.3), x, describe(x), warm_start=old).model.first_epsilon_x == (
        pytest.approx(0.3)
    )


def test_clusters_keep_their_ids_and_the_old_fit_is_left_as_it_was(old):
    before = {name: value.clone() for name, value in old.model.state_dict().items()}
    x = rows(3, shift=0.3)
    new = fit(config(seed=5), x, describe(x), warm_start=old)
    assert any(not torch.equal(value, before[name]) for name, value in new.model.state_dict().items())
    assert all(torch.equal(value, before[name]) for name, value in old.model.state_dict().items())
    q, known = probabilities(new.model, x), probabilities(old.model, x)
    assert (q.argmax(1) == known.argmax(1)).mean() > 0.9


def test_anchors_apply_from_the_first_epoch(old, monkeypatch):
    from training import update

    seen = []
    real = update.batch_objective

    def watched(*arguments):
        seen.append(arguments[-1] is not None)
        return real(*arguments)

    monkeypatch.setattr(update, "batch_objective", watched)
    x = rows(1)
    # The configuration's own start would be random, and have no clusters to keep in the first stage.
    fit(config(epochs=1, anchor=1.0, initialisation="random"), x, describe(x), warm_start=old)
    assert seen
    assert all(seen)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"n_clusters": 4}, "n_clusters is 3 there and 4 here"),
        (
            {"hidden_sizes": (9,), "latent_dim": 3},
            r"hidden_sizes is \(8,\) there and \(9,\) here; latent_dim is 2 there and 3 here; ask for",
        ),
        ({"likelihood": "bernoulli"}, "likelihood is gaussian there and bernoulli here"),
        ({"mean_field": True}, "mean_field is False there and True here"),
    ],
)
def test_another_architecture_is_refused_and_named(old, changes, message, tmp_path):
    x = np.clip(rows(1), 0, 1)
    with pytest.raises(ValueError, match=message):
        fit(config(**changes), x, describe(x), warm_start=old, directory=tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_auto_is_the_network_it_stands_for(old):
    x = rows(1)
    same = fit(config(epochs=0, network="auto"), x, describe(x), warm_start=old)
    assert (probabilities(same.model, x) == probabilities(old.model, x)).all()


def test_mapped_rows_begin_with_the_same_weights(old):
    x = rows(1) + np.array([0, 100, 0], "f4")
    listening = Listening()
    mapped = fit(config(memory="mapped"), x, describe(x), warm_start=old, progress=listening)
    assert any("1 features (1) lie far from" in message for message in listening.heard)
    resident = fit(config(memory="resident"), x, describe(x), warm_start=old)
    for name, value in resident.model.state_dict().items():
        assert torch.equal(value, mapped.model.state_dict()[name]), name


def test_other_rows_are_refused(old):
    x = np.zeros((50, 4), np.float32)
    x[0] = 1
    with pytest.raises(
        ValueError, match=r"the rows differ, here float32 \[4\] .features., not float32 \[3\]"
    ):
        fit(config(), x, describe(x), warm_start=old)


def test_features_that_went_far_away_are_told_of(old):
    listening = Listening()
    x = rows(1) + np.array([0, 100, 0], "f4")
    fit(config(epochs=0), x, describe(x), warm_start=old, progress=listening)
    assert any("1 features (1) lie far from" in message for message in listening.heard)
    listening.heard.clear()
    x = rows(1)
    fit(config(epochs=0), x, describe(x), warm_start=old, progress=listening)
    assert not any("lie far from" in message for message in listening.heard)


def test_resume_is_exact_and_knows_the_old_run_again(old, tmp_path):
    x = rows(1)
    spec = describe(x)
    whole = fit(config(), x, spec, warm_start=old)
    part = tmp_path / "run"
    fit(config(epochs=1), x, spec, warm_start=old, directory=part)
    other = fit(config(seed=3), x, spec)
    for wrong, message in (
        (other, "begun from another run's weights: resume with the --warm-start it had"),
        (None, "begun from another run's weights"),
    ):
        with pytest.raises(CheckpointError, match=message):
            fit(config(), x, spec, warm_start=wrong, directory=part, resume=True)
    resumed = fit(config(), x, spec, warm_start=old, directory=part, resume=True)
    for name, value in whole.model.state_dict().items():
        assert torch.equal(value, resumed.model.state_dict()[name]), name
    assert resumed.start is not None

    fit(config(epochs=1), x, spec, directory=tmp_path / "cold")
    with pytest.raises(CheckpointError, match="begun without a warm start: leave --warm-start away"):
        fit(config(), x, spec, warm_start=old, directory=tmp_path / "cold", resume=True)


def test_saved_run_keeps_names_and_whence_it_came(old, tmp_path):
    x = rows(1)
    new = fit(config(epochs=1), x, describe(x), warm_start=old)
    new.save(tmp_path)
    again = Fitted.load(tmp_path)
    assert again.names == ("wolves", "bears", "seals")
    assert again.warm_start == new.warm_start
    assert len(new.warm_start) == 64
