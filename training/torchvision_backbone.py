"""Networks of torchvision, with the weights that it publishes, as ONNX graphs."""

from __future__ import annotations

import logging
import warnings
from urllib.error import URLError

import onnx
import torch
from onnx import ModelProto

from training.backbone import LEAST_OPSET, METADATA, TORCHVISION, BackboneError

# The first weights of a network; of ResNet-50, those that there were when the paper was written.
DEFAULT_WEIGHTS = "IMAGENET1K_V1"


def to_onnx(name: str) -> ModelProto:
    """The classifier ``name`` with ImageNet weights, its size and normalisation in the metadata.

    Parameters
    ----------
    name
        ``resnet50``, or with other weights than the first ``resnet50@IMAGENET1K_V2``. Weights that torch's
        hub directory does not hold are downloaded.

    Raises
    ------
    BackboneError
        If torchvision is missing, has no such network or weights, or cannot get them.
    """
    try:
        from torchvision import models
    except (ImportError, RuntimeError) as error:  # the latter from one that was built for another torch
        raise BackboneError(
            f"{TORCHVISION}{name}: torchvision cannot be used: {error}; install nvisa[features], with the "
            f"torchvision that goes with torch {torch.__version__}, or pass an ONNX file"
        ) from error
    network, _, weights_name = name.partition("@")
    try:
        weights = models.get_model_weights(network)[weights_name or DEFAULT_WEIGHTS]
        transforms = weights.transforms()
        size, mean, std = transforms.crop_size, transforms.mean, transforms.std
    except (ValueError, KeyError, AttributeError) as error:
        raise BackboneError(
            f"{TORCHVISION}{name}: there are no such network and weights for classification: {error}"
        ) from error
    try:
        model = models.get_model(network, weights=weights).eval()
    except (URLError, OSError, RuntimeError) as error:
        raise BackboneError(
            f"{TORCHVISION}{name}: its weights cannot be had: {error}; put the file "
            f"{weights.url.rsplit('/', 1)[-1]} into {torch.hub.get_dir()}/checkpoints"
        ) from error
    side = int(size[0])
    # The exporter warns of its own internals.
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")
        program = torch.onnx.export(
            model,
            (torch.zeros(2, 3, side, side),),
            dynamo=True,
            verbose=False,
            opset_version=LEAST_OPSET,
            dynamic_shapes=({0: torch.export.Dim("n", min=1)},),
        )
    assert program is not None
    proto: ModelProto = program.model_proto
    for node in proto.graph.node:  # where this machine keeps torchvision changes no feature
        del node.metadata_props[:]
        node.doc_string = ""
    described = {"size": (side, side), "mean": mean, "std": std}
    onnx.helper.set_model_props(
        proto, {METADATA[key]: ",".join(map(str, value)) for key, value in described.items()}
    )
    return proto
