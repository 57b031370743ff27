"""The id of a call: from its message, its metadata or the server; in every line, in trailers, in the client."""

from __future__ import annotations

import io
import json
import logging

import grpc
import pytest

from serving.client import AsyncClusterClient, ClusterServiceError
from serving.engine import EngineError, FakeEngine
from serving.logs import set_up_logs
from serving.pb.inference import grpc_service_pb2 as oip
from serving.pb.inference.grpc_service_pb2_grpc import GRPCInferenceServiceStub
from serving.pb.nvisa.v1 import cluster_pb2 as pb
from serving.pb.nvisa.v1.cluster_pb2_grpc import ClusterServiceStub
from serving.request_ids import MAX_LENGTH, printable
from tests.bundles import random_rows
from tests.servers import in_process

BAD = 255


class Engine(FakeEngine):
    def assign(self, x):
        if (x.reshape(len(x), -1)[:, 0] == BAD).any():
            raise EngineError("told to fail")
        return super().assign(x)


@pytest.fixture
async def server(repository):
    async with in_process(repository, lambda *_: Engine(10)) as server:
        yield server


@pytest.fixture
async def channel(server):
    async with grpc.aio.insecure_channel(f"127.0.0.1:{server.grpc_port}") as channel:
        yield channel


@pytest.fixture
def lines(server):
    """The lines of the JSON log about calls, as the server's set-up writes them."""
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    stream = io.StringIO()
    set_up_logs("json", "debug", stream)
    yield lambda: [
        entry for line in stream.getvalue().splitlines() if "method" in (entry := json.loads(line))
    ]
    root.handlers[:] = handlers
    root.setLevel(level)


def request(x=None, **fields):
    x = random_rows(2) % BAD if x is None else x
    tensor = pb.Tensor(dtype=pb.DATA_TYPE_UINT8, shape=x.shape, data=x.tobytes())
    return pb.AssignRequest(**{"model_name": "toy", "input": tensor} | fields)


def failing():
    x = random_rows(2)
    x[:] = BAD
    return x


async def ids(call):
    """The id in the trailers of ``call``, whether it succeeds or not."""
    return [value for key, value in await call.trailing_metadata() if key == "x-request-id"]


async def test_the_messages_own_id_is_in_reply_and_log(channel, lines):
    reply = await ClusterServiceStub(channel).Assign(
        request(request_id="mine"), metadata=[("x-request-id", "the proxy's")]
    )
    assert reply.request_id == "mine"
    inference = oip.ModelInferRequest(id="theirs", model_name="nope")
    with pytest.raises(grpc.aio.AioRpcError):
        await GRPCInferenceServiceStub(channel).ModelInfer(inference)
    assert [entry["request_id"] for entry in lines()] == ["mine", "theirs"]


async def test_the_metadatas_id_is_in_trailers_and_log(channel, lines):
    stub = ClusterServiceStub(channel)
    metadata = [("x-request-id", "the proxy's")]
    # One after the other: rows that are read together run together, and fail together.
    for method, message in (
        (stub.Assign, request()),
        (stub.ListModels, pb.ListModelsRequest()),
        (stub.Assign, request(model_name="nope")),
        (stub.Assign, request(failing())),
    ):
        assert await ids(method(message, metadata=metadata)) == ["the proxy's"]
    assert [entry["request_id"] for entry in lines()] == ["the proxy's"] * 5


async def test_a_call_without_gets_one_of_its_own(channel, lines):
    stub = ClusterServiceStub(channel)
    await stub.Assign(request())
    told = [await ids(stub.Assign(request(model_name="nope"))) for _ in range(2)]
    entries = lines()
    assert len({entry["request_id"] for entry in entries}) == 3
    assert [[entry["request_id"]] for entry in entries[1:]] == told


async def test_every_line_of_one_failed_call_has_the_same_id(channel, lines):
    call = ClusterServiceStub(channel).Assign(request(failing(), request_id="r-1"))
    assert await ids(call) == ["r-1"]
    entries = lines()
    assert [entry["message"] for entry in entries] == ["request failed", "call"]
    assert {entry["request_id"] for entry in entries} == {"r-1"}
    assert "told to fail" in entries[0]["exception"]


async def test_an_id_that_metadata_cannot_carry_is_made_fit(channel):
    call = ClusterServiceStub(channel).Assign(request(model_name="nope", request_id="a\nü" + "x" * 1000))
    assert await ids(call) == ["a??" + "x" * (MAX_LENGTH - 3)]


@pytest.mark.parametrize(("text", "fit"), [("", ""), (" a ", "a"), ("\x7f\x00é€", "????"), ("a b", "a b")])
def test_printable(text, fit):
    assert printable(text) == fit


async def test_the_client_sends_an_id_and_tells_it(server, lines):
    async with AsyncClusterClient(f"127.0.0.1:{server.grpc_port}") as client:
        x = random_rows(2) % BAD
        given = await client.assign(x, model="toy", request_id="job-7")
        made = [(await client.assign(x, model="toy")).request_id for _ in range(2)]
        with pytest.raises(ClusterServiceError) as caught:
            await client.assign(x, model="nope", request_id="job-8")
        with pytest.raises(ClusterServiceError) as unnamed:
            await client.model("nope")
    assert given.request_id == "job-7"
    assert len(set(made)) == 2
    assert caught.value.request_id == "job-8"
    assert unnamed.value.request_id
    assert [entry["request_id"] for entry in lines()] == [
        "job-7",
        *made,
        "job-8",
        unnamed.value.request_id,
    ]
