"""ONNX Runtime on a GPU: it really runs there, answers as the CPU does, and never goes to the CPU instead."""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from serving.bundle import read_bundle
from serving.engine import EngineError, OnnxEngine
from serving.gpu import GpuOptions
from serving.limits import buckets
from serving.runtime import CUDA, TENSORRT, import_onnxruntime
from tests.bundles import make_bundle, random_rows
from training.config import TrainingConfig
from training.data import describe
from training.export import export
from training.fit import fit

pytestmark = pytest.mark.gpu

# What the tests of one model run on; "cpu" tries the tests themselves where there is no GPU.
DEVICE = "cuda"
SIZES = (1, 16, 256)
GRAPHS = pytest.mark.parametrize("graphs", [False, True], ids=["no graphs", "graphs"])


@pytest.fixture(autouse=True)
def _onnxruntime():
    if DEVICE == "cuda" and CUDA not in import_onnxruntime().get_available_providers():
        pytest.skip("this onnxruntime has no CUDA: install onnxruntime-gpu in place of onnxruntime")


def engine(bundle, **options):
    found = OnnxEngine(bundle, DEVICE, gpu=GpuOptions(**options))
    assert found.device == DEVICE
    return found


def assert_same(found, expected, atol=1e-3):
    np.testing.assert_allclose(found.probabilities, expected.probabilities, atol=atol)
    first, second = np.sort(expected.probabilities, axis=1)[:, :-3:-1].T
    clear = first - second > 2 * atol
    assert clear.mean() > 0.8
    np.testing.assert_array_equal(found.clusters[clear], expected.clusters[clear])
    if expected.novelty is not None:
        np.testing.assert_allclose(found.novelty, expected.novelty, atol=10 * atol)


@GRAPHS
@pytest.mark.parametrize("sizes", [(), SIZES], ids=["plain", "bound"])
@pytest.mark.parametrize("dtype", ["uint8", "float32"])
def test_cuda_engine_agrees_with_the_cpu(tmp_path, dtype, sizes, graphs):
    bundle = read_bundle(make_bundle(tmp_path, dtype=dtype, novelty=True))
    on_gpu, on_cpu = engine(bundle, cuda_graphs=graphs), OnnxEngine(bundle, "cpu")
    on_gpu.prepare(sizes)
    # The first run of a size records its graph, the others replay it, on other rows.
    kept = []
    for seed in range(3):
        for n in (*SIZES, 1000):
            rows = random_rows(n, dtype=dtype, seed=seed)
            kept.append((on_gpu.assign(rows), on_cpu.assign(rows)))
    for found, expected in kept:
        assert_same(found, expected)


@GRAPHS
@pytest.mark.parametrize(
    ("nets", "how"),
    [
        ({"network": "mlp"}, {}),
        ({"network": "mlp"}, {"with_novelty": True}),
        ({"network": "conv", "decoder": "conv"}, {}),
        ({"network": "conv", "decoder": "conv"}, {"with_novelty": True}),
        ({"network": "mlp"}, {"half": True}),
        ({"network": "conv", "decoder": "conv"}, {"half": True}),
    ],
    ids=["mlp", "mlp novelty", "conv", "conv novelty", "mlp half", "conv half"],
)
def test_what_is_exported_runs_there(tmp_path, caplog, nets, how, graphs):
    rng = np.random.default_rng(0)
    x = np.clip(rng.normal(np.repeat([40, 120, 200], 64)[:, None, None], 20, (192, 12, 12)), 0, 255)
    x = x.astype(np.uint8)
    config = TrainingConfig(
        n_clusters=3, latent_dim=2, hidden_sizes=(16,), n_importance_samples=2, epochs=2, **nets
    )
    fitted = fit(config, x, describe(x), name="blobs.npy", fingerprint="f" * 64)
    export(fitted, tmp_path / "blobs" / "1", **how)
    bundle = read_bundle(tmp_path / "blobs" / "1")
    on_gpu, expected = engine(bundle, cuda_graphs=graphs), OnnxEngine(bundle, "cpu").assign(x)
    # Upsampling computes the size of its images from the batch's, and ONNX Runtime such things on the CPU.
    shapes = nets.get("decoder") == "conv" and how.get("with_novelty", False)
    said = [record.message for record in caplog.records if "on the CPU" in record.message]
    assert len(said) == (shapes and DEVICE == "cuda")
    on_gpu.prepare([len(x)])
    for _ in range(2):
        np.testing.assert_allclose(on_gpu.assign(x).probabilities, expected.probabilities, atol=1e-2)
    if expected.novelty is not None:
        np.testing.assert_allclose(on_gpu.assign(x).novelty, expected.novelty, atol=1e-2)


@GRAPHS
def test_rows_without_an_answer_spoil_no_others(tmp_path, graphs):
    bundle = read_bundle(make_bundle(tmp_path, dtype="float32"))
    on_gpu, rows = engine(bundle, cuda_graphs=graphs), random_rows(16, dtype="float32")
    on_gpu.prepare((16,))
    expected = OnnxEngine(bundle, "cpu").assign(rows)
    rows[3] = 3e38
    found = on_gpu.assign(rows)
    np.testing.assert_array_equal(np.isfinite(found.confidences), np.arange(16) != 3)
    good = np.arange(16) != 3
    np.testing.assert_allclose(found.probabilities[good], expected.probabilities[good], atol=1e-3)


@GRAPHS
def test_a_model_is_warmed_while_another_answers(tmp_path, graphs):
    """CUDA fails whoever copies while a graph is recorded; and what was recorded is for one thread alone."""
    bundles = [read_bundle(make_bundle(tmp_path, f"m{seed}", seed=seed)) for seed in range(4)]
    rows = {n: random_rows(n, seed=n) for n in buckets(256)}
    serving = engine(bundles[0], cuda_graphs=graphs)
    serving.prepare(buckets(256))
    expected = {n: OnnxEngine(bundles[0], "cpu").assign(x) for n, x in rows.items()}
    done = False

    def call(n):
        calls = 0
        while not done:
            assert_same(serving.assign(rows[n]), expected[n])
            calls += 1
        return calls

    with ThreadPoolExecutor(2) as threads:
        calls = [threads.submit(call, n) for n in (16, 256)]
        try:
            for bundle in bundles[1:]:
                other = engine(bundle, cuda_graphs=graphs)
                other.prepare(buckets(256))
                for x in rows.values():
                    assert_same(other.assign(x), OnnxEngine(bundle, "cpu").assign(x))
        finally:
            done = True
        assert all(future.result() > 0 for future in calls)


@pytest.mark.skipif(DEVICE != "cuda", reason="the limit is the device's")
def test_too_little_memory_is_an_error_and_no_way_to_the_cpu(tmp_path):
    bundle = read_bundle(make_bundle(tmp_path))
    on_gpu = engine(bundle, memory_bytes=16 << 20)
    with pytest.raises(EngineError, match="inference failed"):
        on_gpu.assign(random_rows(400_000))  # of which the bytes alone are 26 MB
    assert on_gpu.device == "cuda"
    rows = random_rows(16)
    assert_same(on_gpu.assign(rows), OnnxEngine(bundle, "cpu").assign(rows))
    with pytest.raises(EngineError, match="device=cuda"):
        engine(bundle, memory_bytes=1)


@pytest.mark.skipif(DEVICE != "cuda", reason="TensorRT is")
def test_tensorrt_agrees_with_the_cpu(tmp_path):
    for seed in range(2):  # the second has the first's layout, and not its weights
        bundle = read_bundle(make_bundle(tmp_path, version=seed + 1, seed=seed))
        try:
            on_gpu = engine(bundle, tensorrt=True, tensorrt_cache=tmp_path)
        except EngineError as error:
            if "install TensorRT" in str(error) or f"no {TENSORRT}" in str(error):
                pytest.skip(f"no TensorRT: {error}")
            raise
        for n in SIZES:
            rows = random_rows(n)
            assert_same(on_gpu.assign(rows), OnnxEngine(bundle, "cpu").assign(rows), atol=1e-2)
    engines = list(tmp_path.rglob("*.engine"))
    assert len(engines) == 2  # each one for all sizes, of the whole graph


def test_timings(tmp_path, capsys):
    """Printed, not judged: microseconds a run, copies and all, the median of many."""
    shape, repeats = (28, 28), 200
    bundle = read_bundle(make_bundle(tmp_path, shape=shape, hidden=500))
    ways = {
        "cpu": OnnxEngine(bundle, "cpu"),
        "plain": engine(bundle),
        "bound": engine(bundle),
        "graphs": engine(bundle, cuda_graphs=True),
    }
    for way in ("bound", "graphs"):
        ways[way].prepare(SIZES)
    lines = [f"{'rows':>5}" + "".join(f"{way:>10}" for way in ways)]
    for n in SIZES:
        rows = random_rows(n, shape)
        medians = []
        for one in ways.values():
            taken = []
            for _ in range(repeats):
                start = time.perf_counter()
                one.assign(rows)
                taken.append(time.perf_counter() - start)
            medians.append(float(np.median(taken[repeats // 4 :])) * 1e6)
        lines.append(f"{n:>5}" + "".join(f"{median:>10.0f}" for median in medians))
    with capsys.disabled():
        print("\nmicroseconds a run, MLP 784-500-10, uint8:", *lines, sep="\n")
