"""Strategies for requests: what a client might send, what nobody should, and bytes that are nothing."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from hypothesis import strategies as st

from serving.pb.inference import grpc_service_pb2 as oip
from serving.pb.nvisa.v1 import cluster_pb2 as pb
from tests.bundles import random_rows

_AXES = st.one_of(
    st.sampled_from([0, 1, 2, 3, 8, 64, -1, 2**31, 2**62, -(2**63), 2**63 - 1]),
    st.integers(-(2**63), 2**63 - 1),
)
_NAMES = st.sampled_from(["", "toy", "floats", "other", "to\0y", "t" * 5000])
_SHAPES = st.one_of(
    st.tuples(_AXES, st.just(8), st.just(8)),
    st.tuples(_AXES, st.just(4)),
    st.lists(_AXES, max_size=5),
    st.just([1] * 3000),
)
_VERSIONS = st.one_of(st.sampled_from([2, -1]), st.integers(-(2**63), 2**63 - 1))
_VERSION_TEXTS = st.sampled_from(["2", "0", "-1", "x", "9" * 400])
_FLOATS = st.one_of(st.integers(0, 255).map(float), st.floats(width=32))
_DATA = st.one_of(st.just(b""), st.binary(max_size=300), st.binary(min_size=64, max_size=64))
_TEXTS = st.one_of(st.text(max_size=20), st.just("x" * 10_000))

# Of the model with columns: its own, in any order; others; and more or longer ones than a status can hold.
_COLUMNS = st.one_of(
    st.permutations(["a", "b", "c", "d"]),
    st.lists(_TEXTS, min_size=4, max_size=4),
    st.just(["問" * 30_000] * 4),
    st.just([""] * 30_000),
)


@st.composite
def _rows(draw: Callable[[Any], Any]) -> tuple[str, np.ndarray]:
    """A model and rows of its shape and dtype; floats may be NaN, infinite, or too large for the model."""
    n_rows = draw(st.integers(0, 40))
    if draw(st.booleans()):
        return "toy", random_rows(n_rows, seed=n_rows)
    values = draw(st.lists(_FLOATS, min_size=4, max_size=4))
    return "floats", np.resize(np.array(values, "<f4"), (n_rows, 4))


def _spoil(draw: Callable[[Any], Any], spoils: Sequence[Callable[[], None]]) -> None:
    """Apply up to two of ``spoils``."""
    for index in draw(st.lists(st.integers(0, len(spoils) - 1), max_size=2)):
        spoils[index]()


def _reshape(draw: Callable[[Any], Any], tensor: Any) -> None:
    del tensor.shape[:]
    tensor.shape.extend(draw(_SHAPES))


@st.composite
def assign(draw: Callable[[Any], Any]) -> pb.AssignRequest:
    """An AssignRequest with up to two fields wrong."""
    model, x = draw(_rows())
    request = pb.AssignRequest(model_name=model, want_probabilities=draw(st.booleans()))
    tensor = request.input
    tensor.dtype = pb.DATA_TYPE_UINT8 if x.dtype == np.uint8 else pb.DATA_TYPE_FLOAT32
    tensor.shape.extend(x.shape)
    if draw(st.booleans()):
        tensor.data = x.tobytes()
    else:
        tensor.values.extend(x.ravel().tolist())

    _spoil(
        draw,
        [
            lambda: _reshape(draw, tensor),
            lambda: tensor.columns.extend(draw(_COLUMNS)),
            lambda: setattr(request, "model_name", draw(_NAMES)),
            lambda: setattr(request, "model_version", draw(_VERSIONS)),
            lambda: setattr(request, "request_id", draw(_TEXTS)),
            lambda: setattr(request, "want_novelty", True),
            lambda: setattr(tensor, "dtype", draw(st.sampled_from([0, 1, 2, 77, -1]))),
            lambda: setattr(tensor, "data", draw(_DATA)),
            lambda: tensor.values.extend(draw(st.lists(_FLOATS, max_size=20))),
        ],
    )
    return request


@st.composite
def model_infer(draw: Callable[[Any], Any]) -> oip.ModelInferRequest:
    """A ModelInferRequest with up to two fields wrong."""
    model, x = draw(_rows())
    request = oip.ModelInferRequest(model_name=model)
    datatype = "UINT8" if x.dtype == np.uint8 else "FP32"
    tensor = request.inputs.add(name="x", datatype=datatype, shape=x.shape)
    if draw(st.booleans()):
        request.raw_input_contents.append(x.tobytes())
    elif datatype == "UINT8":
        tensor.contents.uint_contents.extend(x.ravel().tolist())
    else:
        tensor.contents.fp32_contents.extend(x.ravel().tolist())

    _spoil(
        draw,
        [
            lambda: _reshape(draw, tensor),
            lambda: setattr(request, "model_name", draw(_NAMES)),
            lambda: setattr(request, "model_version", draw(_VERSION_TEXTS)),
            lambda: setattr(request, "id", draw(_TEXTS)),
            lambda: setattr(tensor, "name", draw(_TEXTS)),
            lambda: setattr(tensor, "datatype", draw(st.sampled_from(["UINT8", "FP32", "BYTES", ""]))),
            lambda: request.raw_input_contents.append(draw(_DATA)),
            lambda: tensor.contents.uint_contents.extend(
                draw(st.lists(st.integers(0, 2**32 - 1), max_size=9))
            ),
            lambda: tensor.contents.fp32_contents.extend(draw(st.lists(_FLOATS, max_size=9))),
            lambda: tensor.contents.bytes_contents.extend(draw(st.lists(_DATA, max_size=3))),
            lambda: request.inputs.add(name="x"),
            lambda: request.outputs.add(
                name=draw(st.sampled_from(["probabilities", "cluster", "novelty", "?"]))
            ),
        ],
    )
    return request


def _of_model(message: Any, names: tuple[str, str]) -> st.SearchStrategy[Any]:
    name, version = names
    wrong, good = (_VERSIONS, [0, 1]) if version == "model_version" else (_VERSION_TEXTS, ["", "1"])
    versions = st.one_of(st.sampled_from(good), wrong)
    return st.builds(lambda n, v: message(**{name: n, version: v}), _NAMES, versions)


# What each RPC takes; an RPC that is not here gets bytes alone.
STRUCTURED: dict[str, st.SearchStrategy[Any]] = {
    "nvisa.v1.ClusterService/Assign": assign(),
    "nvisa.v1.ClusterService/AssignStream": assign().map(lambda r: pb.AssignStreamRequest(request=r)),
    "nvisa.v1.ClusterService/GetModel": _of_model(pb.GetModelRequest, ("model_name", "model_version")),
    "inference.GRPCInferenceService/ModelInfer": model_infer(),
    "inference.GRPCInferenceService/ModelReady": _of_model(oip.ModelReadyRequest, ("name", "version")),
    "inference.GRPCInferenceService/ModelMetadata": _of_model(oip.ModelMetadataRequest, ("name", "version")),
}


@st.composite
def mangled(draw: Callable[[Any], Any], whole: bytes) -> bytes:
    """``whole`` with bits flipped, a part cut out, doubled, or replaced."""
    data = bytearray(whole)
    for _ in range(draw(st.integers(1, 4))):
        at = draw(st.integers(0, len(data)))
        length = draw(st.integers(0, 12))
        how = draw(st.integers(0, 3))
        if how == 0 and at < len(data):
            data[at] ^= 1 << draw(st.integers(0, 7))
        elif how == 1:
            del data[at : at + length]
        elif how == 2:
            data[at:at] = data[at : at + length]
        else:
            data[at : at + length] = draw(st.binary(max_size=12))
    return bytes(data)


def payload(method: str) -> st.SearchStrategy[bytes]:
    """Bytes for ``method``, ``"package.Service/Method"``."""
    anything = st.binary(max_size=400)
    if method not in STRUCTURED:
        return anything
    whole = STRUCTURED[method].map(lambda message: message.SerializeToString())
    return st.one_of(whole, whole, whole.flatmap(mangled), anything)
