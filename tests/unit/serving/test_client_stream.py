"""`assign_stream` of both clients, against real servers that go away, refuse and drain."""

from __future__ import annotations

import asyncio
import threading

import grpc
import numpy as np
import pytest

from serving.client import AsyncClusterClient, ClusterClient, ClusterServiceError
from serving.client.streaming import AsyncRequests, Stream
from serving.engine import FakeEngine
from serving.pb.nvisa.v1 import cluster_pb2 as pb
from tests.bundles import random_rows
from tests.servers import fake_engine, in_process


def clusters(x):
    return FakeEngine(10).assign(x).clusters.tolist()


@pytest.fixture
async def server(repository):
    async with in_process(repository, fake_engine, max_message_bytes=100_000) as server:
        yield server


def target(server):
    return f"127.0.0.1:{server.grpc_port}"


def answered(server):
    return server.metrics.registry.get_sample_value("nvisa_stream_messages_total", {"code": "OK"})


def sync_answers(target, batches, **options):
    with ClusterClient(target) as client:
        return list(client.assign_stream(batches, model="toy", **options))


async def async_answers(target, batches, **options):
    async with AsyncClusterClient(target) as client:
        return [answer async for answer in client.assign_stream(batches, model="toy", **options)]


@pytest.fixture(params=["sync", "asyncio"])
def answers(request):
    """Answers of a stream by either client, from a coroutine."""
    if request.param == "asyncio":
        return async_answers

    async def in_thread(target, batches, **options):
        return await asyncio.to_thread(sync_answers, target, batches, **options)

    return in_thread


async def test_one_answer_for_each_batch_in_order(answers, server):
    batches = [random_rows(n % 7 + 1, seed=n) for n in range(150)]
    found = await answers(target(server), iter(batches), probabilities=True, version=1)
    assert [answer.clusters.tolist() for answer in found] == [clusters(x) for x in batches]
    assert {answer.version for answer in found} == {1}
    assert all(answer.probabilities.shape == (len(x), 10) for answer, x in zip(found, batches, strict=True))


async def test_no_batches_no_answers(answers, server):
    assert await answers(target(server), []) == []


async def test_a_refused_batch_is_told_in_its_place_and_stops_nothing(answers, server):
    x = random_rows(2)
    found = await answers(target(server), [x, x[:, :1], x])
    assert [type(answer).__name__ for answer in found] == [
        "AssignResult",
        "ClusterServiceError",
        "AssignResult",
    ]
    assert found[1].code is grpc.StatusCode.INVALID_ARGUMENT


async def test_what_the_batches_raise_reaches_the_caller(answers, server):
    def batches():
        yield random_rows(1)
        raise OSError("the disk is gone")

    with pytest.raises(OSError, match="the disk is gone"):
        await answers(target(server), batches())


async def test_what_is_no_batch_is_told_as_by_assign(answers, server):
    with pytest.raises(ValueError, match="dtype int64"):
        await answers(target(server), [random_rows(1), np.arange(3)])


async def test_nobody_there_is_an_error_after_a_few_attempts(answers):
    with pytest.raises(ClusterServiceError) as caught:
        await answers("127.0.0.1:1", [random_rows(1)])
    assert caught.value.code is grpc.StatusCode.UNAVAILABLE


async def test_a_stream_goes_on_with_the_next_server_and_asks_nothing_twice(answers, repository):
    """The first server drains in the middle; the second takes its port."""
    batches = [random_rows(n % 5 + 1, seed=n) for n in range(60)]
    first_ten, second_is_up = threading.Event(), threading.Event()

    def drawn():
        for n, x in enumerate(batches):
            if n == 10:
                first_ten.set()
                assert second_is_up.wait(30)
            yield x

    async def adrawn():
        for n, x in enumerate(batches):
            if n == 10:
                first_ten.set()
                assert await asyncio.to_thread(second_is_up.wait, 30)
            yield x

    source = adrawn() if answers is async_answers else drawn()
    async with in_process(repository, fake_engine) as server:
        port = server.grpc_port
        asking = asyncio.ensure_future(answers(f"127.0.0.1:{port}", source))
        assert await asyncio.to_thread(first_ten.wait, 30)
        while answered(server) != 10:
            await asyncio.sleep(0.001)
    async with in_process(repository, fake_engine, grpc_port=port) as server:
        second_is_up.set()
        found = await asking
        assert answered(server) == 50, "what the first server had answered was not sent again"
    assert [answer.clusters.tolist() for answer in found] == [clusters(x) for x in batches]


async def test_a_batch_that_two_calls_waited_for_is_sent_by_the_later_one_and_once():
    arrived = asyncio.Event()

    async def batches():
        await arrived.wait()
        yield random_rows(1)

    stream = Stream(lambda x: pb.AssignRequest(), "nowhere")
    requests = AsyncRequests(stream, batches())
    earlier, later = requests(), None
    first = asyncio.ensure_future(anext(earlier, None))
    await asyncio.sleep(0.01)
    later = requests()  # the call of the earlier one has ended, and gRPC still draws for it
    second = asyncio.ensure_future(anext(later, None))
    await asyncio.sleep(0.01)
    arrived.set()
    assert await first is None
    assert (await second).request.request_id.endswith("-0")
    assert len(stream.unanswered()) == 1


async def test_time_is_up_for_the_whole_stream(answers, server):
    def endless():
        while True:
            yield random_rows(1)

    with pytest.raises(ClusterServiceError) as caught:
        await answers(target(server), endless(), timeout=0.5)
    assert caught.value.code is grpc.StatusCode.DEADLINE_EXCEEDED


async def test_leaving_early_ends_the_call(server):
    def endless():
        while True:
            yield random_rows(1)

    def first():
        with ClusterClient(target(server)) as client:
            stream = client.assign_stream(endless(), model="toy")
            answer = next(stream)
            stream.close()
        return answer

    assert (await asyncio.to_thread(first)).clusters.tolist() == clusters(random_rows(1))
