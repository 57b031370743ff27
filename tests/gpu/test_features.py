"""A backbone on a GPU gives the features that it gives on a CPU."""

from __future__ import annotations

import numpy as np
import pytest

from tests.backbones import make_backbone, reference_features
from training.backbone import read_backbone
from training.data import describe
from training.extractor import Extractor

pytestmark = pytest.mark.gpu


@pytest.mark.parametrize("shape", [(8, 8, 3), (30, 20, 3)], ids=["growing", "shrinking"])
def test_cuda_features_agree_with_torch(shape, tmp_path):
    x = np.random.default_rng(0).integers(0, 256, (50, *shape), dtype=np.uint8)
    extractor = Extractor(read_backbone(str(make_backbone(tmp_path / "b.onnx"))), describe(x), "cuda")
    assert extractor.device == "cuda"
    np.testing.assert_allclose(extractor(x), reference_features(x), atol=1e-4)
