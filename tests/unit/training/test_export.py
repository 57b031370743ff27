"""Export: the bundle, parity, and refusal."""

from __future__ import annotations

import dataclasses
import json

import numpy as np
import onnx
import pytest

from serving.bundle import BundleError, read_bundle
from serving.engine import OnnxEngine
from training import export as export_module
from training.config import TrainingConfig
from training.data import describe
from training.export import ExportError, check_parity, export
from training.fit import fit
from training.inference import probabilities
from training.novelty import novelty
from training.onnx_graph import to_onnx


def fitted_on(x: np.ndarray):
    config = TrainingConfig(n_clusters=3, latent_dim=2, hidden_sizes=(8,), n_importance_samples=2, epochs=1)
    return fit(config, x, describe(x), name="/somewhere/private/toy.npy", fingerprint="f" * 64)


@pytest.fixture(scope="module")
def images():
    return fitted_on(np.random.default_rng(0).integers(0, 256, size=(64, 5, 4), dtype=np.uint8))


@pytest.fixture(scope="module")
def features():
    x = np.random.default_rng(0).standard_normal((64, 6)) * [1, 10, 100, 1, 1, 0.1] + 3
    return fitted_on(x.astype(np.float32))


@pytest.mark.parametrize("kind", ["images", "features"])
def test_bundle_serves_what_torch_computes(kind, request, tmp_path):
    fitted = request.getfixturevalue(kind)
    manifest = export(fitted, tmp_path / "toy" / "1")
    bundle = read_bundle(tmp_path / "toy" / "1")
    assert bundle.manifest == manifest
    engine = OnnxEngine(bundle, "cpu")
    for rows in (fitted.rows.sample, fitted.rows.sample[:1]):
        expected = probabilities(fitted.model, rows)
        found = engine.assign(rows)
        np.testing.assert_allclose(found.probabilities, expected, atol=1e-5)
        assert (found.clusters == expected.argmax(1)).all()
    assert manifest.parity.rows == 64
    assert manifest.parity.max_abs_difference < 1e-5
    assert manifest.input == fitted.spec


@pytest.fixture(scope="module")
def large_features():
    """Features that float16 cannot hold; they are scaled within the graph."""
    x = np.random.default_rng(0).standard_normal((64, 6)) * [1, 10, 1e6, 1, 1, 0.1] + 3
    return fitted_on(x.astype(np.float32))


@pytest.mark.parametrize("kind", ["images", "features", "large_features"])
def test_products_in_float16_give_the_same_clusters(kind, request, tmp_path):
    fitted = request.getfixturevalue(kind)
    manifest = export(fitted, tmp_path / "toy" / "1", half=True)
    bundle = read_bundle(tmp_path / "toy" / "1")
    graph = onnx.load_from_string(bundle.graph).graph
    halves = {value.name for value in graph.initializer if value.data_type == onnx.TensorProto.FLOAT16}
    products = [node for node in graph.node if node.op_type in ("Gemm", "MatMul")]
    assert products
    assert all(halves.intersection(node.input) for node in products)
    expected = probabilities(fitted.model, fitted.rows.sample)
    found = OnnxEngine(bundle, "cpu").assign(fitted.rows.sample)
    assert found.probabilities.dtype == np.float32
    difference = np.abs(found.probabilities - expected).max()
    assert 1e-6 < difference < 0.01  # it is float16, and good enough
    assert manifest.parity.max_abs_difference == pytest.approx(difference, rel=1e-3)
    assert manifest.parity.equal_argmax_share == (found.clusters == expected.argmax(1)).mean()


def test_float16_and_novelty_do_not_go_together(images, tmp_path):
    with pytest.raises(ExportError, match="too coarse for novelty"):
        export(images, tmp_path / "toy" / "1", half=True, with_novelty=True)
    assert not (tmp_path / "toy").exists()


@pytest.mark.parametrize("kind", ["images", "features"])
def test_novelty_is_served_as_torch_computes_it(kind, request, tmp_path):
    fitted = request.getfixturevalue(kind)
    manifest = export(fitted, tmp_path / "toy" / "1", with_novelty=True)
    assert manifest.schema_version == 2
    assert manifest.outputs == ("probabilities", "cluster", "novelty")
    assert manifest.novelty.rows == 64
    assert manifest.novelty.cost_ratio > 1
    assert manifest.novelty.max_abs_difference < 1e-3
    engine = OnnxEngine(read_bundle(tmp_path / "toy" / "1"), "cpu")
    far = np.full((2, *fitted.spec.shape), 255, fitted.spec.dtype)
    for rows in (fitted.rows.sample, fitted.rows.sample[:1], far):
        found = engine.assign(rows)
        expected = probabilities(fitted.model, rows)
        np.testing.assert_allclose(found.probabilities, expected, atol=1e-5)
        np.testing.assert_array_equal(found.clusters, expected.argmax(1))
        np.testing.assert_allclose(found.novelty, novelty(fitted.model, fitted.rows.ranks, rows), atol=1e-3)
        assert found.novelty.dtype == np.float32
    wild = engine.assign(
        np.full((2, *fitted.spec.shape), 3e38 if kind == "features" else 0, fitted.spec.dtype)
    )
    assert ((wild.novelty >= 0) & (wild.novelty <= 1)).all()


def test_without_novelty_the_manifest_is_what_it_was(images, tmp_path):
    export(images, tmp_path / "toy" / "1")
    document = json.loads((tmp_path / "toy" / "1" / "manifest.json").read_text())
    assert document["schema_version"] == 1
    assert "novelty" not in document
    assert len(onnx.load(tmp_path / "toy" / "1" / "model.onnx").graph.output) == 2


def test_a_run_without_ranks_is_ranked_among_the_rows_it_holds(images, tmp_path):
    rows = dataclasses.replace(images.rows, sample=images.rows.sample[:50], ranks=None)
    manifest = export(dataclasses.replace(images, rows=rows), tmp_path / "toy" / "1", with_novelty=True)
    assert manifest.novelty.rows == 50


def test_export_is_refused_when_novelty_differs(images, tmp_path, monkeypatch):
    monkeypatch.setattr(export_module, "novelty", lambda *_: np.full(64, 0.5, np.float32))
    with pytest.raises(ExportError, match=r"up to .* in novelty on 64 rows .* not exported"):
        export(images, tmp_path / "toy" / "1", with_novelty=True)
    assert not (tmp_path / "toy").exists()


def test_graph_is_self_contained_and_tells_nothing_of_this_machine(images):
    graph = to_onnx(images)
    proto = onnx.load_from_string(graph)
    assert not any(tensor.external_data for tensor in proto.graph.initializer)
    assert b"/training/" not in graph
    assert proto.graph.input[0].type.tensor_type.elem_type == onnx.TensorProto.UINT8
    assert proto.graph.input[0].type.tensor_type.shape.dim[0].dim_param
    [first] = [node for node in proto.graph.node if "x" in node.input]
    assert first.op_type == "Cast"  # of bytes TensorRT takes nothing else


def test_manifest_names_the_data_without_its_path(images, tmp_path):
    manifest = export(images, tmp_path / "toy" / "3")
    assert manifest.training.data == "toy.npy"
    assert manifest.version == 3
    assert [cluster.id for cluster in manifest.clusters] == [0, 1, 2]
    assert sum(cluster.share for cluster in manifest.clusters) == pytest.approx(1)


def test_export_is_refused_when_parity_fails(images, features, tmp_path, monkeypatch):
    wrong = fitted_on(255 - images.rows.sample)
    graph = to_onnx(wrong)
    with pytest.raises(ExportError, match=r"differs from torch by up to .* not exported"):
        check_parity(images, graph, images.rows.sample)
    monkeypatch.setattr(export_module, "to_onnx", lambda *_: graph)
    with pytest.raises(ExportError):
        export(images, tmp_path / "toy" / "1")
    assert not (tmp_path / "toy").exists()


def test_versions_are_never_overwritten(images, tmp_path):
    export(images, tmp_path / "toy" / "1")
    before = (tmp_path / "toy" / "1" / "model.onnx").read_bytes()
    with pytest.raises(BundleError, match="already exists"):
        export(images, tmp_path / "toy" / "1")
    assert (tmp_path / "toy" / "1" / "model.onnx").read_bytes() == before


@pytest.mark.parametrize("name", ["toy", "toy/v1", "toy/0"])
def test_output_must_name_a_version(images, tmp_path, name):
    with pytest.raises(ExportError, match="NAME/VERSION"):
        export(images, tmp_path / name)
