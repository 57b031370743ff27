"""Runs side by side are what each is alone: on every option, through trouble, and over a kill and a resume."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch

from serving.manifest import InputSpec
from training import loop, model, stacked_loop
from training.checkpoint import load_tensors
from training.config import TrainingConfig
from training.fit import Silent, fit
from training.loop import train
from training.networks import conv
from training.stacked_layers import stack_layers
from training.stacked_loop import GivenUp, stacks, train_stacked
from training.state import CHECKPOINT_FILE, Run

IMAGES = InputSpec(dtype="uint8", shape=(4, 4), meaning="image")
FEATURES = InputSpec(dtype="float32", shape=(3,), meaning="features")
SEEDS = (0, 1, 2)


@pytest.fixture(scope="module")
def images() -> torch.Tensor:
    random = np.random.default_rng(0)
    x = random.integers(40, 215, size=(3, 1, 4, 4)) + random.normal(0, 12, size=(3, 30, 4, 4))
    return torch.from_numpy(np.clip(x, 0, 255).astype(np.uint8).reshape(-1, 4, 4))


def configs(**changes) -> list[TrainingConfig]:
    values = {
        "n_clusters": 3,
        "latent_dim": 2,
        "hidden_sizes": (8, 6),
        "n_importance_samples": 3,
        "batch_size": 16,
        "epochs": 4,
        "epsilon_every": 2,
        "pretrain_epochs": 2,
        "gmm_starts": 1,
        "precision": "float32",
        "checkpoint_seconds": 0,
    }
    return [TrainingConfig(**values | changes | {"seed": seed}) for seed in SEEDS]


def together(each, rows, spec=IMAGES, directories=None, **keywords) -> list[Run | GivenUp]:
    return train_stacked(each, rows, spec, directories=directories or [None] * len(each), **keywords)


def assert_same_run(found: Run | GivenUp, expected: Run, atol: float = 1e-4) -> None:
    assert isinstance(found, Run), found
    ours, theirs = found.tensors(), expected.tensors()
    assert ours.keys() == theirs.keys()
    for name, value in theirs.items():
        torch.testing.assert_close(ours[name], value, rtol=1e-3, atol=atol, msg=lambda m, n=name: f"{n}: {m}")
    assert found.score == pytest.approx(expected.score, abs=1e-2)
    assert [record.keys() for record in found.history] == [record.keys() for record in expected.history]
    for name in ("epoch", "bound", "epsilon_x", "epsilon_z", "learning_rate", "effective_clusters"):
        ours, theirs = ([record[name] for record in run.history] for run in (found, expected))
        assert ours == pytest.approx(theirs, abs=1e-2), name
    assert (found.start is None) == (expected.start is None)


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"pathwise_z": True, "mean_field": True, "weight_decay": 0.1},
        {"objective": "nvil", "likelihood": "bernoulli"},
        {"objective": "elbo", "n_importance_samples": 2},
        {"initialisation": "gmm", "anchor": 1.0, "augment": True},
        {"balance": 5.0, "network": "auto"},
        {"precision": "low"},
    ],
    ids=str,
)
def test_each_run_equals_its_own_separate_run(images, changes):
    each = configs(**changes)
    alone = [train(config, images, IMAGES) for config in each]
    seen = []
    for found, expected in zip(together(each, images, on_epoch=seen.append), alone, strict=True):
        assert_same_run(found, expected, atol=1e-3 if "precision" in changes else 1e-4)
    assert [record["epoch"] for record in seen] == [0, 1, 2, 3], (
        "the stack as a whole tells of each epoch once"
    )
    assert [record["epochs_left"] for record in seen] == [3, 2, 1, 0]
    mean = np.mean([run.history[3]["bound"] for run in alone])
    assert seen[3]["bound"] == pytest.approx(mean, abs=1e-2)
    with pytest.raises(AssertionError):
        assert_same_run(alone[0], alone[1])


def test_features_and_no_epochs_at_all():
    rows = torch.from_numpy(np.random.default_rng(0).normal(5, 3, (60, 3)).astype(np.float32))
    for epochs in (0, 2):
        each = configs(epsilon_x="auto", epochs=epochs)
        for found, config in zip(together(each, rows, FEATURES), each, strict=True):
            assert_same_run(found, train(config, rows, FEATURES))


def test_a_run_in_trouble_is_finished_alone_and_the_others_feel_nothing(images, monkeypatch):
    real, said = stacked_loop._train_epoch, []

    def poisoned(stack, *arguments):
        first = stack.runs[0].epoch
        if first == 2 and len(stack.runs) == 3:
            stack.model.y_head.weight.data[1] = math.inf
        return real(stack, *arguments)

    monkeypatch.setattr(stacked_loop, "_train_epoch", poisoned)
    each = configs()
    found = together(each, images, say=lambda place, message: said.append((place, message)))
    assert said == [(1, "the loss was not finite at epoch 2: finished alone from there, after the others")]
    for run, config in zip(found, each, strict=True):
        assert_same_run(run, train(config, images, IMAGES))


def test_a_run_that_diverges_for_good_is_given_up_alone(images, monkeypatch):
    def never(real):
        def poisoned(run_or_stack, *arguments):
            records = real(run_or_stack, *arguments)
            if isinstance(records, list):
                own = [config.seed for config in run_or_stack.configs]
                return [r | {"bound": math.nan} if s == 1 else r for r, s in zip(records, own, strict=True)]
            return records | {"bound": math.nan} if arguments[1].seed == 1 else records

        return poisoned

    monkeypatch.setattr(stacked_loop, "_train_epoch", never(stacked_loop._train_epoch))
    monkeypatch.setattr(loop, "_train_epoch", never(loop._train_epoch))
    heard = []

    class Listening(Silent):
        def say(self, message):
            heard.append(message)

    config = configs()[0].model_copy(update={"restarts": 3, "restart_mode": "stacked"})
    fitted = fit(config, images.numpy(), IMAGES, progress=Listening())
    assert [bool(restart.error) for restart in fitted.restarts] == [False, True, False]
    assert fitted.chosen != 1
    assert [len(history) for history in fitted.histories] == [4, 0, 4]
    assert any(m.startswith("restart 2/3: rolled back") or "learning rate halved" in m for m in heard)
    assert any(m.startswith("restart 2/3: given up: the loss was not finite") for m in heard)


def checkpoints(folders: list[Path]) -> list[dict[str, torch.Tensor]]:
    return [load_tensors(folder / CHECKPOINT_FILE)[0] for folder in folders]


@pytest.mark.parametrize("begun", [(2, 2, 2), (3, 1, 1), (4, 0, None)])
def test_a_fit_can_change_its_mode_at_every_resume(images, tmp_path, begun):
    """Runs left at any epochs, not even begun, or done, go on stacked to where they would be alone."""
    folders = [tmp_path / str(seed) for seed in SEEDS]
    for config, folder, epochs in zip(configs(), folders, begun, strict=True):
        if epochs is not None:
            train(config.model_copy(update={"epochs": epochs}), images, IMAGES, directory=folder)
    each = configs()
    found = together(each, images, directories=folders, resume=True)
    for run, config in zip(found, each, strict=True):
        assert_same_run(run, train(config, images, IMAGES))
    # And back: what a stack wrote is a run's ordinary checkpoint.
    for run, config, folder in zip(found, configs(epochs=5), folders, strict=True):
        longer = train(config, images, IMAGES, directory=folder, resume=True)
        assert len(longer.history) == 5
        assert longer.history[:4] == run.history


def test_a_killed_stack_resumes_bit_for_bit(images, tmp_path):
    whole, broken = ([tmp_path / name / str(seed) for seed in SEEDS] for name in ("whole", "broken"))
    changes = {"initialisation": "gmm", "anchor": 1.0}
    together(configs(**changes), images, directories=whole)
    together(configs(epochs=3, **changes), images, directories=broken)
    together(configs(**changes), images, directories=broken, resume=True)
    for expected, found in zip(checkpoints(whole), checkpoints(broken), strict=True):
        assert expected.keys() == found.keys()
        for name in expected:
            assert torch.equal(expected[name], found[name]), name


def test_auto_stacks_small_networks_on_a_gpu_alone():
    config, cuda, cpu = configs()[0], torch.device("cuda"), torch.device("cpu")
    assert stacks(config, IMAGES, cuda)
    assert not stacks(config, IMAGES, cpu)
    assert not stacks(config.model_copy(update={"network": "conv"}), IMAGES, cuda)
    assert not stacks(config.model_copy(update={"restart_mode": "sequential"}), IMAGES, cuda)
    assert stacks(config.model_copy(update={"restart_mode": "stacked"}), IMAGES, cpu)


def test_runs_whose_stages_end_by_themselves_share_no_schedule():
    assert not stacks(configs(stage_tolerance=0.1)[0], IMAGES, torch.device("cuda"))
    with pytest.raises(ValueError, match="with stage_tolerance each restart ends its own"):
        configs(stage_tolerance=0.1, restart_mode="stacked")


def test_auto_is_the_network_it_stands_for():
    large = InputSpec(dtype="uint8", shape=(16, 16), meaning="image")
    config, cuda = configs(network="auto")[0], torch.device("cuda")
    assert stacks(config, IMAGES, cuda)
    assert not stacks(config, large, cuda)
    assert not stacks(config.model_copy(update={"network": "mlp", "decoder": "conv"}), large, cuda)
    with pytest.raises(ValueError, match="auto means conv for these images"):
        stacks(config.model_copy(update={"restart_mode": "stacked"}), large, cuda)


def stacked_fit(images, mode="stacked", changes=None, **keywords):
    config = configs(**(changes or {}))[0].model_copy(update={"restarts": 3, "restart_mode": mode})
    return fit(config, images.numpy(), IMAGES, **keywords)


class Listening(Silent):
    def __init__(self):
        self.heard = []

    def say(self, message):
        self.heard.append(message)


def test_rows_that_are_not_on_the_device_train_one_run_after_the_other(images):
    listening = Listening()
    mapped = stacked_fit(images, changes={"memory": "mapped"}, progress=listening)
    assert listening.heard == [
        "restarts train one after the other: all at once they need the rows on the device"
    ]
    alone = stacked_fit(images, "sequential")
    assert [restart.score for restart in mapped.restarts] == [restart.score for restart in alone.restarts]


def test_a_stack_begins_with_the_weights_of_an_old_run(images):
    old = stacked_fit(images, "sequential", changes={"epochs": 1})
    listening = Listening()
    new = stacked_fit(images, warm_start=old, progress=listening)
    assert [message.split(": the old")[0] for message in listening.heard] == [
        f"restart {i}/3: warm start" for i in (1, 2, 3)
    ]
    alone = stacked_fit(images, "sequential", warm_start=old)
    assert new.warm_start == alone.warm_start
    for found, expected in zip(new.restarts, alone.restarts, strict=True):
        assert found.score == pytest.approx(expected.score, abs=1e-2)


def test_many_samples_are_decoded_in_chunks_here_too(images, monkeypatch):
    each = configs(n_importance_samples=6)
    whole = together(each, images)
    monkeypatch.setattr(model, "CHUNK_VALUES", 2 * 16 * 9)  # two samples of the nine rows of a batch
    for found, expected in zip(together(each, images), whole, strict=True):
        assert_same_run(found, expected)


def test_convolutions_are_not_stacked():
    with pytest.raises(ValueError, match="restart_mode stacked needs network mlp"):
        configs(network="conv", restart_mode="stacked")
    with pytest.raises(ValueError, match="restart_mode stacked needs network mlp"):
        configs(decoder="conv", restart_mode="stacked")
    with pytest.raises(TypeError, match="cannot be stacked"):
        stack_layers([conv(IMAGES, (8,)), conv(IMAGES, (8,))])
