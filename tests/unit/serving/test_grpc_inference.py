import grpc
import numpy as np
import pytest

from serving.engine import FakeEngine
from serving.pb.inference import grpc_service_pb2 as pb
from serving.pb.inference.grpc_service_pb2_grpc import GRPCInferenceServiceStub
from tests.bundles import random_rows
from tests.servers import fake_engine, in_process

CODE = grpc.StatusCode
DATATYPES = {"uint8": "UINT8", "float32": "FP32", "int64": "INT64"}


@pytest.fixture
async def stub(repository):
    async with (
        in_process(repository, fake_engine) as server,
        grpc.aio.insecure_channel(f"127.0.0.1:{server.grpc_port}") as channel,
    ):
        yield GRPCInferenceServiceStub(channel)


def request(x=None, *, raw=True, name="x", datatype=None, outputs=(), **fields):
    x = random_rows(3) if x is None else x
    message = pb.ModelInferRequest(**{"model_name": "toy"} | fields)
    tensor = message.inputs.add(name=name, datatype=datatype or DATATYPES[str(x.dtype)], shape=x.shape)
    if raw:
        message.raw_input_contents.append(x.tobytes())
    elif x.dtype == np.uint8:
        tensor.contents.uint_contents.extend(x.ravel().tolist())
    else:
        tensor.contents.fp32_contents.extend(x.ravel().tolist())
    for output in outputs:
        message.outputs.add(name=output)
    return message


async def test_raw_is_answered_raw(stub):
    x = random_rows(4)
    reply = await stub.ModelInfer(request(x, id="r-1"))
    assert [(o.name, o.datatype, list(o.shape)) for o in reply.outputs] == [
        ("probabilities", "FP32", [4, 10]),
        ("cluster", "INT64", [4]),
    ]
    expected = FakeEngine(10).assign(x)
    probabilities, clusters = reply.raw_output_contents
    np.testing.assert_array_equal(np.frombuffer(clusters, "<i8"), expected.clusters)
    np.testing.assert_array_equal(np.frombuffer(probabilities, "<f4"), expected.probabilities.ravel())
    assert not any(output.HasField("contents") for output in reply.outputs)
    assert (reply.id, reply.model_name, reply.model_version) == ("r-1", "toy", "2")


@pytest.mark.parametrize("model", ["toy", "features"])
async def test_typed_is_answered_typed(stub, model):
    x = random_rows(2) if model == "toy" else np.arange(10, dtype=np.float32).reshape(2, 5)
    reply = await stub.ModelInfer(request(x, raw=False, model_name=model))
    assert not reply.raw_output_contents
    expected = FakeEngine(10).assign(x)
    assert list(reply.outputs[1].contents.int64_contents) == expected.clusters.tolist()
    np.testing.assert_allclose(reply.outputs[0].contents.fp32_contents, expected.probabilities.ravel())


async def test_only_the_outputs_asked_for_come_and_in_that_order(stub):
    reply = await stub.ModelInfer(request(outputs=["cluster"]))
    assert [output.name for output in reply.outputs] == ["cluster"]
    assert len(reply.raw_output_contents) == 1
    reply = await stub.ModelInfer(request(outputs=["cluster", "probabilities"]))
    assert [output.name for output in reply.outputs] == ["cluster", "probabilities"]


async def test_parameters_of_any_type_are_passed_over(stub):
    message = request()
    message.parameters["priority"].uint64_param = 1
    message.parameters["timeout"].int64_param = 1000
    message.parameters["other"].double_param = 0.5
    assert len((await stub.ModelInfer(message)).outputs) == 2


def with_two_inputs():
    message = request()
    message.inputs.add(name="y", datatype="UINT8", shape=[1])
    return message


def with_two_raws():
    message = request()
    message.raw_input_contents.append(b"")
    return message


def with_both_forms():
    message = request(raw=False)
    message.raw_input_contents.append(random_rows(3).tobytes())
    return message


@pytest.mark.parametrize(
    ("bad", "code", "says"),
    [
        (request(model_name="nope"), CODE.NOT_FOUND, "no model 'nope'"),
        (request(model_version="7"), CODE.NOT_FOUND, "no version 7"),
        (request(model_version="latest"), CODE.NOT_FOUND, "versions are positive integers"),
        (request(model_version="9" * 5000), CODE.NOT_FOUND, "versions are positive integers"),
        (request(name="images"), CODE.INVALID_ARGUMENT, "takes one input, 'x'; got 'images'"),
        (pb.ModelInferRequest(model_name="toy"), CODE.INVALID_ARGUMENT, "takes one input, 'x'; got none"),
        (with_two_inputs(), CODE.INVALID_ARGUMENT, "takes one input"),
        (with_two_raws(), CODE.INVALID_ARGUMENT, "2 entries for 1 input"),
        (with_both_forms(), CODE.INVALID_ARGUMENT, "both contents and raw_input_contents"),
        (request(datatype="FP32"), CODE.INVALID_ARGUMENT, "float32, the model takes uint8"),
        (request(datatype="BYTES"), CODE.INVALID_ARGUMENT, "'BYTES', the model takes uint8"),
        (
            request(outputs=["novelty"]),
            CODE.INVALID_ARGUMENT,
            "probabilities, cluster; serve one exported with",
        ),
        (
            request(outputs=["logits"]),
            CODE.INVALID_ARGUMENT,
            "no output 'logits'; the model has probabilities",
        ),
        (request(outputs=["cluster", "cluster"]), CODE.INVALID_ARGUMENT, "asked for twice"),
        (request(random_rows(3)[:0]), CODE.INVALID_ARGUMENT, "0 rows"),
        (request(random_rows(3, (8, 9)), raw=False), CODE.INVALID_ARGUMENT, "shape [8, 9]"),
        (
            request(np.full((2, 5), np.inf, np.float32), model_name="features"),
            CODE.INVALID_ARGUMENT,
            "row 0 has NaN or infinity",
        ),
    ],
)
async def test_what_is_wrong_is_said_with_its_code(stub, bad, code, says):
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await stub.ModelInfer(bad)
    assert caught.value.code() is code
    assert says in caught.value.details()


async def test_metadata(stub):
    model = await stub.ModelMetadata(pb.ModelMetadataRequest(name="toy"))
    assert (model.name, list(model.versions), model.platform) == ("toy", ["1", "2"], "onnx_onnxv1")
    assert [(t.name, t.datatype, list(t.shape)) for t in model.inputs] == [("x", "UINT8", [-1, 8, 8])]
    assert [(t.name, t.datatype, list(t.shape)) for t in model.outputs] == [
        ("probabilities", "FP32", [-1, 10]),
        ("cluster", "INT64", [-1]),
    ]
    server = await stub.ServerMetadata(pb.ServerMetadataRequest())
    assert server.name == "nvisa"
    assert list(server.extensions) == ["model_repository"]


async def test_a_model_with_novelty_has_a_third_output(novelty_repository):
    x = random_rows(4)
    expected = FakeEngine(10, novelty=True).assign(x)
    async with (
        in_process(novelty_repository, fake_engine) as server,
        grpc.aio.insecure_channel(f"127.0.0.1:{server.grpc_port}") as channel,
    ):
        stub = GRPCInferenceServiceStub(channel)
        described = await stub.ModelMetadata(pb.ModelMetadataRequest(name="toy", version="1"))
        raw = await stub.ModelInfer(request(x, model_version="1"))
        typed = await stub.ModelInfer(request(x, raw=False, model_version="1", outputs=["novelty"]))
    third = described.outputs[2]
    assert (third.name, third.datatype, list(third.shape)) == ("novelty", "FP32", [-1])
    assert [output.name for output in raw.outputs] == ["probabilities", "cluster", "novelty"]
    assert list(raw.outputs[2].shape) == [4]
    np.testing.assert_array_equal(np.frombuffer(raw.raw_output_contents[2], "<f4"), expected.novelty)
    np.testing.assert_allclose(typed.outputs[0].contents.fp32_contents, expected.novelty)


async def test_live_and_ready(stub):
    assert (await stub.ServerLive(pb.ServerLiveRequest())).live
    assert (await stub.ServerReady(pb.ServerReadyRequest())).ready
    assert (await stub.ModelReady(pb.ModelReadyRequest(name="toy", version="1"))).ready
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await stub.ModelReady(pb.ModelReadyRequest(name="nope"))
    assert caught.value.code() is CODE.NOT_FOUND
