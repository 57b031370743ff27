"""Rows that stay on disk: the same bits as rows in memory, whatever asks for them."""

from __future__ import annotations

import threading

import numpy as np
import pytest
import torch

from serving.manifest import InputSpec
from training import rows as rows_module
from training.config import TrainingConfig
from training.data import describe
from training.fit import fit
from training.loop import train
from training.rows import MappedRows, fetch, is_mapped, moments, part_rows, place
from training.schedule import batches, epoch_generator
from training.scores import accuracy

CPU = torch.device("cpu")


def config(**changes) -> TrainingConfig:
    values = {
        "n_clusters": 3,
        "latent_dim": 2,
        "hidden_sizes": (8,),
        "n_importance_samples": 3,
        "batch_size": 16,
        "epochs": 4,
        "epsilon_x": "auto",
        "epsilon_every": 2,
        "checkpoint_seconds": 0,
        "pretrain_epochs": 2,
        "gmm_starts": 1,
    }
    return TrainingConfig(**values | changes)


@pytest.fixture
def images() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (120, 4, 4), dtype=np.uint8)


@pytest.fixture
def features() -> np.ndarray:
    random = np.random.default_rng(0)
    x = 5 * random.standard_normal((3, 1, 3)) + random.standard_normal((3, 40, 3))
    return x.reshape(-1, 3).astype(np.float32)


def on_disk(x: np.ndarray, folder, dtype=None) -> np.memmap:
    np.save(folder / "x.npy", x.astype(dtype or x.dtype))
    return np.load(folder / "x.npy", mmap_mode="r")


def assert_same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> None:
    assert a.keys() == b.keys()
    for name in a:
        assert torch.equal(a[name], b[name]), name


@pytest.mark.parametrize(
    "changes",
    [{}, {"initialisation": "gmm"}, {"anchor": 1.0, "initialisation": "gmm"}, {"likelihood": "bernoulli"}],
)
def test_images_on_disk_train_to_the_same_bits(images, tmp_path, changes):
    whole = fit(config(**changes), images, describe(images))
    mapped = fit(config(memory="mapped", **changes), on_disk(images, tmp_path), describe(images))
    assert_same(whole.model.state_dict(), mapped.model.state_dict())
    assert [r.score for r in whole.restarts] == [r.score for r in mapped.restarts]
    assert whole.rows.reference == mapped.rows.reference
    np.testing.assert_array_equal(whole.rows.typical, mapped.rows.typical)
    np.testing.assert_array_equal(whole.rows.sample, mapped.rows.sample)


# Three features: umap clusters their principal components without compiling anything.
@pytest.mark.parametrize(
    "changes", [{}, {"initialisation": "gmm"}, {"initialisation": "umap", "anchor": 1.0}]
)
@pytest.mark.parametrize("dtype", ["<f4", ">f8"])
def test_features_on_disk_of_any_type_train_to_the_same_bits(features, tmp_path, changes, dtype):
    spec = describe(features)
    whole = fit(config(**changes), features, spec)
    mapped = fit(config(memory="mapped", **changes), on_disk(features, tmp_path, dtype), spec)
    assert_same(whole.model.state_dict(), mapped.model.state_dict())
    assert mapped.rows.sample.dtype == np.float32
    np.testing.assert_array_equal(whole.rows.sample, mapped.rows.sample)


@pytest.mark.parametrize("initialisation", ["random", "gmm"])
@pytest.mark.parametrize("begun", ["resident", "mapped"])
def test_where_the_rows_are_may_change_at_resume(features, tmp_path, initialisation, begun):
    resumed = {"resident": "mapped", "mapped": "resident"}[begun]
    spec, mapping = describe(features), on_disk(features, tmp_path)
    held = {memory: place(mapping, spec, CPU, memory, print) for memory in ("resident", "mapped")}
    changes = {"initialisation": initialisation}
    whole = train(config(**changes), torch.from_numpy(features), spec)
    train(config(epochs=2, memory=begun, **changes), held[begun], spec, directory=tmp_path)
    again = train(config(memory=resumed, **changes), held[resumed], spec, directory=tmp_path, resume=True)
    assert_same(whole.tensors(), again.tensors())


def test_rows_sorted_by_class_are_shuffled(tmp_path):
    """Batches in the order of the file would each hold one class."""
    centres = np.float32([[-9, 0], [0, 9], [9, 0]])
    x = np.repeat(centres, 100, axis=0)
    x += np.random.default_rng(0).normal(0, 0.5, x.shape).astype(np.float32)
    mapping = on_disk(x, tmp_path)
    order = batches(len(x), 30, epoch_generator(0, 0, CPU))
    seen = list(fetch(MappedRows(mapping, "float32", CPU), order))
    for _, raw in seen:
        classes = np.abs(raw.numpy()[:, None] - centres).sum(-1).argmin(1)
        assert np.bincount(classes, minlength=3).min() >= 2
    assert len(torch.cat([index for index, _ in seen]).unique()) == 300
    own = config(memory="mapped", epochs=8, initialisation="gmm", pretrain_epochs=20)
    found = fit(own, mapping, describe(x)).model(torch.from_numpy(x)).argmax(1).numpy()
    assert accuracy(np.repeat([0, 1, 2], 100), found) > 0.98


def test_batches_come_with_their_own_rows_and_in_order():
    x = np.arange(1000, dtype=np.float64).reshape(500, 2)
    held = MappedRows(x, "float32", CPU)
    order = list(torch.randperm(500).split(7))
    for (index, raw), expected in zip(fetch(held, iter(order)), order, strict=True):
        assert index is expected
        assert raw.dtype == torch.float32
        assert torch.equal(raw, torch.from_numpy(x).float()[index])
    stacked = torch.randperm(500).view(2, 250)
    [(_, raw)] = fetch(held, [stacked])
    assert torch.equal(raw, torch.from_numpy(x).float()[stacked])
    assert list(fetch(held, [])) == []


def test_a_slice_is_a_view_and_split_goes_through_it():
    x = np.arange(20, dtype=np.uint8).reshape(10, 2)
    every = MappedRows(x, "uint8", CPU)[::3]
    assert (len(every), every.shape) == (4, (4, 2))
    assert np.shares_memory(every._array, x)
    assert [part.tolist() for part in every.split(3)] == [[[0, 1], [6, 7], [12, 13]], [[18, 19]]]


def test_an_epoch_left_halfway_leaves_no_thread_behind():
    held = MappedRows(np.zeros((1000, 2), np.float32), "float32", CPU)
    left = fetch(held, torch.arange(1000).split(10))
    next(left)
    assert any(thread.name.startswith("rows") for thread in threading.enumerate())
    del left
    assert not any(thread.name.startswith("rows") for thread in threading.enumerate())


def test_large_parts_are_not_all_read_ahead(monkeypatch):
    monkeypatch.setattr(rows_module, "AHEAD_BYTES", 64)
    asked = []
    held = MappedRows(np.zeros((100, 4), np.float32), "float32", CPU)
    monkeypatch.setattr(held, "_fill", lambda staged, part: asked.append(part))
    parts = held.split(3)  # 48 bytes each
    next(parts)
    parts.close()
    assert len(asked) == 3


def test_parts_have_a_bounded_number_of_values():
    assert part_rows((10**9, 784)) == 8192
    assert part_rows((10**9, 224, 224, 3)) == 2**23 // (224 * 224 * 3)
    assert part_rows((2, 2**24)) == 1


def test_moments_are_those_of_float64_even_far_from_zero():
    random = np.random.default_rng(0)
    x = (1e4 + random.normal(0, 1, (30_000, 3)) * [1, 10, 0]).astype(np.float32)
    for held in (torch.from_numpy(x), MappedRows(x, "float32", CPU)):
        mean, std = moments(held)
        np.testing.assert_allclose(mean, x.astype(np.float64).mean(0), rtol=1e-13)
        np.testing.assert_allclose(std, x.astype(np.float64).std(0), rtol=1e-10, atol=1e-8)


def test_auto_leaves_on_disk_what_would_fill_half_of_the_memory(features, tmp_path, monkeypatch):
    mapping, spec, said = on_disk(features, tmp_path), describe(features), []
    monkeypatch.setattr(rows_module, "free_bytes", lambda device: 2 * features.nbytes)
    resident = place(mapping, spec, CPU, "auto", said.append)
    assert isinstance(resident, torch.Tensor)
    assert torch.equal(resident, torch.from_numpy(features))
    assert not said
    monkeypatch.setattr(rows_module, "free_bytes", lambda device: 2 * features.nbytes - 2)
    assert isinstance(place(mapping, spec, CPU, "auto", said.append), MappedRows)
    assert len(said) == 1
    assert "free on the cpu: read batch by batch from disk" in said[0]
    in_ram = place(features, spec, CPU, "auto", said.append)
    assert isinstance(in_ram, torch.Tensor), "what is in RAM already takes nothing"
    assert in_ram.data_ptr() == features.ctypes.data
    assert isinstance(place(mapping, spec, CPU, "resident", said.append), torch.Tensor)


def test_a_mapping_is_recognised_behind_views(images, tmp_path):
    mapping = on_disk(images, tmp_path)
    assert is_mapped(np.asarray(mapping)[::2].reshape(60, 16))
    assert not is_mapped(np.array(mapping))


def test_two_thousand_features_and_a_hundred_clusters(tmp_path):
    """From rows on disk to a bundle that ONNX Runtime and torch agree on, and scores."""
    from serving.readers import open_source
    from training.evaluation import evaluate
    from training.export import export
    from training.fitted import Fitted

    x = np.random.default_rng(0).normal(size=(300, 2048)).astype(np.float32)
    wide = config(
        n_clusters=100, latent_dim=4, epochs=1, pretrain_epochs=1, initialisation="gmm", memory="mapped"
    )
    fit(wide, on_disk(x, tmp_path), InputSpec(dtype="float32", shape=(2048,), meaning="features")).save(
        tmp_path / "run"
    )
    fitted = Fitted.load(tmp_path / "run")
    manifest = export(fitted, tmp_path / "wide" / "1")
    assert manifest.n_clusters == 100
    assert manifest.parity.rows == 300
    scores, start = evaluate(fitted, open_source(tmp_path / "x.npy"))
    assert sum(scores.cluster_sizes) == sum(start.cluster_sizes) == 300
    assert len(scores.cluster_sizes) == 100
