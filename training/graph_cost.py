"""Multiply-accumulates of an ONNX graph."""

from __future__ import annotations

import math

import onnx
from onnx import ModelProto


def multiply_accumulates(model: ModelProto) -> int:
    """Multiply-accumulates that one row costs in convolutions and matrix products; the rest is not counted.

    Parameters
    ----------
    model
        Its only unknown axis is the first one, the rows.

    Raises
    ------
    ValueError
        If the shape of a product is not known.
    """
    one = ModelProto()
    one.CopyFrom(model)
    for value in one.graph.input:
        value.type.tensor_type.shape.dim[0].dim_value = 1
    for value in one.graph.output:
        value.type.tensor_type.ClearField("shape")
    del one.graph.value_info[:]
    graph = onnx.shape_inference.infer_shapes(one, data_prop=True).graph
    shapes = {tensor.name: tuple(tensor.dims) for tensor in graph.initializer}
    for value in (*graph.value_info, *graph.input, *graph.output):
        shapes[value.name] = tuple(dim.dim_value for dim in value.type.tensor_type.shape.dim)
    total = 0
    for node in graph.node:
        if node.op_type not in ("Conv", "Gemm", "MatMul"):
            continue
        names = (node.output[0], node.input[0], node.input[1])
        out, left, right = (shapes.get(name, (0,)) for name in names)
        if 0 in (*out, *left, *right):
            raise ValueError(f"{node.op_type} {node.name!r}: its shape is not known, so its cost is not")
        if node.op_type == "Conv":
            total += math.prod(out) * math.prod(right[1:])  # right: (out, in / groups, *kernel)
        else:
            transposed = any(a.name == "transA" and a.i for a in node.attribute)
            total += math.prod(out) * left[-2 if transposed else -1]
    return total
