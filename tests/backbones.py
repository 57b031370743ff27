"""Small backbones for tests: one convolution with known weights, and what comes out of them in numpy."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import torch
from onnx import TensorProto, helper, numpy_helper
from torch.nn import functional as F

WIDTH = 5
SIZE = 12
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def weights(seed: int = 0) -> np.ndarray:
    """Weights of the convolution, ``(WIDTH, 3, 3, 3)``."""
    return np.random.default_rng(seed).standard_normal((WIDTH, 3, 3, 3)).astype(np.float32)


def make_backbone(
    path: Path,
    *,
    seed: int = 0,
    size: int | str = SIZE,
    batch: int | str = "n",
    head: str = "map",
    opset: int = 18,
    metadata: dict[str, str] | None = None,
) -> Path:
    """Write an ONNX backbone: convolution with stride 2 and ReLU, then its ``head``.

    ``head`` is ``map`` (the graph ends there), ``classifier`` (average, dense layer to 3) or ``vectors`` (a
    maximum over the map, which is no average).
    """
    nodes = [
        helper.make_node("Conv", ["image", "w"], ["conv"], strides=[2, 2], pads=[1, 1, 1, 1]),
        helper.make_node("Relu", ["conv"], ["map"]),
    ]
    initializers = [numpy_helper.from_array(weights(seed), "w")]
    shape: list[int | str] = (
        [batch, WIDTH, "h", "w_"] if isinstance(size, str) else [batch, WIDTH, size // 2, size // 2]
    )
    if head == "classifier":
        dense = np.random.default_rng(1).standard_normal((WIDTH, 3)).astype(np.float32)
        initializers.append(numpy_helper.from_array(dense, "dense"))
        nodes += [
            helper.make_node("GlobalAveragePool", ["map"], ["pooled"]),
            helper.make_node("Flatten", ["pooled"], ["flat"]),
            helper.make_node("MatMul", ["flat", "dense"], ["logits"]),
        ]
        shape = [batch, 3]
    elif head == "vectors":
        nodes += [
            helper.make_node("GlobalMaxPool", ["map"], ["pooled"]),
            helper.make_node("Flatten", ["pooled"], ["vectors"]),
        ]
        shape = [batch, WIDTH]
    given = helper.make_tensor_value_info("image", TensorProto.FLOAT, [batch, 3, size, size])
    taken = helper.make_tensor_value_info(nodes[-1].output[0], TensorProto.FLOAT, shape)
    graph = helper.make_graph(nodes, "backbone", [given], [taken], initializers)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)
    helper.set_model_props(model, metadata or {})
    onnx.checker.check_model(model)
    onnx.save(model, path)
    return path


def reference_features(
    images: np.ndarray,
    *,
    seed: int = 0,
    size: int = SIZE,
    mean: tuple[float, ...] = MEAN,
    std: tuple[float, ...] = STD,
    pool: str = "mean",
) -> np.ndarray:
    """What `make_backbone`'s network should give for uint8 ``(n, h, w)`` or ``(n, h, w, 3)``, by torch."""
    x = torch.from_numpy(images).float() / 255
    x = x.unsqueeze(1).expand(-1, 3, -1, -1) if x.ndim == 3 else x.permute(0, 3, 1, 2)
    shrinks = max(x.shape[2:]) > size
    x = F.interpolate(x, (size, size), mode="bilinear", antialias=shrinks, align_corners=False)
    x = (x - torch.tensor(mean).view(3, 1, 1)) / torch.tensor(std).view(3, 1, 1)
    maps = F.conv2d(x, torch.from_numpy(weights(seed)), stride=2, padding=1).relu()
    return (maps.mean((2, 3)) if pool == "mean" else maps.amax((2, 3))).numpy()
