"""``AssignStream`` through real sockets: every message answered on its own, and never more than a few held."""

from __future__ import annotations

import asyncio

import grpc
import numpy as np
import pytest

from serving.engine import FakeEngine
from serving.grpc_stream import Window
from serving.pb.nvisa.v1 import cluster_pb2 as pb
from serving.pb.nvisa.v1.cluster_pb2_grpc import ClusterServiceStub
from tests.bundles import random_rows
from tests.servers import GatedEngine, fake_engine, in_process

STREAM = "/nvisa.v1.ClusterService/AssignStream"
CODE = grpc.StatusCode


def request(x=None, **fields):
    x = random_rows(3) if x is None else x
    tensor = pb.Tensor(dtype=pb.DATA_TYPE_UINT8, shape=x.shape, data=x.tobytes())
    return pb.AssignStreamRequest(request={"model_name": "toy", "input": tensor} | fields)


def clusters(x):
    return FakeEngine(10).assign(x).clusters.tolist()


def answered(reply):
    return np.frombuffer(reply.response.clusters_data, "<i8").tolist()


@pytest.fixture
async def server(repository):
    async with in_process(repository, fake_engine, max_message_bytes=100_000) as server:
        yield server


@pytest.fixture
async def channel(server):
    async with grpc.aio.insecure_channel(f"127.0.0.1:{server.grpc_port}") as channel:
        yield channel


def count(server, code):
    return server.metrics.registry.get_sample_value("nvisa_stream_messages_total", {"code": code})


async def replies_to(channel, requests):
    call = ClusterServiceStub(channel).AssignStream(iter(requests))
    return {reply.index: reply async for reply in call}


async def test_every_message_is_answered_with_its_index_and_id(channel, server):
    batches = [random_rows(n, seed=n) for n in range(1, 201)]
    replies = await replies_to(channel, [request(x, request_id=f"r-{len(x)}") for x in batches])
    assert sorted(replies) == list(range(200))
    for index, x in enumerate(batches):
        assert answered(replies[index]) == clusters(x)
        assert replies[index].request_id == replies[index].response.request_id == f"r-{len(x)}"
    assert count(server, "OK") == 200


async def test_an_empty_stream_ends_well(channel):
    assert await replies_to(channel, []) == {}


async def test_what_is_wrong_with_one_message_is_the_answer_to_it_alone(channel, server):
    x = random_rows(4)
    requests = [
        request(x),
        request(model_name="tyo", request_id="lost"),
        request(x[:, :1]),
        request(x),
    ]
    replies = await replies_to(channel, requests)
    assert answered(replies[0]) == answered(replies[3]) == clusters(x)
    assert replies[1].error.code == CODE.NOT_FOUND.value[0]
    assert "no model 'tyo'" in replies[1].error.message
    assert replies[1].request_id == "lost"
    assert replies[2].error.code == CODE.INVALID_ARGUMENT.value[0]
    assert (count(server, "OK"), count(server, "NOT_FOUND"), count(server, "INVALID_ARGUMENT")) == (2, 1, 1)


async def test_a_message_that_cannot_be_decoded_is_an_error_of_its_own(channel):
    raw = channel.stream_stream(STREAM, response_deserializer=pb.AssignStreamResponse.FromString)
    good = request().SerializeToString()
    replies = {reply.index: reply async for reply in raw(iter([good, b"\xff\xff\xff", good]))}
    assert replies[1].error.code == CODE.INVALID_ARGUMENT.value[0]
    assert "not the message" in replies[1].error.message
    assert answered(replies[0]) == answered(replies[2]) == clusters(random_rows(3))


async def test_a_failing_model_gives_each_message_an_internal_error_and_the_stream_lives(repository):
    class Broken(FakeEngine):
        def assign(self, x):
            if x.min() == 255:
                raise RuntimeError("secret detail")
            return super().assign(x)

    async with (
        in_process(repository, lambda *_: Broken(10)) as server,
        grpc.aio.insecure_channel(f"127.0.0.1:{server.grpc_port}") as channel,
    ):
        call = ClusterServiceStub(channel).AssignStream()
        await call.write(request(np.full_like(random_rows(1), 255)))
        reply = await call.read()
        assert reply.error.code == CODE.INTERNAL.value[0]
        assert "secret" not in reply.error.message
        x = random_rows(2)
        await call.write(request(x))
        assert answered(await call.read()) == clusters(x)
        await call.done_writing()
        assert await call.read() is grpc.aio.EOF


async def test_a_full_queue_holds_the_stream_back_and_loses_nothing(repository):
    engine = GatedEngine()
    settings = {"max_queue_rows": 8, "inference_threads": 1, "max_batch_rows": 4}
    async with (
        in_process(repository, lambda *_: engine, wait_ready=False, **settings) as server,
        grpc.aio.insecure_channel(f"127.0.0.1:{server.grpc_port}") as channel,
    ):
        engine.gate.set()  # the model warms up
        while not server.is_ready():
            await asyncio.sleep(0.001)
        engine.gate.clear()
        batches = [random_rows(3, seed=n) for n in range(40)]
        call = ClusterServiceStub(channel).AssignStream(iter([request(x) for x in batches]))
        # An ordinary call is refused once the stream has filled the queue.
        refused = None
        while refused is None:
            try:
                await ClusterServiceStub(channel).Assign(request(random_rows(8)).request, timeout=0.2)
            except grpc.aio.AioRpcError as error:
                refused = error if error.code() is CODE.RESOURCE_EXHAUSTED else None
        engine.gate.set()
        replies = {reply.index: reply async for reply in call}
    assert [answered(replies[index]) for index in range(40)] == [clusters(x) for x in batches]


async def test_the_deadline_of_the_call_is_that_of_every_message(repository):
    engine = GatedEngine(is_open=True)
    async with (
        in_process(repository, lambda *_: engine, inference_threads=1) as server,
        grpc.aio.insecure_channel(f"127.0.0.1:{server.grpc_port}") as channel,
    ):
        engine.gate.clear()
        call = ClusterServiceStub(channel).AssignStream(iter([request()]), timeout=0.2)
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            async for _ in call:
                pass
        assert caught.value.code() is CODE.DEADLINE_EXCEEDED
        engine.gate.set()


async def test_rows_of_a_caller_that_leaves_never_reach_the_model(repository):
    engine = GatedEngine(is_open=True)
    settings = {"inference_threads": 1, "max_batch_rows": 1}
    async with (
        in_process(repository, lambda *_: engine, **settings) as server,
        grpc.aio.insecure_channel(f"127.0.0.1:{server.grpc_port}") as channel,
    ):
        engine.gate.clear()
        call = ClusterServiceStub(channel).AssignStream()
        for n in range(10):
            await call.write(request(random_rows(1, seed=n)))
        waiting = lambda: server.metrics.registry.get_sample_value(  # noqa: E731
            "nvisa_queue_rows", {"model": "toy", "version": "2"}
        )
        while waiting() < 5:
            await asyncio.sleep(0.001)
        call.cancel()
        while waiting():
            await asyncio.sleep(0.001)
        engine.gate.set()
        assert (await ClusterServiceStub(channel).Assign(request().request)).clusters_data
        dropped = server.metrics.registry.get_sample_value(
            "nvisa_dropped_rows_total", {"model": "toy", "version": "2", "reason": "cancelled"}
        )
        assert dropped >= 5


async def test_draining_answers_what_was_read_and_tells_how_much(repository):
    async with in_process(repository, fake_engine) as server:
        channel = grpc.aio.insecure_channel(f"127.0.0.1:{server.grpc_port}")
        call = ClusterServiceStub(channel).AssignStream()
        x = random_rows(3)
        await call.write(request(x))
        assert answered(await call.read()) == clusters(x)
        server.stop()
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await call.read()
        assert caught.value.code() is CODE.UNAVAILABLE
        assert "answered 1 messages of this stream" in caught.value.details()
        await channel.close()


async def test_the_window_bounds_messages_and_bytes():
    window = Window(2, 100)
    for size, room in ((60, True), (60, False)):
        window.add(size)
        waiting = asyncio.ensure_future(window.has_room())
        await asyncio.sleep(0)
        assert waiting.done() is room
    window.remove(60)
    await waiting
    window.add(1)
    full = asyncio.ensure_future(window.has_room())
    await asyncio.sleep(0)
    assert not full.done(), "two messages are in"
    window.remove(1)
    await full
