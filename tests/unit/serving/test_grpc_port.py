"""The gRPC port's own bounds."""

import asyncio
import time

import grpc
import pytest

from serving.pb.nvisa.v1 import cluster_pb2 as pb
from serving.pb.nvisa.v1.cluster_pb2_grpc import ClusterServiceStub
from tests.servers import fake_engine, in_process


@pytest.mark.parametrize(
    ("settings", "some"),
    [
        ({"max_pending_calls": 6}, True),
        ({"max_pending_calls": 61}, True),  # from 15 on, at random: none with a probability of 1e-20
        ({"max_pending_calls": 240}, False),
        ({}, False),
    ],
)
async def test_more_calls_than_may_wait_to_be_read_are_turned_away_by_grpc(repository, settings, some):
    async with in_process(repository, fake_engine, **settings) as server:

        def call():
            """60 calls at once, while the event loop does nothing else than to hold them up."""
            with grpc.insecure_channel(f"127.0.0.1:{server.grpc_port}") as channel:
                grpc.channel_ready_future(channel).result(30)
                stub = ClusterServiceStub(channel)
                asyncio.run_coroutine_threadsafe(hold_up(), loop)
                calls = [stub.ListModels.future(pb.ListModelsRequest(), timeout=30) for _ in range(60)]
                return [call.code() for call in calls]

        async def hold_up():
            time.sleep(0.5)

        loop = asyncio.get_running_loop()
        codes = await asyncio.to_thread(call)
    assert set(codes) <= {grpc.StatusCode.OK, grpc.StatusCode.CANCELLED}
    assert grpc.StatusCode.OK in codes
    assert (grpc.StatusCode.CANCELLED in codes) == some
