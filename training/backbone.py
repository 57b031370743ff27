"""A backbone: somebody else's network, as an ONNX graph, and how images are put into it.

The graph takes images ``(n, 3, height, width)`` of floats, ``(value / 255 - mean) / std`` in each channel.
Its last feature map is averaged to one vector an image; a graph that ends in vectors gives these.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path

import onnx
from google.protobuf.message import DecodeError
from onnx import ModelProto, TensorProto, ValueInfoProto, version_converter
from onnx.external_data_helper import ExternalDataInfo, load_external_data_for_model, uses_external_data

from training.recipe import Asked, Recipe, Size

TORCHVISION = "torchvision:"
# Of ImageNet's training images, what most backbones were trained with.
IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
LEAST_OPSET = 18
# Keys of an ONNX file's metadata that say what flags do not.
METADATA = {name: f"nvisa.{name}" for name in ("size", "mean", "std", "tensor")}
_POOLS = ("GlobalAveragePool", "ReduceMean", "AveragePool")
_FLOATS = {TensorProto.FLOAT: "float32", TensorProto.FLOAT16: "float16"}


class BackboneError(ValueError):
    """A backbone cannot be used; the message says which, what is wrong and what to do."""


@dataclass(frozen=True)
class Backbone:
    """A backbone that has been read.

    Attributes
    ----------
    name
        The file's name, or ``torchvision:resnet50``.
    model
        Cut to one input and the one output ``recipe.tensor``; the first axis is free, and the opset at least
        18.
    shape
        What an image gives: ``(C, h, w)`` or ``(C,)``.
    """

    name: str
    model: ModelProto
    recipe: Recipe
    shape: tuple[int, ...]

    @property
    def width(self) -> int:
        """Length of a feature vector."""
        return self.shape[0]

    def __str__(self) -> str:
        """What becomes features, for a person to check."""
        height, width = self.recipe.size
        how = f"a map of {' x '.join(map(str, self.shape))}, averaged" if len(self.shape) == 3 else "as it is"
        return (
            f"{self.name}: images of {width} x {height}, mean {self.recipe.mean}, std {self.recipe.std}; "
            f"{self.width} features: {self.recipe.tensor!r}, {how}"
        )


def read_backbone(source: str, asked: Asked | None = None) -> Backbone:
    """Read a backbone.

    Parameters
    ----------
    source
        Path of an ONNX file, or ``torchvision:NAME``, see `training.torchvision_backbone`.
    asked
        What is to be different from what the file says.

    Raises
    ------
    BackboneError
        If it is missing, damaged, of a form that cannot be used, or does not say what is needed.
    """
    asked = asked or Asked()
    if source.startswith(TORCHVISION):
        from training.torchvision_backbone import to_onnx

        model = to_onnx(source.removeprefix(TORCHVISION))
        data = model.SerializeToString(deterministic=True)
        backbone = _described(source, model, hashlib.sha256(data).hexdigest(), asked)
        if len(backbone.shape) == 1 and asked.tensor is None:
            raise BackboneError(f"{source}: averages no feature map; name the tensor to take with --tensor")
        return backbone
    path = Path(source)
    try:
        data = path.read_bytes()
        model = onnx.load_from_string(data)
        outside = {ExternalDataInfo(t).location for t in model.graph.initializer if uses_external_data(t)}
        load_external_data_for_model(model, str(path.parent))  # refuses files outside the folder
        total = hashlib.sha256(data)
        for name in sorted(outside):
            total.update((path.parent / name).read_bytes())
        onnx.checker.check_model(model)
    except OSError as error:
        raise BackboneError(f"cannot read backbone: {error.strerror}: {error.filename}") from error
    except (DecodeError, onnx.checker.ValidationError) as error:
        detail = (str(error).strip().splitlines() or ["cut off"])[0]
        raise BackboneError(f"{path}: not a whole ONNX file: {detail}; export or copy it again") from error
    return _described(path.name, model, total.hexdigest(), asked)


def _described(name: str, model: ModelProto, digest: str, asked: Asked) -> Backbone:
    said = {p.key: p.value for p in model.metadata_props}
    try:
        noted = Asked(
            size=_numbers(said.get(METADATA["size"])),
            mean=_numbers(said.get(METADATA["mean"])),
            std=_numbers(said.get(METADATA["std"])),
            tensor=said.get(METADATA["tensor"]),
        )
    except ValueError as error:
        raise BackboneError(f"{name}: its metadata {said} cannot be read: {error}") from error
    model = _converted(name, model)
    given = _image_input(name, model)
    size = _size(name, given, asked.size, noted.size)
    _free_batch(model, given, size)
    try:
        inferred = onnx.shape_inference.infer_shapes(model, data_prop=True)
    except onnx.shape_inference.InferenceError as error:
        raise BackboneError(f"{name}: images of {size} do not fit its graph: {error}") from error
    shapes = {v.name: shape for v in _values(inferred) if (shape := _shape(v)) is not None}
    tensor = asked.tensor or noted.tensor or _last_map(name, inferred, shapes)
    shape = shapes.get(tensor)
    if shape is None:
        raise BackboneError(
            f"{name}: has no tensor {tensor!r} of known shape; name another one with --tensor"
        )
    if len(shape) not in (2, 4) or None in shape[1:]:
        raise BackboneError(
            f"{name}: tensor {tensor!r} has shape {['n', *shape[1:]]}; features are a map (n, C, h, w) or "
            "vectors (n, C): name another tensor with --tensor"
        )
    return Backbone(
        name=name,
        model=onnx.utils.Extractor(inferred).extract_model([given.name], [tensor]),
        recipe=Recipe(
            sha256=digest,
            size=size,
            mean=asked.mean or noted.mean or IMAGENET_MEAN,
            std=asked.std or noted.std or IMAGENET_STD,
            tensor=tensor,
        ),
        shape=tuple(int(n) for n in shape[1:] if n is not None),
    )


def _numbers(text: str | None) -> tuple[float, ...] | None:
    return tuple(float(part) for part in text.split(",")) if text is not None else None


def _converted(name: str, model: ModelProto) -> ModelProto:
    """The model in an opset that the rest of the graph can have, its weights no inputs."""
    weights = {tensor.name for tensor in model.graph.initializer}
    inputs = [value for value in model.graph.input if value.name not in weights]
    del model.graph.input[:]
    model.graph.input.extend(inputs)
    if _opset(model) >= LEAST_OPSET:
        return model
    try:
        return version_converter.convert_version(model, LEAST_OPSET)
    except (RuntimeError, ValueError) as error:
        raise BackboneError(
            f"{name}: its opset {_opset(model)} cannot be converted to {LEAST_OPSET}: {error}; export the "
            f"backbone with opset {LEAST_OPSET} or newer"
        ) from error


def _opset(model: ModelProto) -> int:
    return max(entry.version for entry in model.opset_import if entry.domain in ("", "ai.onnx"))


def _image_input(name: str, model: ModelProto) -> ValueInfoProto:
    inputs = list(model.graph.input)
    if len(inputs) != 1:
        raise BackboneError(f"{name}: has the inputs {[i.name for i in inputs]}; a backbone has one, images")
    shape, kind = _shape(inputs[0]), inputs[0].type.tensor_type.elem_type
    if shape is None or len(shape) != 4 or shape[1] not in (3, None) or kind not in _FLOATS:
        raise BackboneError(
            f"{name}: its input {inputs[0].name!r} has type {TensorProto.DataType.Name(kind)} and shape "
            f"{shape}; a backbone takes float images of shape (n, 3, height, width)"
        )
    return inputs[0]


def _size(name: str, given: ValueInfoProto, asked: Size | None, noted: Size | None) -> Size:
    shape = _shape(given)
    assert shape is not None
    wanted = asked or noted
    fixed = tuple(shape[2:])
    if wanted is None and None in fixed:
        raise BackboneError(f"{name}: does not say which size images should have; say it with --size")
    if wanted is not None and any(a not in (None, b) for a, b in zip(fixed, wanted, strict=True)):
        raise BackboneError(
            f"{name}: its graph is for images of {fixed} pixels, not {wanted}: leave --size away, or export "
            "the backbone with that size"
        )
    size = wanted or fixed
    return (int(size[0] or 0), int(size[1] or 0))


def _free_batch(model: ModelProto, given: ValueInfoProto, size: Size) -> None:
    """Free the first axis, fix the size, and forget shapes that were inferred for another batch."""
    dims = given.type.tensor_type.shape.dim
    dims[0].Clear()
    dims[0].dim_param = "n"
    for dim, length in zip(dims[1:], (3, *size), strict=True):
        dim.dim_value = length
    del model.graph.value_info[:]
    for value in model.graph.output:
        value.type.tensor_type.ClearField("shape")


def _last_map(name: str, model: ModelProto, shapes: dict[str, tuple[int | None, ...]]) -> str:
    """The tensor to take features from, where nobody named one."""
    output = model.graph.output[0].name
    if len(shapes.get(output, ())) == 4:
        return output
    for node in reversed(model.graph.node):
        pooled = shapes.get(node.output[0], ())
        if (
            node.op_type in _POOLS
            and len(shapes.get(node.input[0], ())) == 4
            and (len(pooled) == 2 or (len(pooled) == 4 and pooled[2:] == (1, 1)))
        ):
            return node.input[0]
    if len(shapes.get(output, ())) == 2:
        return output
    raise BackboneError(
        f"{name}: its output {output!r} of shape {shapes.get(output)} is neither a feature map (n, C, h, w) "
        "nor vectors (n, C), and no map in it is averaged: name the tensor with --tensor"
    )


def _values(model: ModelProto) -> list[ValueInfoProto]:
    return [*model.graph.value_info, *model.graph.input, *model.graph.output]


def _shape(value: ValueInfoProto) -> tuple[int | None, ...] | None:
    if not value.type.tensor_type.HasField("shape"):
        return None
    dims = value.type.tensor_type.shape.dim
    return tuple(dim.dim_value if dim.HasField("dim_value") else None for dim in dims)
