"""Steps as a GPU takes them, on tensors without values: nothing may ask for one, or mix devices."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import nullcontext
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from serving.manifest import InputSpec
from training import inference, noise, novelty, update
from training.agreement import anchor_loss
from training.augment import view
from training.config import TrainingConfig
from training.contrastive import nt_xent
from training.densities import sample_normal
from training.loop import _build
from training.stack import Stack
from training.update import Updates

SPEC = InputSpec(dtype="uint8", shape=(16, 16), meaning="image")
META = torch.device("meta")
FORMS = [
    {},
    {"pathwise_z": True, "mean_field": True, "balance": 1.0},
    {"objective": "elbo"},
    {"objective": "nvil"},
    {"likelihood": "bernoulli"},
    {"network": "conv", "decoder": "conv", "augment": True, "anchor": 1.0},
    {"n_importance_samples": 40},
]


class OnDevice(TorchDispatchMode):
    """Fails where tensors on another device meet those on the training device; keeps what was called."""

    def __init__(self) -> None:
        super().__init__()
        self.called: set[str] = set()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        found = function(*args, **kwargs or {})
        leaves = [leaf for leaf in tree_leaves((args, kwargs, found)) if isinstance(leaf, torch.Tensor)]
        assert {leaf.device for leaf in leaves} <= {META}, function
        self.called.add(function._schema.name)
        return found


@pytest.fixture(autouse=True)
def _without_values(monkeypatch) -> None:
    """What meta tensors have not: a generator, autocast, Adam's fused step."""
    monkeypatch.setattr(noise, "_fill", lambda kind, values, generator: values.zero_())
    monkeypatch.setattr(torch, "is_autocast_enabled", lambda kind=None: False)
    monkeypatch.setattr(update, "matrix_products", lambda device, precision: nullcontext())
    adam = sys.modules[torch.optim.Adam.__module__]
    monkeypatch.setattr(adam, "_device_dtype_check_for_fused", lambda parameter: None)
    monkeypatch.setattr(torch, "_fused_adam_", lambda *arguments, **keywords: None)
    monkeypatch.setattr("training.model.CHUNK_VALUES", 8 * 30 * 256)


def config(**changes) -> TrainingConfig:
    return TrainingConfig(**{"n_clusters": 4, "hidden_sizes": (12, 8), "precision": "float32"} | changes)


def on_meta(trained, updates):
    """Bring a run or a stack and its updates to the device, with an Adam of its own there."""
    modules = [module for module in (trained.model, trained.baseline) if module is not None]
    parameters = [parameter for module in modules for parameter in module.to(META).parameters()]
    trained.optimiser = torch.optim.Adam(parameters, lr=1e-3, fused=True)
    trained.optimiser.param_groups[0]["lr"] = torch.empty((), device=META)
    updates.bound, updates.usage = updates.bound.to(META), updates.usage.to(META)
    return updates


def build(settings):
    return _build(settings, torch.zeros((60, 16, 16), dtype=torch.uint8), SPEC)


@pytest.mark.parametrize("changes", FORMS, ids=lambda changes: "-".join(changes) or "paper")
def test_a_step_asks_for_no_value_and_stays_on_its_device(changes):
    settings = config(**changes)
    run = build(settings)
    updates = on_meta(run, Updates(run, settings))
    rows = torch.zeros((30, 16, 16), dtype=torch.uint8, device=META)
    anchors = torch.zeros(30, dtype=torch.long, device=META) if settings.anchor else None
    with OnDevice() as device:
        updates.step(rows, anchors)
        updates.step(rows, anchors)
    assert "aten::_foreach_add_" in device.called, "Adam's counts of steps are on the device"
    if anchors is None:  # of these each sum has one row
        unordered = {"aten::scatter_add", "aten::index_add", "aten::index_put"}
        assert not unordered & device.called, "sums in any order, so that no resume is exact"


@pytest.mark.parametrize("changes", FORMS[:5], ids=lambda changes: "-".join(changes) or "paper")
def test_neither_does_a_step_of_a_stack(changes):
    each = [config(**changes, network="mlp", seed=seed) for seed in range(2)]
    stacked = Stack([build(own) for own in each], each)
    updates = on_meta(stacked, Updates(stacked, *stacked.configs))
    with OnDevice() as device:
        updates.step(torch.zeros((2, 30, 16, 16), dtype=torch.uint8, device=META), None)
    assert "aten::scatter_add" not in device.called


def test_nor_do_the_steps_before_the_first_epoch():
    """Agreement with given clusters, and contrastive learning, but for the loss that an epoch tells."""
    model = build(config(network="conv")).model.to(META)
    x = torch.zeros((30, 256), device=META)
    y = torch.zeros(30, dtype=torch.long, device=META)
    settings, generator = config(augment=True), torch.Generator()
    with OnDevice():
        encoding = model.encode(x)
        mean, std = model.q_z(encoding.hidden, y.unsqueeze(0))
        model.log_joint(x, y.unsqueeze(0), sample_normal(mean, std, generator)).sum().backward()
        anchor_loss(model, model.encode(x), x, y, settings, generator).sum().backward()
        nt_xent(model.encoder(torch.cat([view(x, SPEC, generator), view(x, SPEC, generator)]))).backward()


@pytest.fixture(params=["tf32", "ieee"])
def convolutions(request) -> Iterator[Any]:
    """What the caller has set."""
    found = torch.backends.cudnn.conv
    before = found.fp32_precision
    found.fp32_precision = request.param
    yield found
    assert found.fp32_precision == request.param, "put back"
    found.fp32_precision = before


def test_what_a_fitted_model_says_comes_of_float32_convolutions(convolutions):
    """Not of TF32, torch's default on a GPU: exported graphs are compared with it to four digits."""
    model, seen = build(config(network="conv")).model, []
    model.encoder.register_forward_hook(lambda *_: seen.append(convolutions.fp32_precision))
    x = np.zeros((3, 16, 16), np.uint8)
    for ask in (inference.probabilities, inference.assign, inference.codes, novelty.calibrate):
        ask(model, x)
    assert seen == ["ieee"] * 4
