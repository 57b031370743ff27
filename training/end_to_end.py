"""Images to clusters in one graph: a backbone before q(y|x), for a run that was fitted to its features."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnx
from onnx import ModelProto, compose, helper, version_converter

from serving.manifest import INPUT_NAME, InputSpec
from training.backbone import Backbone, BackboneError, read_backbone
from training.extractor import FEATURES, Extractor, extractor_graph
from training.fitted import Fitted
from training.graph_cost import multiply_accumulates
from training.origin import Origin, differences
from training.recipe import Asked

_PREFIX = "nvisa/"
# Of a feature's largest value: what another device or release of ONNX Runtime may change it by.
MAX_FEATURE_DIFFERENCE = 1e-2


@dataclass(frozen=True)
class Composed:
    """One graph from images to clusters, and what it is checked on.

    Attributes
    ----------
    graph
        Serialised.
    opset
        Its opset.
    images
        What a row of it looks like.
    examples, features
        Images of the training data ``(n, *images.shape)`` and their features ``(n, C)``, computed here.
    cost
        Multiply-accumulates of the backbone for one image.
    """

    graph: bytes
    opset: int
    images: InputSpec
    examples: np.ndarray
    features: np.ndarray
    cost: int


def compose_with(fitted: Fitted, source: str, graph: bytes) -> Composed:
    """Put the backbone ``source`` before ``graph``, the q(y|x) of ``fitted``.

    Raises
    ------
    BackboneError
        If the run does not say which backbone its features are of, they are of another one, or this one gives
        other features now than when the run was fitted.
    """
    origin = fitted.origin
    if origin is None:
        raise BackboneError(
            "the run does not say which backbone its features are of: compute them with nvisa-train "
            "features, fit to that file, and export that run"
        )
    if not len(origin.examples):
        raise BackboneError("the run holds no image to check the graph on: compute its features again")
    recipe = origin.recipe
    asked = Asked(size=recipe.size, mean=recipe.mean, std=recipe.std, tensor=recipe.tensor)
    backbone = _the_same(origin, source, asked)
    features = Extractor(backbone, origin.images, "cpu")(origin.examples)
    scale = max(1e-6, float(np.abs(origin.features).max()))
    if features.shape != origin.features.shape:
        raise BackboneError(
            f"{source}: gives features of shape {features.shape}, not {origin.features.shape}"
        )
    difference = float(np.abs(features - origin.features).max()) / scale
    if not difference <= MAX_FEATURE_DIFFERENCE:
        raise BackboneError(
            f"{source}: its features of {len(features)} training images differ by up to {difference:.1%} of "
            "the largest from those that the run was fitted to: compute them again and fit to them"
        )
    before = extractor_graph(backbone, origin.images)
    model, opset = _joined(before, onnx.load_from_string(graph))
    # Who has only the bundle can see which backbone is in it.
    helper.set_model_props(model, {"nvisa.backbone": backbone.name, "nvisa.backbone_sha256": recipe.sha256})
    return Composed(
        graph=model.SerializeToString(),
        opset=opset,
        images=origin.images,
        examples=origin.examples,
        features=features,
        cost=multiply_accumulates(before),
    )


def _the_same(origin: Origin, source: str, asked: Asked) -> Backbone:
    try:
        backbone = read_backbone(source, asked)
    except BackboneError as error:
        raise BackboneError(f"{error} (the run's features are of {origin.backbone})") from error
    if backbone.recipe != origin.recipe:
        raise BackboneError(
            f"{source}: the run was fitted to features of another backbone: "
            f"{differences(origin, backbone.recipe, backbone.name)}"
        )
    return backbone


def _joined(before: ModelProto, after: ModelProto) -> tuple[ModelProto, int]:
    opset = max(_opset(before), _opset(after))
    before, after = (
        part if _opset(part) == opset else version_converter.convert_version(part, opset)
        for part in (before, after)
    )
    before.ir_version = after.ir_version = max(before.ir_version, after.ir_version)
    # The outputs keep their names, by which consumers know them.
    after = compose.add_prefix(after, _PREFIX, rename_outputs=False)
    model = compose.merge_models(before, after, [(FEATURES, _PREFIX + INPUT_NAME)])
    onnx.checker.check_model(model)
    return model, opset


def _opset(model: ModelProto) -> int:
    return max(entry.version for entry in model.opset_import if entry.domain in ("", "ai.onnx"))
