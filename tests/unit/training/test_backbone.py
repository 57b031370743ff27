"""Backbones and extractors against the same arithmetic in torch, and what each unusable file says."""

from __future__ import annotations

import hashlib

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper
from torch.utils.flop_counter import FlopCounterMode

from tests.backbones import SIZE, WIDTH, make_backbone, reference_features
from training.backbone import BackboneError, read_backbone
from training.data import describe
from training.extractor import Extractor, check_images, extractor_graph
from training.graph_cost import multiply_accumulates
from training.recipe import Asked


def random_images(n: int, *shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (n, *shape), dtype=np.uint8)


def extract(backbone, x: np.ndarray) -> np.ndarray:
    return Extractor(backbone, describe(x), "cpu", 1)(x)


@pytest.mark.parametrize(
    "shape",
    [(8, 8, 3), (8, 8), (12, 12, 3), (20, 30, 3), (7, 20), (30, 12)],
    ids=lambda s: "x".join(map(str, s)),
)
def test_features_are_what_torch_computes(shape, tmp_path):
    """Growing, as large, shrinking, and in each direction another; colour and grey."""
    x = random_images(4, *shape)
    backbone = read_backbone(str(make_backbone(tmp_path / "b.onnx")))
    assert (backbone.width, backbone.recipe.size) == (WIDTH, (SIZE, SIZE))
    np.testing.assert_allclose(extract(backbone, x), reference_features(x), atol=2e-5)


def test_channels_may_come_first_or_be_one(tmp_path):
    backbone = read_backbone(str(make_backbone(tmp_path / "b.onnx")))
    x = random_images(3, 8, 8, 3)
    np.testing.assert_allclose(
        extract(backbone, np.ascontiguousarray(x.transpose(0, 3, 1, 2))), reference_features(x), atol=2e-5
    )
    grey = random_images(3, 8, 8)
    for one in (grey[..., None], grey[:, None]):
        np.testing.assert_allclose(extract(backbone, one), reference_features(grey), atol=2e-5)


@pytest.mark.parametrize(("head", "tensor"), [("map", "map"), ("classifier", "map"), ("vectors", "vectors")])
@pytest.mark.parametrize("opset", [11, 18, 20])
def test_what_becomes_features_is_found(head, tensor, opset, tmp_path):
    """A classifier's logits are no features, the map that it averages is; opsets old and new."""
    x = random_images(3, 8, 8, 3)
    backbone = read_backbone(str(make_backbone(tmp_path / "b.onnx", head=head, opset=opset)))
    assert backbone.recipe.tensor == tensor
    expected = reference_features(x, pool="max" if head == "vectors" else "mean")
    np.testing.assert_allclose(extract(backbone, x), expected, atol=2e-5)


def test_a_tensor_can_be_named(tmp_path):
    path = make_backbone(tmp_path / "b.onnx", head="classifier")
    assert read_backbone(str(path), Asked(tensor="logits")).width == 3
    with pytest.raises(BackboneError, match=r"no tensor 'nothing'.*--tensor"):
        read_backbone(str(path), Asked(tensor="nothing"))


def test_metadata_is_the_default_and_flags_are_above_it(tmp_path):
    mean, std = (0.5, 0.4, 0.3), (0.5, 0.25, 0.125)
    metadata = {
        "nvisa.size": "10,10",
        "nvisa.mean": ",".join(map(str, mean)),
        "nvisa.std": ",".join(map(str, std)),
    }
    path = make_backbone(tmp_path / "b.onnx", size="s", metadata=metadata)
    x = random_images(3, 8, 8, 3)
    noted = read_backbone(str(path))
    np.testing.assert_allclose(
        extract(noted, x), reference_features(x, size=10, mean=mean, std=std), atol=2e-5
    )
    asked = read_backbone(str(path), Asked(size=(16, 16), mean=(0, 0, 0)))
    np.testing.assert_allclose(
        extract(asked, x), reference_features(x, size=16, mean=(0, 0, 0), std=std), atol=2e-5
    )


def test_a_fixed_batch_is_freed(tmp_path):
    backbone = read_backbone(str(make_backbone(tmp_path / "b.onnx", batch=1)))
    x = random_images(5, 8, 8, 3)
    np.testing.assert_allclose(extract(backbone, x), reference_features(x), atol=2e-5)


def test_the_digest_is_the_files_and_covers_weights_beside_it(tmp_path):
    path = make_backbone(tmp_path / "b.onnx")
    assert read_backbone(str(path)).recipe.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()
    digests = []
    x = random_images(2, 8, 8, 3)
    for seed in (0, 1):
        model = onnx.load(make_backbone(tmp_path / "whole.onnx", seed=seed))
        onnx.save(
            model, tmp_path / "split.onnx", save_as_external_data=True, location="w.bin", size_threshold=0
        )
        backbone = read_backbone(str(tmp_path / "split.onnx"))
        np.testing.assert_allclose(extract(backbone, x), reference_features(x, seed=seed), atol=2e-5)
        digests.append(backbone.recipe.sha256)
        (tmp_path / "w.bin").unlink()
    assert digests[0] != digests[1]
    with pytest.raises(BackboneError, match=r"w\.bin"):
        read_backbone(str(tmp_path / "split.onnx"))


def test_an_average_over_the_batch_is_refused(tmp_path):
    path = make_backbone(tmp_path / "b.onnx")
    model = onnx.load(path)
    model.graph.node[1].CopyFrom(helper.make_node("Sub", ["conv", "of_batch"], ["map"]))
    axes = onnx.numpy_helper.from_array(np.array([0]), "axes")
    model.graph.initializer.append(axes)
    model.graph.node.insert(1, helper.make_node("ReduceMean", ["conv", "axes"], ["of_batch"]))
    onnx.save(model, path)
    with pytest.raises(BackboneError, match="depend on the images beside it"):
        extract(read_backbone(str(path)), random_images(2, 8, 8, 3))


def test_what_cannot_be_a_backbone_says_why(tmp_path):
    def refused(path, message, **asked):
        with pytest.raises(BackboneError, match=message):
            read_backbone(str(path), Asked(**asked))

    refused(tmp_path / "none.onnx", r"No such file.*none\.onnx")
    (tmp_path / "text.onnx").write_text("hello, this is not a graph")
    refused(tmp_path / "text.onnx", "not a whole ONNX file")
    whole = make_backbone(tmp_path / "b.onnx")
    (tmp_path / "cut.onnx").write_bytes(whole.read_bytes()[:300])
    refused(tmp_path / "cut.onnx", "not a whole ONNX file")
    refused(make_backbone(tmp_path / "open.onnx", size="s"), "--size")
    refused(whole, r"images of \(12, 12\) pixels, not \(16, 16\)", size=(16, 16))
    odd = make_backbone(tmp_path / "odd.onnx", metadata={"nvisa.mean": "a,b,c"})
    refused(odd, "metadata .* cannot be read")
    model = onnx.load(whole)
    model.graph.input[0].CopyFrom(
        helper.make_tensor_value_info("image", TensorProto.FLOAT, ["n", SIZE, SIZE, 3])
    )
    onnx.save(model, tmp_path / "last.onnx")
    refused(tmp_path / "last.onnx", r"input 'image' has type FLOAT .* shape \(n, 3, height, width\)")


def test_rows_that_are_no_images_are_refused():
    for x in (np.zeros((2, 5), np.float32), np.zeros((2, 5), np.uint8), np.zeros((2, 8, 8, 4), np.uint8)):
        with pytest.raises(BackboneError, match="a backbone takes uint8 images"):
            check_images(describe(x), "there")


def test_products_are_counted_as_torch_counts_them(tmp_path):
    """The convolution of the backbone, and a matrix product after it."""
    backbone = read_backbone(
        str(make_backbone(tmp_path / "b.onnx", head="classifier")), Asked(tensor="logits")
    )
    with FlopCounterMode(display=False) as counter:
        maps = torch.zeros(1, 3, SIZE, SIZE)
        maps = torch.nn.functional.conv2d(maps, torch.zeros(WIDTH, 3, 3, 3), stride=2, padding=1)
        maps.mean((2, 3)) @ torch.zeros(WIDTH, 3)
    assert 2 * multiply_accumulates(backbone.model) == counter.get_total_flops()
    assert multiply_accumulates(extractor_graph(backbone, describe(random_images(1, 8, 8)))) == (
        counter.get_total_flops() / 2
    )
