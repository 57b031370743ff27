"""The matrix products of a graph in float16, for GPUs that are much faster at it."""

from __future__ import annotations

import onnx

_PRODUCTS = frozenset({"Conv", "Gemm", "MatMul"})
# Probabilities are ratios of exponentials; the cluster is read off the probabilities that are returned.
_KEPT = frozenset({"Softmax", "LogSoftmax", "Exp", "Log", "ArgMax", "ReduceLogSumExp"})


def to_half(graph: bytes) -> bytes:
    """Convert ``graph`` to float16 from its first matrix product or convolution on, but for its softmax.

    Inputs and outputs keep their types. What comes before the first product stays in float32: the scaling of
    features that may be too large for float16.
    """
    from onnxruntime.transformers.float16 import DEFAULT_OP_BLOCK_LIST, convert_float_to_float16
    from onnxruntime.transformers.onnx_model import OnnxModel

    model = onnx.load_from_string(graph)
    found = convert_float_to_float16(
        model,
        keep_io_types=True,
        op_block_list=[*DEFAULT_OP_BLOCK_LIST, *_KEPT],
        node_block_list=_before_products(model.graph),
    )
    # It casts every input to float16 and, where the next node stays, back, and puts casts at the end.
    cleaned = OnnxModel(found)
    cleaned.remove_cascaded_cast_nodes()
    cleaned.remove_useless_cast_nodes()
    cleaned.topological_sort()
    onnx.checker.check_model(cleaned.model)
    return bytes(cleaned.model.SerializeToString())


def _before_products(graph: onnx.GraphProto) -> list[str]:
    """Names of the nodes that no product comes before."""
    after: set[str] = set()
    names = []
    for node in graph.node:  # in topological order
        if node.op_type in _PRODUCTS or after.intersection(node.input):
            after.update(node.output)
        else:
            names.append(node.name)
    return names
