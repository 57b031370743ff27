"""ONNX Runtime on a GPU: it really runs there, and answers as the CPU does."""

from __future__ import annotations

import numpy as np
import pytest

from serving.bundle import read_bundle
from serving.engine import OnnxEngine
from tests.bundles import make_bundle, random_rows

pytestmark = pytest.mark.gpu


def test_cuda_engine_agrees_with_the_cpu(tmp_path):
    bundle = read_bundle(make_bundle(tmp_path))
    on_gpu, on_cpu = OnnxEngine(bundle, "cuda"), OnnxEngine(bundle, "cpu")
    assert (on_gpu.device, on_cpu.device) == ("cuda", "cpu")
    rows = random_rows(1000)
    expected = on_cpu.assign(rows).probabilities
    np.testing.assert_allclose(on_gpu.assign(rows).probabilities, expected, atol=1e-3)
