import os
import re
import subprocess
import sys

import numpy as np
import pytest

from serving.bundle import Bundle, BundleError, read_bundle
from serving.engine import EngineError, OnnxEngine
from serving.runtime import available_cpus, import_onnxruntime
from tests.bundles import build_graph, make_bundle, random_rows, reference_novelty, reference_probabilities
from tests.servers import ROOT


@pytest.fixture(scope="module")
def bundle(tmp_path_factory):
    return read_bundle(make_bundle(tmp_path_factory.mktemp("models")))


def weights(seed=0, inputs=64, clusters=10):
    """The weights of `make_bundle`'s model."""
    rng = np.random.default_rng(seed)
    drawn = {
        "w1": rng.normal(size=(inputs, 16)),
        "b1": rng.normal(size=16),
        "w2": rng.normal(size=(16, clusters)),
    }
    return {name: value.astype(np.float32) for name, value in drawn.items()} | {
        "b2": np.zeros(clusters, np.float32)
    }


@pytest.mark.parametrize("n", [1, 3, 300])
def test_it_computes_what_numpy_does(bundle, n):
    x = random_rows(n, seed=n)
    expected = reference_probabilities(weights(), x)
    answer = OnnxEngine(bundle, "cpu").assign(x)
    np.testing.assert_allclose(answer.probabilities, expected, rtol=1e-4, atol=1e-6)
    np.testing.assert_array_equal(answer.clusters, expected.argmax(axis=1))
    np.testing.assert_array_equal(answer.confidences, answer.probabilities.max(axis=1))
    assert (answer.probabilities.dtype, answer.clusters.dtype) == (np.float32, np.int64)
    assert answer.novelty is None


@pytest.mark.parametrize("n", [1, 300])
def test_novelty_comes_when_the_graph_has_it(novelty_repository, n):
    x = random_rows(n, seed=n)
    answer = OnnxEngine(read_bundle(novelty_repository / "toy" / "1"), "cpu").assign(x)
    np.testing.assert_allclose(answer.novelty, reference_novelty(x), rtol=1e-5)
    np.testing.assert_array_equal(answer.clusters, reference_probabilities(weights(), x).argmax(axis=1))


def test_a_graph_without_the_novelty_of_its_manifest_is_refused(bundle, novelty_repository):
    promised = read_bundle(novelty_repository / "toy" / "1")
    with pytest.raises(EngineError, match=r"outputs \['probabilities', 'cluster', 'novelty'\]"):
        OnnxEngine(with_graph(promised, bundle.graph), "cpu")


def with_graph(bundle, graph):
    return Bundle(path=bundle.path, manifest=bundle.manifest, graph=graph)


def test_a_graph_that_is_none_or_not_the_manifests_is_refused(bundle):
    with pytest.raises(BundleError, match=f"{bundle.path}: ONNX Runtime cannot load the graph"):
        OnnxEngine(with_graph(bundle, b"no graph"), "cpu")
    other = OnnxEngine(with_graph(bundle, build_graph(weights(clusters=9), (8, 8), "uint8", 9)), "cpu")
    with pytest.raises(EngineError, match=r"shapes \(2, 9\) and \(2,\) for 2 rows and 10 clusters"):
        other.assign(random_rows(2))
    renamed = bundle.graph.replace(b"probabilities", b"probabilitied")
    with pytest.raises(EngineError, match=r"outputs \['cluster', 'probabilitied'\]; this bundle's graph"):
        OnnxEngine(with_graph(bundle, renamed), "cpu")


def test_prepared_for_some_sizes_it_computes_the_same(bundle):
    prepared, plain = OnnxEngine(bundle, "cpu"), OnnxEngine(bundle, "cpu")
    prepared.prepare((1, 4))
    kept = [(prepared.assign(x), plain.assign(x)) for x in (random_rows(n, seed=n) for n in (4, 1, 5, 4))]
    for found, expected in kept:
        np.testing.assert_array_equal(found.probabilities, expected.probabilities)
        np.testing.assert_array_equal(found.clusters, expected.clusters)


def test_rows_of_another_shape_are_an_engine_error(bundle):
    with pytest.raises(EngineError, match="inference failed"):
        OnnxEngine(bundle, "cpu").assign(random_rows(2, (9, 9)))


def test_rows_without_a_number_have_no_confidence_whatever_cluster_the_device_says(bundle, monkeypatch):
    engine = OnnxEngine(bundle, "cpu")
    probabilities = np.full((3, 10), 0.1, np.float32)
    probabilities[1] = np.nan
    clusters = np.array([3, 2**31 - 1, 9])
    monkeypatch.setattr(engine._bound, "run", lambda x: [probabilities, clusters])
    answer = engine.assign(random_rows(3))
    assert answer.clusters.tolist() == [3, 0, 9]
    np.testing.assert_array_equal(np.isnan(answer.confidences), [False, True, False])


def test_telemetry_is_off_before_onnxruntime_is_loaded(bundle):
    code = (
        "import os, sys; from pathlib import Path; from serving.bundle import read_bundle;"
        "from serving.engine import OnnxEngine; assert 'onnxruntime' not in sys.modules;"
        f"OnnxEngine(read_bundle(Path({str(bundle.path)!r})), 'cpu');"
        "print(os.environ['ORT_DISABLE_TELEMETRY'])"
    )
    env = {key: value for key, value in os.environ.items() if key != "ORT_DISABLE_TELEMETRY"}
    done = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "1"


def test_who_wants_telemetry_keeps_it(monkeypatch):
    import_onnxruntime()  # loaded by now: what follows changes a name in the environment and no more
    monkeypatch.setenv("ORT_DISABLE_TELEMETRY", "0")
    import_onnxruntime()
    assert os.environ["ORT_DISABLE_TELEMETRY"] == "0"


def test_onnxruntime_is_imported_in_one_place():
    importing = re.compile(r"^\s*(import|from) onnxruntime", re.MULTILINE)
    found = [p for p in (ROOT / "serving").rglob("*.py") if importing.search(p.read_text())]
    assert found == [ROOT / "serving" / "runtime.py"]


@pytest.mark.parametrize(
    ("quota", "cpus"), [("max 100000", 8), ("250000 100000", 2), ("10000 100000", 1), ("9900000 100000", 8)]
)
def test_the_containers_quota_cuts_the_processors(monkeypatch, quota, cpus):
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(8)))
    monkeypatch.setattr("pathlib.Path.read_text", lambda _: quota)
    assert available_cpus() == cpus
