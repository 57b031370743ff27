"""Training on a GPU: it learns, resumes, agrees with the CPU, and never waits for the device in a step."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from training import NVISA
from training.config import TrainingConfig
from training.data import describe
from training.export import to_onnx
from training.loop import _build, train
from training.model import NVISAModel
from training.precision import matrix_products
from training.schedule import batches, epoch_generator
from training.stacked_loop import stacks, train_stacked
from training.state import Run
from training.step import batch_objective

pytestmark = pytest.mark.gpu


@pytest.fixture
def images() -> np.ndarray:
    random = np.random.default_rng(0)
    centres = random.integers(40, 215, size=(4, 1, 12, 12))
    x = centres + random.normal(0, 12, size=(4, 250, 12, 12))
    return np.clip(x, 0, 255).astype(np.uint8).reshape(-1, 12, 12)


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


@pytest.mark.parametrize("objective", ["vimco", "elbo"])
def test_no_host_synchronisation_in_a_step(images, objective):
    config = TrainingConfig(n_clusters=4, objective=objective, hidden_sizes=(64,))
    rows = torch.from_numpy(images).cuda()
    run = _build(config, rows, describe(images))
    assert isinstance(run.model, NVISAModel)
    generator = epoch_generator(0, 0, rows.device)
    index = next(batches(len(rows), 128, generator))
    for attempt in range(2):  # the first step allocates Adam's state
        torch.cuda.set_sync_debug_mode("error" if attempt else "default")
        try:
            x = run.model.preprocess(rows[index], generator)
            with matrix_products(rows.device, "auto"):
                step = batch_objective(run.model, None, x, config, generator)
            run.optimiser.zero_grad()
            (-step.objective.surrogate.mean()).backward()
            run.optimiser.step()
        finally:
            torch.cuda.set_sync_debug_mode("default")
    assert torch.isfinite(step.objective.bound).all()


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
    assert stacks(configs[0], rows.device)
    stacked = train_stacked(configs, rows, spec, directories=[None] * 3)
    for config, found in zip(configs, stacked, strict=True):
        expected = train(config, rows, spec)
        assert isinstance(found, Run)
        assert found.score == pytest.approx(expected.score, rel=1e-3)
        theirs = expected.tensors()
        for name, value in found.tensors().items():
            torch.testing.assert_close(value, theirs[name], rtol=1e-2, atol=1e-3)
