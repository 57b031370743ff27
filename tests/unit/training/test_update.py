"""Steps of training as a CUDA graph needs them: nothing that changes may change its address."""

from __future__ import annotations

import pytest
import torch

from serving.manifest import InputSpec
from training.config import TrainingConfig
from training.loop import _build, _epoch_batches, _train_epoch
from training.schedule import epoch_generator
from training.step import batch_objective
from training.update import Updates

SPEC = InputSpec(dtype="uint8", shape=(4, 4), meaning="image")


@pytest.fixture
def rows() -> torch.Tensor:
    return torch.randint(0, 256, (96, 4, 4), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


def config(**changes) -> TrainingConfig:
    values = {"n_clusters": 3, "latent_dim": 2, "hidden_sizes": (8,), "n_importance_samples": 5, "epochs": 4}
    return TrainingConfig(**values | {"precision": "float32", "epsilon_every": 1} | changes)


def addresses(run) -> dict[str, int]:
    found = {name: value.data_ptr() for name, value in run.tensors().items()}
    return found | {"rate": run.optimiser.param_groups[0]["lr"].data_ptr()}


def test_an_epoch_is_the_steps_one_would_write(rows):
    run, other = _build(config(), rows, SPEC), _build(config(), rows, SPEC)
    updates = Updates(run, config())
    updates.begin(3)
    updates.take(_epoch_batches(rows, None, config(), updates.generator))
    generator = epoch_generator(0, 3, torch.device("cpu"))
    adam = torch.optim.Adam(
        [{**group, "lr": 1e-3} for group in other.optimiser.param_groups], lr=1e-3, fused=False
    )
    bounds = []
    for batch, _ in _epoch_batches(rows, None, config(), generator):
        x = other.model.preprocess(batch, generator)
        step = batch_objective(other.model, None, x, config(), generator)
        adam.zero_grad()
        step.objective.surrogate.mean().neg().backward()
        adam.step()
        bounds.append(step.objective.bound.mean())
    assert updates.steps == len(bounds) == 9
    torch.testing.assert_close(updates.bound, torch.stack(bounds).double().sum())
    torch.testing.assert_close(updates.usage.sum(), torch.tensor(9.0))
    for name, value in run.model.state_dict().items():
        torch.testing.assert_close(value, other.model.state_dict()[name], rtol=1e-4, atol=1e-5)


def test_rates_annealing_and_rollbacks_keep_every_address(rows):
    run = _build(config(), rows, SPEC)
    updates = Updates(run, config())
    run.history.append(_train_epoch(run, rows, config(), updates))
    before, good = addresses(run), {name: value.clone() for name, value in run.tensors().items()}
    run.epoch, run.rate_scale = 1, 0.5
    record = _train_epoch(run, rows, config(), updates)
    assert record["epsilon_x"] == run.model.epsilon_x == 0.5
    assert run.optimiser.param_groups[1]["lr"] == pytest.approx(5e-4)
    run.load(good)
    assert addresses(run) == before
    for name, value in run.tensors().items():
        assert torch.equal(value, good[name]), name


def test_a_rollback_to_before_the_first_step_forgets_the_moments(rows):
    run = _build(config(), rows, SPEC)
    good = {name: value.clone() for name, value in run.tensors().items()}
    first = _train_epoch(run, rows, config(), Updates(run, config()))
    after = {name: value.clone() for name, value in run.tensors().items()}
    run.load(good)
    again = _train_epoch(run, rows, config(), Updates(run, config()))
    assert first["bound"] == again["bound"]
    for name, value in run.tensors().items():
        assert torch.equal(value, after[name]), name


def test_moments_can_be_loaded_before_the_first_step(rows):
    run, fresh = _build(config(), rows, SPEC), _build(config(), rows, SPEC)
    _train_epoch(run, rows, config(), Updates(run, config()))
    fresh.load(run.tensors())
    assert fresh.tensors().keys() == run.tensors().keys()
    assert addresses(fresh).keys() == addresses(run).keys()
    assert not set(addresses(fresh).values()) & set(addresses(run).values())
    for name, value in fresh.tensors().items():
        assert torch.equal(value, run.tensors()[name]), name
