"""Training on a GPU: it learns, resumes, agrees with the CPU, and never waits for the device in an epoch."""

from __future__ import annotations

import copy
import math
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import pytest
import torch

from training import NVISA, inference, loop, stacked_loop
from training.config import TrainingConfig
from training.data import describe
from training.export import export
from training.fit import fit
from training.loop import _build, _epoch_batches, _train_epoch, train
from training.onnx_graph import to_onnx
from training.rows import MappedRows, fetch
from training.stack import Stack
from training.stacked_loop import stacks, train_stacked
from training.state import Run
from training.update import Updates

pytestmark = pytest.mark.gpu


@pytest.fixture
def images() -> np.ndarray:
    random = np.random.default_rng(0)
    centres = random.integers(40, 215, size=(4, 1, 12, 12))
    x = centres + random.normal(0, 12, size=(4, 250, 12, 12))
    return np.clip(x, 0, 255).astype(np.uint8).reshape(-1, 12, 12)


def config(**changes) -> TrainingConfig:
    values = {"n_clusters": 4, "hidden_sizes": (64,), "epochs": 4, "epsilon_every": 1, "precision": "float32"}
    return TrainingConfig(**values | {"checkpoint_seconds": 0} | changes)


def tensors(run) -> dict[str, torch.Tensor]:
    return {name: value.cpu().clone() for name, value in run.tensors().items()}


def assert_close(found, expected, **tolerance) -> None:
    assert found.keys() == expected.keys()
    for name in found:
        torch.testing.assert_close(
            found[name], expected[name], msg=lambda m, n=name: f"{n}: {m}", **tolerance
        )


@contextmanager
def no_waiting(forbidden: bool = True) -> Iterator[None]:
    """Whoever makes the host wait for the device fails."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Synchronization debug mode is a prototype")
        torch.cuda.set_sync_debug_mode("error" if forbidden else "default")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")


def test_fit_on_cuda_learns_and_predicts_as_on_the_cpu(images, tmp_path):
    model = NVISA(n_clusters=4, epochs=5, pretrain_epochs=10, random_state=0, device="cuda").fit(images)
    assert next(model.fitted_.model.parameters()).device.type == "cuda"
    history = model.fitted_.histories[0]
    assert np.isfinite([record["bound"] for record in history]).all()
    assert to_onnx(model.fitted_)
    assert next(model.fitted_.model.parameters()).device.type == "cuda", "export works on a copy"
    model.save(tmp_path)
    on_cpu = NVISA.load(tmp_path, device="cpu")
    np.testing.assert_allclose(on_cpu.predict_proba(images), model.predict_proba(images), atol=1e-3)


def test_rows_left_on_the_host_train_as_those_on_the_device(images, tmp_path):
    """Not to the bit: the sums of some gradients come in any order on a GPU."""
    np.save(tmp_path / "x.npy", images)
    mapping = np.load(tmp_path / "x.npy", mmap_mode="r")
    config = TrainingConfig(n_clusters=4, epochs=2, hidden_sizes=(64,), device="cuda")
    bounds = [
        [record["bound"] for record in fit(own, x, describe(images)).histories[0]]
        for own, x in (
            (config, images),
            (config.model_copy(update={"memory": "mapped"}), images),
            (config.model_copy(update={"memory": "mapped"}), mapping),
        )
    ]
    np.testing.assert_allclose(bounds[1:], bounds[:1] * 2, rtol=1e-3)


def test_batches_from_the_host_are_theirs_and_nobody_waits_for_them(images):
    device = torch.device("cuda")
    resident = torch.from_numpy(images).to(device)
    order = list(torch.randperm(len(images), device=device).split(64))
    found = fetch(MappedRows(images, "uint8", device), order)
    seen = [next(found)]  # the order comes to the host once, here
    busy = torch.randn(4096, 4096, device=device)
    with no_waiting():
        for index, raw in found:
            for _ in range(4):  # keeps the device behind the host, so that early reuse of a buffer would show
                busy = (busy @ busy).tanh_()
            seen.append((index, raw.clone()))
    assert len(seen) == len(order)
    for index, raw in seen:
        assert torch.equal(raw, resident[index])


FORMS = [
    {},
    {"pathwise_z": True, "precision": "auto"},
    {"objective": "elbo"},
    {"objective": "nvil"},
    {"likelihood": "bernoulli"},
    {"network": "conv", "augment": True, "anchor": 1.0, "pathwise_z": True},
    {"n_importance_samples": 1200},
]


@pytest.mark.parametrize("changes", FORMS, ids=lambda changes: "-".join(changes) or "paper")
def test_no_host_synchronisation_within_an_epoch(images, changes):
    settings = config(**changes)
    rows = torch.from_numpy(images).cuda()
    for graph in (True, False):
        run = _build(settings, rows, describe(images))
        updates = Updates(run, settings.model_copy(update={"cuda_graph": graph}))
        anchors = torch.zeros(len(rows), dtype=torch.long, device="cuda") if settings.anchor else None
        for epoch in range(2):  # the first captures, and allocates Adam's state
            with no_waiting(epoch > 0):
                updates.begin(epoch)
                updates.take(_epoch_batches(rows, anchors, settings, updates.generators[0]))
        assert math.isfinite(updates.bound.item())


@pytest.mark.parametrize("changes", FORMS, ids=lambda changes: "-".join(changes) or "paper")
def test_a_graph_trains_as_steps_one_by_one_do(images, changes):
    """Over two epochs: another ε and another learning rate in the second reach the captured step."""
    settings = config(**changes, learning_rate_every=1)
    rows = torch.from_numpy(images).cuda()
    outcomes = []
    for graph in (True, False):
        own = settings.model_copy(update={"cuda_graph": graph})
        run = _build(own, rows, describe(images))
        updates = Updates(run, own)
        records = []
        for run.epoch in range(2):
            records.append(_train_epoch(run, rows, own, updates))
            run.history.append(records[-1])
        assert records[1]["epsilon_x"] < records[0]["epsilon_x"]
        assert records[1]["learning_rate"] < records[0]["learning_rate"]
        outcomes.append((tensors(run), [record["bound"] for record in records]))
    assert outcomes[0][1] == pytest.approx(outcomes[1][1], rel=1e-2)
    assert_close(outcomes[0][0], outcomes[1][0], rtol=0.05, atol=2e-3)


def test_replays_draw_anew(images):
    settings = config()
    rows = torch.from_numpy(images).cuda()
    run = _build(settings, rows, describe(images))
    for group in run.optimiser.param_groups:
        group["lr"].zero_()
    updates = Updates(run, settings)
    batch, bounds = rows[:100], []
    for epoch in (0, 0, 1):
        updates.begin(epoch)
        for _ in range(3):
            before = updates.bound.item()
            updates.take([(batch, None)])
            bounds.append(updates.bound.item() - before)
    assert bounds[:3] == pytest.approx(bounds[3:6], rel=1e-5), "a function of the seed and the epoch"
    assert len({round(bound, 3) for bound in [*bounds[:3], *bounds[6:]]}) == 6


def test_rollback_reaches_the_captured_step(images, monkeypatch):
    rows = torch.from_numpy(images).cuda()
    real, seen = loop._train_epoch, []

    def poisoned(run, *arguments):
        if run.epoch == 2:
            seen.append(tensors(run))
        record = real(run, *arguments)
        return record | {"bound": math.nan} if run.epoch == 2 and len(seen) < 3 else record

    monkeypatch.setattr(loop, "_train_epoch", poisoned)
    run = train(config(), rows, describe(images))
    assert run.rollbacks == 2
    assert_close(seen[0], seen[1], rtol=0, atol=0)
    assert_close(seen[0], seen[2], rtol=0, atol=0)
    assert run.history[3]["bound"] > run.history[0]["bound"]


@pytest.mark.parametrize("changes", FORMS, ids=lambda changes: "-".join(changes) or "paper")
def test_resume_goes_on_as_if_never_stopped(images, tmp_path, changes):
    """To the bit, but for convolutions, whose gradients cuDNN may sum in any order."""
    rows, spec = torch.from_numpy(images).cuda(), describe(images)
    whole = train(config(**changes), rows, spec)
    train(config(**changes, epochs=2), rows, spec, directory=tmp_path)
    resumed = train(config(**changes), rows, spec, directory=tmp_path, resume=True)
    exact = "network" not in changes
    assert_close(tensors(resumed), tensors(whole), rtol=0 if exact else 0.05, atol=0 if exact else 2e-3)
    assert resumed.history[3]["bound"] == pytest.approx(whole.history[3]["bound"], rel=0 if exact else 1e-3)


def test_a_graph_can_be_left_out_of_a_resume(images, tmp_path):
    rows, spec = torch.from_numpy(images).cuda(), describe(images)
    train(config(epochs=2), rows, spec, directory=tmp_path)
    resumed = train(config(cuda_graph=False), rows, spec, directory=tmp_path, resume=True)
    assert resumed.epoch == 4


def test_stacked_restarts_equal_separate_ones(images):
    changes = {
        "n_clusters": 4,
        "epochs": 3,
        "epsilon_every": 2,
        "hidden_sizes": (64, 64),
        "precision": "float32",
    }
    configs = [TrainingConfig(**changes, seed=seed) for seed in range(3)]
    rows, spec = torch.from_numpy(images).cuda(), describe(images)
    assert stacks(configs[0], spec, rows.device)
    stacked = train_stacked(configs, rows, spec, directories=[None] * 3)
    for config, found in zip(configs, stacked, strict=True):
        expected = train(config, rows, spec)
        assert isinstance(found, Run)
        assert found.score == pytest.approx(expected.score, rel=1e-3)
        theirs = expected.tensors()
        for name, value in found.tensors().items():
            torch.testing.assert_close(value, theirs[name], rtol=1e-2, atol=1e-3)


def test_a_stack_trains_by_a_graph_and_waits_for_nothing(images):
    each = [config(hidden_sizes=(64, 64), seed=seed) for seed in range(3)]
    rows, outcomes = torch.from_numpy(images).cuda(), []
    for graph in (True, False):
        own = [settings.model_copy(update={"cuda_graph": graph}) for settings in each]
        stack = Stack([_build(settings, rows, describe(images)) for settings in own], own)
        updates = Updates(stack, *stack.configs)
        for epoch in range(2):
            with no_waiting(epoch > 0):
                updates.begin(epoch)
                updates.take(stacked_loop._epoch_batches(stack, rows, updates))
        outcomes.append({name: value.cpu().clone() for name, value in stack.tensors().items()})
    assert_close(*outcomes, rtol=0.05, atol=2e-3)


def test_convolutions_say_on_cuda_what_they_say_on_the_cpu(tmp_path):
    """After contrastive learning and agreement: torch's own TF32 would be off by more, and no export pass."""
    random = np.random.default_rng(0)
    x = random.integers(40, 215, (4, 1, 20, 20)) + random.normal(0, 12, (4, 100, 20, 20))
    images = np.clip(x, 0, 255).astype(np.uint8).reshape(-1, 20, 20)
    settings = config(
        network="conv", initialisation="umap", contrastive_steps=10, pretrain_epochs=2, epochs=2
    )
    fitted = fit(settings.model_copy(update={"device": "cuda"}), images, describe(images))
    assert fitted.model.shift.device.type == "cuda"
    on_cpu = copy.deepcopy(fitted.model).cpu()
    expected = inference.probabilities(on_cpu, images)
    np.testing.assert_allclose(inference.probabilities(fitted.model, images), expected, atol=1e-4)
    export(fitted, tmp_path / "model" / "1", with_novelty=True)
    scores = inference.bounds(fitted.model, images[:20], 4)
    np.testing.assert_allclose(scores, inference.bounds(on_cpu, images[:20], 4), rtol=0.1)  # other noise


def test_an_autoencoder_and_a_mixture_start_a_run(images):
    rows = torch.from_numpy(images).cuda()
    run = train(config(initialisation="gmm", pretrain_epochs=3, anchor=1.0), rows, describe(images))
    assert run.start is not None
    assert np.isfinite([record["bound"] for record in run.history]).all()
    assert run.start.predict(run.model, images).shape == (len(images),)


def peak(settings: TrainingConfig, rows: torch.Tensor, spec) -> int:
    """Bytes that a step takes beside the model."""
    settings = settings.model_copy(update={"cuda_graph": False})
    updates = Updates(_build(settings, rows, spec), settings)
    updates.take([(rows[:100], None)])
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    updates.take([(rows[:100], None)])
    return torch.cuda.max_memory_allocated() - before


def test_memory_grows_with_samples_by_less_than_their_outputs(images, monkeypatch):
    monkeypatch.setattr("training.model.CHUNK_VALUES", 2**20)
    rows, spec = torch.from_numpy(images).cuda(), describe(images)
    few, many = (peak(config(n_importance_samples=m), rows, spec) for m in (1000, 4000))
    assert many < 4.5 * few, "linear in M"
    outputs = 2 * 4 * 100 * 144  # mean and std of a sample of the batch
    assert many - few < 1.5 * 3000 * outputs, "the [M, B, D] outputs are not kept"
