"""Training on a GPU: it learns, resumes, agrees with the CPU, and never waits for the device in a step."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from training import NVISA
from training.config import TrainingConfig
from training.data import describe
from training.export import to_onnx
from training.fit import fit
from training.loop import _build
from training.model import NVISAModel
from training.precision import matrix_products
from training.rows import MappedRows, fetch
from training.schedule import batches, epoch_generator
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
    torch.cuda.set_sync_debug_mode("error")
    try:
        for index, raw in found:
            for _ in range(4):  # keeps the device behind the host, so that early reuse of a buffer would show
                busy = (busy @ busy).tanh_()
            seen.append((index, raw.clone()))
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert len(seen) == len(order)
    for index, raw in seen:
        assert torch.equal(raw, resident[index])


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
