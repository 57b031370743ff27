"""From uint8 images to feature vectors: resize, normalisation, backbone and average, as one ONNX graph."""

from __future__ import annotations

import numpy as np
import onnx
from onnx import ModelProto, TensorProto, compose, helper, numpy_helper

from serving.manifest import INPUT_NAME, InputSpec
from serving.runtime import CUDA, Device, DeviceError, available_cpus, open_session
from training.augment import channels_first
from training.backbone import Backbone, BackboneError

FEATURES = "features"
_IMAGE, _MAP = "image", "map"
_PREFIX = "backbone/"
# TF32 would round the features of a GPU to ten bits, and q(y|x) is exported for those of a CPU as well.
_CUDA_OPTIONS = {"use_tf32": "0"}


def check_images(spec: InputSpec, source: str) -> None:
    """Refuse rows that a backbone cannot take.

    Raises
    ------
    BackboneError
        Unless rows are uint8 images, grey or with three channels, channels first or last.
    """
    if spec.meaning != "image" or len(spec.shape) not in (2, 3) or channels_first(spec)[0] not in (1, 3):
        raise BackboneError(
            f"{source}: rows are {spec.dtype} {spec.shape}; a backbone takes uint8 images, (height, width), "
            "or with one or three channels"
        )


def extractor_graph(backbone: Backbone, images: InputSpec) -> ModelProto:
    """``x``, images ``(n, *images.shape)`` of uint8 -> ``features (n, C)`` of float32.

    Images are resized bilinearly (paper, footnote 3), with half-pixel centres, and averaged over what a new
    pixel covers where they shrink; grey ones become three equal channels. A map of h x w is averaged whole:
    for the 7 x 7 of a ResNet-50 that is the paper's 7 x 7 average.

    Raises
    ------
    BackboneError
        If the parts do not fit each other.
    """
    model = ModelProto()
    model.CopyFrom(backbone.model)
    before, after = _before(backbone, images, model), _after(backbone, model)
    (given,), (taken,) = model.graph.input, model.graph.output
    try:
        joined = compose.merge_models(before, model, [(_IMAGE, given.name)], prefix2=_PREFIX)
        joined = compose.merge_models(joined, after, [(_PREFIX + taken.name, _MAP)])
        onnx.checker.check_model(joined)
    except (ValueError, onnx.checker.ValidationError) as error:
        raise BackboneError(f"{backbone.name}: cannot be joined with its preprocessing: {error}") from error
    for node in joined.graph.node:  # paths of whoever exported it have no place in a bundle
        del node.metadata_props[:]
        node.doc_string = ""
    return joined


def _before(backbone: Backbone, images: InputSpec, model: ModelProto) -> ModelProto:
    channels, height, width = channels_first(images)
    recipe = backbone.recipe
    kind = model.graph.input[0].type.tensor_type.elem_type
    mean = np.array(recipe.mean, np.float64).reshape(3, 1, 1)
    std = np.array(recipe.std, np.float64).reshape(3, 1, 1)
    constants = {"scale": 1 / (255 * std), "shift": -mean / std}
    initializers = [numpy_helper.from_array(v.astype(np.float32), name) for name, v in constants.items()]
    nodes = [helper.make_node("Cast", [INPUT_NAME], ["value"], to=TensorProto.FLOAT)]
    if len(images.shape) == 2:
        initializers.append(numpy_helper.from_array(np.array([1], np.int64), "channel_axis"))
        nodes.append(helper.make_node("Unsqueeze", ["value", "channel_axis"], ["planes"]))
    else:
        last = images.shape == (height, width, channels)
        nodes.append(
            helper.make_node("Transpose", ["value"], ["planes"], perm=[0, 3, 1, 2] if last else [0, 1, 2, 3])
        )
    resized = "planes"
    if (height, width) != recipe.size:
        shrinks = height > recipe.size[0] or width > recipe.size[1]
        initializers.append(numpy_helper.from_array(np.array(recipe.size, np.int64), "size"))
        resized = "resized"
        nodes.append(
            helper.make_node(
                "Resize",
                ["planes", "", "", "size"],
                [resized],
                axes=[2, 3],
                mode="linear",
                coordinate_transformation_mode="half_pixel",
                antialias=int(shrinks),
                exclude_outside=int(shrinks),  # weights at the edges sum to one, as Pillow's and torch's do
            )
        )
    # One channel times three constants is three channels.
    nodes += [
        helper.make_node("Mul", [resized, "scale"], ["scaled"]),
        helper.make_node("Add", ["scaled", "shift"], ["normalised"]),
        helper.make_node("Cast", ["normalised"], [_IMAGE], to=kind),
    ]
    given = helper.make_tensor_value_info(INPUT_NAME, TensorProto.UINT8, ["n", *images.shape])
    taken = helper.make_tensor_value_info(_IMAGE, kind, ["n", 3, *recipe.size])
    return _model(helper.make_graph(nodes, "preprocessing", [given], [taken], initializers), model)


def _after(backbone: Backbone, model: ModelProto) -> ModelProto:
    kind = model.graph.output[0].type.tensor_type.elem_type
    nodes = [helper.make_node("Cast", [_MAP], ["float_map"], to=TensorProto.FLOAT)]
    if len(backbone.shape) == 3:
        nodes += [
            helper.make_node("GlobalAveragePool", ["float_map"], ["average"]),
            helper.make_node("Flatten", ["average"], [FEATURES]),
        ]
    else:
        nodes.append(helper.make_node("Identity", ["float_map"], [FEATURES]))
    given = helper.make_tensor_value_info(_MAP, kind, ["n", *backbone.shape])
    taken = helper.make_tensor_value_info(FEATURES, TensorProto.FLOAT, ["n", backbone.width])
    return _model(helper.make_graph(nodes, "average", [given], [taken]), model)


def _model(graph: onnx.GraphProto, like: ModelProto) -> ModelProto:
    """A model of ``graph`` in the versions of ``like``, as `merge_models` wants them."""
    return helper.make_model(graph, opset_imports=list(like.opset_import), ir_version=like.ir_version)


class Extractor:
    """Runs `extractor_graph` with ONNX Runtime.

    Parameters
    ----------
    backbone
        What makes the features.
    images
        What rows look like.
    device, threads
        Where, and with how many threads; 0: as many as this process may use.

    Raises
    ------
    BackboneError
        If the graph cannot be run, CUDA was asked for and is not there, or an image's features depend on
        how many others it comes with.
    """

    def __init__(
        self, backbone: Backbone, images: InputSpec, device: Device = "auto", threads: int = 0
    ) -> None:
        graph = extractor_graph(backbone, images).SerializeToString()
        self._name = backbone.name
        try:
            self._session = open_session(
                graph, device, threads or available_cpus(), spin=True, gpu_providers=[(CUDA, _CUDA_OPTIONS)]
            )
        except DeviceError as error:
            raise BackboneError(str(error)) from error
        except Exception as error:  # ONNX Runtime raises a dozen unrelated classes
            raise BackboneError(f"{backbone.name}: ONNX Runtime cannot load it: {error}") from error
        self.device = "cuda" if self._session.get_providers()[0] == CUDA else "cpu"
        self._check_batches(images)

    def __call__(self, x: np.ndarray) -> np.ndarray:
        """Features ``(n, C)`` of images ``x (n, *shape)``, float32.

        Raises
        ------
        BackboneError
            If ONNX Runtime fails.
        """
        try:
            found: np.ndarray = self._session.run([FEATURES], {INPUT_NAME: np.ascontiguousarray(x)})[0]
        except Exception as error:
            raise BackboneError(f"{self._name}: inference failed: {error}") from error
        return found

    def _check_batches(self, images: InputSpec) -> None:
        random = np.random.default_rng(0)
        x = random.integers(0, 256, (3, *images.shape), dtype=np.uint8)
        alone = np.concatenate([self(x[index : index + 1]) for index in range(len(x))])
        together = self(x)
        scale = max(1.0, float(np.abs(alone).max()))
        if together.shape != alone.shape or not np.abs(together - alone).max() <= 1e-3 * scale:
            raise BackboneError(
                f"{self._name}: an image's features depend on the images beside it; export the backbone in "
                "evaluation mode, with a free first axis"
            )
