"""Steps of training as a CUDA graph needs them: nothing that changes may change its address."""

from __future__ import annotations

import gc
import weakref

import pytest
import torch

from serving.manifest import InputSpec
from tests.graphs import stand_in
from training import model, stacked_loop, update
from training.config import TrainingConfig
from training.densities import gaussian_log_likelihood
from training.loop import _build, _epoch_batches, _train_epoch
from training.model import NVISAModel
from training.schedule import epoch_generator
from training.stack import Stack
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
    updates.take(_epoch_batches(rows, None, config(), updates.generators[0]))
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


@pytest.fixture
def graphs(monkeypatch) -> None:
    """CUDA graphs in form, and the arithmetic of a GPU: on a CPU the decoder has shapes that depend on values."""

    def log_p_x(self, x, z):
        hidden = self._decode(z)
        return gaussian_log_likelihood(x, self.x_mean(hidden), self.x_raw_std(hidden), self.epsilon_x)

    monkeypatch.setattr(NVISAModel, "_log_p_x", log_p_x)
    monkeypatch.setattr(update, "torch", stand_in())


def with_graph(updates):
    updates._graph = update._Graph()
    return updates


@pytest.mark.parametrize("changes", [{}, {"anchor": 1.0, "pathwise_z": True}], ids=str)
def test_replays_are_the_steps_one_would_take(rows, changes, graphs):
    """Over three epochs, with another ε in each, a rollback, and from the second on with anchors."""
    settings = config(**changes, learning_rate_every=1)
    outcomes = []
    for graph in (True, False):
        run = _build(settings, rows, SPEC)
        updates = with_graph(Updates(run, settings)) if graph else Updates(run, settings)
        records = []
        for epoch in (0, 1, 1, 2):
            good = {name: value.clone() for name, value in run.tensors().items()}
            records.append(_train_epoch(run, rows, settings, updates) | {"seconds": 0})
            if epoch == 1 and len(records) == 2:
                run.load(good)
                continue
            run.history.append(records[-1])
            run.epoch += 1
        outcomes.append((records, run.tensors()))
        if graph:
            replays = [captured[0].replays for captured in updates._graph.captured.values()]
            assert replays == ([9, 27] if "anchor" in changes else [36])
    assert outcomes[0][0] == outcomes[1][0]
    for name, value in outcomes[0][1].items():
        assert torch.equal(value, outcomes[1][1][name]), name


def test_replays_of_a_stack_are_the_steps_one_would_take(rows, graphs):
    each = [config(seed=seed, anchor=1.0) for seed in range(3)]
    outcomes = []
    for graph in (True, False):
        stack = Stack([_build(own, rows, SPEC) for own in each], each)
        updates = with_graph(Updates(stack, *stack.configs)) if graph else Updates(stack, *stack.configs)
        bounds = []
        for epoch in range(3):
            records = stacked_loop._train_epoch(stack, rows, updates)
            bounds.append([record["bound"] for record in records])
            for run, record in zip(stack.runs, records, strict=True):
                run.epoch = epoch + 1
                run.history.append(record)
        outcomes.append((bounds, stack.tensors()))
        if graph:
            assert [captured[0].replays for captured in updates._graph.captured.values()] == [9, 18]
    assert outcomes[0][0] == outcomes[1][0]
    for name, value in outcomes[0][1].items():
        assert torch.equal(value, outcomes[1][1][name]), name


def computed():
    """Tensors that remember how they were computed."""
    return [x for x in gc.get_objects() if issubclass(type(x), torch.Tensor) and x.grad_fn is not None]


def test_a_finished_run_leaves_nothing_to_the_garbage_collector(rows, graphs, monkeypatch):
    """Neither a graph, whose memory on a GPU would stay, nor nodes that bind parameters to a stream."""
    monkeypatch.setattr(model, "CHUNK_VALUES", 2 * 32 * 16)  # samples are decoded again, two at a time
    gc.collect()
    gc.disable()
    others = computed()  # what other tests hold on to
    try:
        run = _build(config(), rows, SPEC)
        updates = with_graph(Updates(run, config()))
        updates.take([(rows[:32], None)])
        left = weakref.ref(updates), weakref.ref(updates._graph)
        updates._graph.captured.clear()
        assert {id(x) for x in computed()} <= {id(x) for x in others}
        del updates
        assert [reference() for reference in left] == [None, None]
    finally:
        gc.enable()
