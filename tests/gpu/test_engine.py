"""ONNX Runtime on a GPU: it really runs there, and answers as the CPU does."""

from __future__ import annotations

import numpy as np
import pytest

from serving.bundle import read_bundle
from serving.engine import OnnxEngine
from serving.gpu import GpuOptions
from tests.bundles import make_bundle, random_rows

pytestmark = pytest.mark.gpu


@pytest.mark.parametrize("sizes", [(), (1, 16, 256)], ids=["plain", "bound"])
@pytest.mark.parametrize("graphs", [False, True], ids=["no graphs", "graphs"])
def test_cuda_engine_agrees_with_the_cpu(tmp_path, sizes, graphs):
    bundle = read_bundle(make_bundle(tmp_path))
    on_gpu, on_cpu = OnnxEngine(bundle, "cuda", gpu=GpuOptions(cuda_graphs=graphs)), OnnxEngine(bundle, "cpu")
    assert (on_gpu.device, on_cpu.device) == ("cuda", "cpu")
    on_gpu.prepare(sizes)
    # A graph is recorded after the first runs of a size, and replayed from then on.
    for seed in range(4):
        for n in (1, 16, 256, 1000):
            rows = random_rows(n, seed=seed)
            expected = on_cpu.assign(rows).probabilities
            np.testing.assert_allclose(on_gpu.assign(rows).probabilities, expected, atol=1e-3)
