"""The loop: bounds of the stds, exact resume, rollback, and labels that nothing reads."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
import torch

from serving.manifest import InputSpec
from training import loop
from training.annealing import scheduled_epoch
from training.checkpoint import CheckpointError, load_tensors, save_tensors
from training.config import TrainingConfig
from training.divergence import DivergedError
from training.history import History
from training.loop import CHECKPOINT_FILE, train
from training.schedule import batches, epoch_generator

SPEC = InputSpec(dtype="uint8", shape=(4, 4), meaning="image")


@pytest.fixture
def rows() -> torch.Tensor:
    random = np.random.default_rng(0)
    centres = random.integers(40, 215, size=(3, 1, 4, 4))
    x = centres + random.normal(0, 12, size=(3, 40, 4, 4))
    return torch.from_numpy(np.clip(x, 0, 255).astype(np.uint8).reshape(-1, 4, 4))


def config(**changes) -> TrainingConfig:
    values = {
        "n_clusters": 3,
        "latent_dim": 2,
        "hidden_sizes": (8,),
        "n_importance_samples": 3,
        "batch_size": 32,
        "epochs": 4,
        "epsilon_every": 2,
        "checkpoint_seconds": 0,
        "pretrain_epochs": 2,
        "gmm_starts": 1,
    }
    return TrainingConfig(**values | changes)


def weights(run) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in run.tensors().items()}


def assert_same(a: dict, b: dict) -> None:
    assert a.keys() == b.keys()
    for name in a:
        assert torch.equal(a[name], b[name]), name


@pytest.mark.parametrize("initialisation", ["random", "gmm"])
@pytest.mark.parametrize(
    "changes",
    [{}, {"objective": "nvil"}, {"objective": "elbo"}, {"objective": "gumbel"}, {"precision": "low"}],
)
def test_resume_is_exact(rows, tmp_path, initialisation, changes):
    changes = changes | {"initialisation": initialisation}
    whole = train(config(**changes), rows, SPEC)
    train(config(epochs=2, **changes), rows, SPEC, directory=tmp_path)
    resumed = train(config(**changes), rows, SPEC, directory=tmp_path, resume=True)
    assert_same(weights(whole), weights(resumed))
    assert whole.score == resumed.score
    without_time = [{k: v for k, v in record.items() if k != "seconds"} for record in whole.history]
    read = [json.loads(line) for line in (tmp_path / "history.jsonl").read_text().splitlines()]
    assert [{k: v for k, v in record.items() if k != "seconds"} for record in read] == without_time


# Nothing bounds ``epochs`` here: each stage ends as its bound converges.
OWN_STAGES = {
    "epochs": None,
    "epsilon_every": 12,
    "stage_tolerance": 0.5,
    "epsilon_floor": 0.25,
    "learning_rate_every": 12,
    "initialisation": "gmm",
    "anchor": 1.0,
}


def kill_after(monkeypatch, epochs: int) -> None:
    """Let the process die within the epoch after so many."""
    real = loop._train_epoch

    def mortal(run, *arguments):
        record = real(run, *arguments)
        if run.epoch == epochs:
            raise KeyboardInterrupt
        return record

    monkeypatch.setattr(loop, "_train_epoch", mortal)


def test_stages_end_as_their_bounds_converge(rows, monkeypatch):
    anchored, real = [], loop.assign_rows
    monkeypatch.setattr(loop, "assign_rows", lambda *arguments: anchored.append(1) or real(*arguments))
    seen = []
    run = train(config(**OWN_STAGES), rows, SPEC, on_epoch=seen.append)
    places = [scheduled_epoch(config(**OWN_STAGES), run.bounds[:done]) for done in range(run.epoch)]
    stages = [place // 12 for place in places]
    assert run.epoch < 30, "of 36"
    assert [record["epsilon_z"] for record in run.history] == [0.5**stage for stage in stages]
    assert [record["learning_rate"] for record in run.history] == [1e-3 * 0.5**stage for stage in stages]
    assert set(stages) == {0, 1, 2}
    assert len(anchored) == 3, "anew at the beginning of each stage"
    assert [record["epoch"] for record in seen] == list(range(run.epoch))
    assert [record["epochs_left"] for record in seen] == [36 - place for place in places[1:]] + [0]
    first = stages.count(0)
    short = train(config(**OWN_STAGES | {"epochs": first}), rows, SPEC)
    assert short.epoch == first
    assert short.score == run.score, "taken at the end of the first stage"


@pytest.mark.parametrize("killed", [1, 6, 7, 8, 13])
def test_resume_is_exact_though_stages_end_by_themselves(rows, tmp_path, killed):
    whole = train(config(**OWN_STAGES), rows, SPEC)
    assert killed < whole.epoch
    with pytest.MonkeyPatch.context() as patch:
        kill_after(patch, killed)
        with pytest.raises(KeyboardInterrupt):
            train(config(**OWN_STAGES), rows, SPEC, directory=tmp_path)
    resumed = train(config(**OWN_STAGES), rows, SPEC, directory=tmp_path, resume=True)
    assert_same(weights(whole), weights(resumed))
    assert (whole.score, whole.bounds) == (resumed.score, resumed.bounds)
    again = train(config(**OWN_STAGES), rows, SPEC, directory=tmp_path, resume=True)
    assert again.epoch == whole.epoch, "a run that is done has nothing to add"


def test_a_rolled_back_epoch_counts_in_no_stage(rows, monkeypatch):
    real, calls = loop._train_epoch, []

    def poisoned(run, *arguments):
        calls.append(run.epoch)
        record = real(run, *arguments)
        return record | {"bound": math.nan} if len(calls) == 5 else record

    monkeypatch.setattr(loop, "_train_epoch", poisoned)
    run = train(config(**OWN_STAGES), rows, SPEC)
    assert calls[:7] == [0, 1, 2, 3, 4, 4, 5]
    assert run.rollbacks == 1
    assert len(run.history) == run.epoch == len(calls) - 1
    assert all(math.isfinite(bound) for bound in run.bounds)
    for done, record in enumerate(run.history):
        stage = scheduled_epoch(config(**OWN_STAGES), run.bounds[:done]) // 12
        assert record["epsilon_z"] == 0.5**stage


def test_history_past_the_checkpoint_is_dropped(rows, tmp_path):
    train(config(epochs=2), rows, SPEC, directory=tmp_path)
    with (tmp_path / "history.jsonl").open("a") as file:
        file.write('{"epoch": 2, "bound": 0.0}\n')
    resumed = train(config(), rows, SPEC, directory=tmp_path, resume=True)
    assert [record["epoch"] for record in resumed.history] == [0, 1, 2, 3]
    assert resumed.history[2]["bound"] != 0.0


def test_seconds_add_up_over_resumptions(rows, tmp_path):
    first = train(config(epochs=2), rows, SPEC, directory=tmp_path)
    second = train(config(), rows, SPEC, directory=tmp_path, resume=True)
    assert 0 < first.seconds < second.seconds
    again = train(config(), rows, SPEC, directory=tmp_path, resume=True)
    assert again.seconds == second.seconds, "a run that is done has nothing to add"


def test_rows_without_any_scale_start_epsilon_at_one(rows):
    model = train(config(epochs=0, epsilon_x="auto"), torch.zeros_like(rows), SPEC).model
    assert model.first_epsilon_x == 1


def test_seed_decides_everything(rows):
    assert_same(weights(train(config(), rows, SPEC)), weights(train(config(), rows, SPEC)))
    other = weights(train(config(seed=1), rows, SPEC))
    assert not torch.equal(
        weights(train(config(), rows, SPEC))["model.y_head.weight"], other["model.y_head.weight"]
    )


def test_stds_keep_their_bounds_after_every_epoch(rows, monkeypatch):
    seen = []
    real = loop._train_epoch

    def watched(run, *arguments):
        record = real(run, *arguments)
        with torch.no_grad():
            x = run.model.preprocess(rows)
            y = torch.arange(3)[:, None].expand(3, len(rows))
            mean, std = run.model.q_z(run.model.encode(x).hidden, y)
            x_std = torch.nn.functional.softplus(run.model.x_raw_std(run.model.decoder(mean)))
            assert (std >= record["epsilon_z"]).all()
            assert (x_std + run.model.epsilon_x >= record["epsilon_x"]).all()
            assert (run.model.p_z(torch.arange(3))[1] > 1).all()
        seen.append((record["epsilon_x"], record["epsilon_z"]))
        return record

    monkeypatch.setattr(loop, "_train_epoch", watched)
    train(config(epochs=5), rows, SPEC)
    assert seen == [(1, 1), (1, 1), (0.5, 0.5), (0.5, 0.5), (0.25, 0.25)]


def test_training_raises_the_bound(rows):
    history = train(config(epochs=30, epsilon_every=100), rows, SPEC).history
    assert history[-1]["bound"] > history[0]["bound"] + 0.5


@pytest.mark.parametrize("wrong", [math.nan, -math.inf, -5000.0])
def test_a_non_finite_loss_or_a_collapse_rolls_back_and_says_so(rows, monkeypatch, wrong):
    real = loop._train_epoch
    calls, before = [], {}

    def poisoned(run, *arguments):
        calls.append(run.epoch)
        if len(calls) == 3:
            before.update(weights(run))
            record = real(run, *arguments)
            run.model.y_head.weight.data.fill_(math.nan)
            return record | {"bound": wrong}
        if len(calls) == 4:
            assert_same(before, weights(run))
        return real(run, *arguments)

    monkeypatch.setattr(loop, "_train_epoch", poisoned)
    said = []
    run = train(config(), rows, SPEC, say=said.append)
    assert calls == [0, 1, 2, 2, 3]
    assert run.rollbacks == 1
    assert run.rate_scale == 0.5
    assert any("rolled back" in message and "epoch 2" in message for message in said)
    assert run.history[2]["learning_rate"] == pytest.approx(5e-4)


def test_a_second_rollback_of_the_same_epoch_finds_the_good_state_again(rows, monkeypatch):
    """Training after a rollback must not write into the state that is kept for the next."""
    real = loop._train_epoch
    seen = []

    def poisoned(run, *arguments):
        if run.epoch == 2:
            seen.append(weights(run))
        record = real(run, *arguments)
        return record | {"bound": math.nan} if run.epoch == 2 and len(seen) < 3 else record

    monkeypatch.setattr(loop, "_train_epoch", poisoned)
    assert train(config(), rows, SPEC).rollbacks == 2
    assert len(seen) == 3
    assert any(name.endswith("exp_avg") for name in seen[0])
    assert_same(seen[0], seen[1])
    assert_same(seen[0], seen[2])


def test_non_finite_parameters_are_noticed_even_if_the_bound_is_finite(rows, monkeypatch):
    real = torch.optim.Adam.step

    def poison(self, *arguments, **keywords):
        real(self, *arguments, **keywords)
        self.param_groups[1]["params"][0].data.fill_(math.inf)

    monkeypatch.setattr(torch.optim.Adam, "step", poison)
    with pytest.raises(DivergedError, match="not finite at epoch 0, after 5 rollbacks"):
        train(config(), rows, SPEC)


def test_checkpoint_of_another_configuration_is_refused(rows, tmp_path):
    train(config(epochs=1), rows, SPEC, directory=tmp_path)
    with pytest.raises(CheckpointError, match="other hyper-parameters"):
        train(config(latent_dim=3), rows, SPEC, directory=tmp_path, resume=True)
    with pytest.raises(CheckpointError, match="past the 0 asked for"):
        train(config(epochs=0), rows, SPEC, directory=tmp_path, resume=True)


def test_damaged_checkpoint_is_refused(rows, tmp_path):
    train(config(epochs=1), rows, SPEC, directory=tmp_path)
    path = tmp_path / CHECKPOINT_FILE
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(CheckpointError, match=r"cannot read .*checkpoint\.safetensors"):
        train(config(), rows, SPEC, directory=tmp_path, resume=True)


def test_tensors_round_trip_and_leave_no_temporary_file(tmp_path):
    tensors = {"a": torch.arange(6.0).reshape(2, 3).T, "b": torch.tensor(3)}
    save_tensors(tmp_path / "x.safetensors", tensors, {"epoch": 3})
    found, meta = load_tensors(tmp_path / "x.safetensors")
    assert_same(tensors, found)
    assert meta == {"epoch": 3}
    assert [path.name for path in tmp_path.iterdir()] == ["x.safetensors"]


def test_short_history_is_refused(tmp_path):
    History([{"epoch": 0}]).write(tmp_path)
    with pytest.raises(CheckpointError, match="1 records for 2 epochs"):
        History.read(tmp_path, 2)


def test_batches_cover_an_epoch_without_repeats():
    generator = epoch_generator(0, 0, torch.device("cpu"))
    found = list(batches(50, 4, generator))
    assert [len(batch) for batch in found] == [4] * 12
    assert len(torch.cat(found).unique()) == 48
    assert [len(batch) for batch in batches(20, 128, generator)] == [2] * 10, "ten steps at least"
    assert [len(batch) for batch in batches(3, 128, generator)] == [1] * 3


def test_epochs_draw_from_streams_of_their_own():
    cpu = torch.device("cpu")
    draws = {
        tuple(torch.rand(2, generator=epoch_generator(seed, epoch, cpu)).tolist())
        for seed in range(3)
        for epoch in range(-3, 4)
    }
    assert len(draws) == 21
