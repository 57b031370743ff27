"""A model that hangs ends the server; what its callers see is in tests/chaos/test_models.py."""

import asyncio
import logging

import grpc
import pytest

from serving import watchdog
from serving.pb.nvisa.v1.cluster_pb2_grpc import ClusterServiceStub
from serving.server import Server
from serving.settings import ServerSettings
from serving.watchdog import RunTooLong, Watchdog
from tests.bundles import make_bundle
from tests.servers import GatedEngine
from tests.unit.serving.test_lifecycle import assign_request


class Runs:
    """Stands for a batcher."""

    def __init__(self, seconds):
        self.seconds = seconds
        self.task = asyncio.current_task()

    def oldest_run_seconds(self):
        return self.seconds


async def test_it_barks_at_a_run_that_is_too_long_and_at_no_other():
    runs, others = Runs(0.0), Runs(0.0)
    dog = Watchdog(lambda: [others, runs], 0.04)
    try:
        runs.seconds = 0.04
        await asyncio.sleep(0.05)
        assert not dog.failed.done()
        runs.seconds = 0.05
        with pytest.raises(RunTooLong, match=r"taken 0.05 s, --run-timeout-seconds allows 0.04"):
            await dog.failed
    finally:
        dog.close()


async def test_a_watchdog_that_cannot_look_is_not_quiet():
    dog = Watchdog(lambda: [None], 0.01)
    with pytest.raises(AttributeError):
        await dog.failed
    dog.close()


async def test_without_a_limit_nobody_looks():
    dog = Watchdog(lambda: 1 / 0, 0.0)
    await asyncio.sleep(0.01)
    dog.close()
    assert dog.failed.cancelled()


async def test_a_process_that_does_not_end_is_ended(monkeypatch, caplog):
    ended = []
    monkeypatch.setattr(watchdog, "END_SECONDS", 0.01)
    monkeypatch.setattr("os._exit", ended.append)
    runs = Runs(1.0)
    dog = Watchdog(lambda: [runs], 0.01)
    with pytest.raises(RunTooLong):
        await dog.failed
    while not ended:
        await asyncio.sleep(0.001)
    dog.close()
    assert ended == [1]
    assert "is ended now" in caplog.text


async def test_a_model_that_hangs_takes_readiness_and_then_the_server(tmp_path, caplog):
    make_bundle(tmp_path)
    engine = GatedEngine(is_open=True)
    server = Server(
        ServerSettings(
            model_repository=tmp_path, grpc_port=0, metrics_port=0, device="cpu", run_timeout_seconds=0.05
        ),
        lambda *_: engine,
    )
    running = asyncio.create_task(server.run())
    while not server.is_ready():
        await asyncio.sleep(0.001)
    engine.gate.clear()
    async with grpc.aio.insecure_channel(f"127.0.0.1:{server.grpc_port}") as channel:
        with caplog.at_level(logging.ERROR), pytest.raises(grpc.aio.AioRpcError) as caught:
            await ClusterServiceStub(channel).Assign(assign_request())
        assert caught.value.code() is grpc.StatusCode.UNAVAILABLE
    assert await running == 1
    assert not server.is_ready()
    assert "batcher of toy/1: a run of the model has taken" in caplog.text
    engine.gate.set()


async def test_a_run_that_hangs_on_the_event_loop_itself_ends_the_process(tmp_path, monkeypatch, caplog):
    make_bundle(tmp_path)
    engine = GatedEngine(is_open=True)
    ended = []

    def end(status):
        ended.append(status)
        engine.gate.set()  # there is no other way out here

    monkeypatch.setattr(watchdog, "END_SECONDS", 0.05)
    monkeypatch.setattr("os._exit", end)
    values = {"grpc_port": 0, "metrics_port": 0, "device": "cpu", "inline_seconds": 0.1}
    server = Server(
        ServerSettings(model_repository=tmp_path, run_timeout_seconds=0.05, **values), lambda *_: engine
    )
    running = asyncio.create_task(server.run())
    while not server.is_ready():
        await asyncio.sleep(0.001)
    async with grpc.aio.insecure_channel(f"127.0.0.1:{server.grpc_port}") as channel:
        stub = ClusterServiceStub(channel)
        await stub.Assign(assign_request())
        engine.gate.clear()
        # The loop is held up from the run's start to the end of the process, which is only pretended.
        await stub.Assign(assign_request())
        assert ended == [1]
        assert "is ended now" in caplog.text
    assert await running == 1
    assert not server.is_ready()
