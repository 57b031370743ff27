import asyncio
import logging

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

from serving.grpc_port import SERVICES
from serving.pb.inference import grpc_service_pb2 as inference
from serving.pb.inference.grpc_service_pb2_grpc import GRPCInferenceServiceStub
from serving.pb.nvisa.v1 import cluster_pb2 as pb
from serving.pb.nvisa.v1.cluster_pb2_grpc import ClusterServiceStub
from serving.server import Server
from serving.settings import ServerSettings
from serving.start_error import StartError
from tests.bundles import make_bundle, random_rows
from tests.servers import GatedEngine, fake_engine, get, in_process

SERVING = health_pb2.HealthCheckResponse.SERVING
NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING


@pytest.fixture
def one_model(tmp_path):
    make_bundle(tmp_path)
    return tmp_path


def channel_to(server):
    return grpc.aio.insecure_channel(f"127.0.0.1:{server.grpc_port}")


async def statuses(channel):
    """Health of the process, then of each service."""
    stub = health_pb2_grpc.HealthStub(channel)
    return [
        (await stub.Check(health_pb2.HealthCheckRequest(service=name))).status for name in ("", *SERVICES)
    ]


async def http(server, path):
    return await asyncio.to_thread(get, f"http://127.0.0.1:{server.metrics_port}{path}")


def assign_request():
    x = random_rows(2)
    return pb.AssignRequest(
        model_name="toy", input=pb.Tensor(dtype=pb.DATA_TYPE_UINT8, shape=x.shape, data=x.tobytes())
    )


async def entered(engine):
    while not engine.entered.acquire(blocking=False):
        await asyncio.sleep(0.001)


async def test_alive_but_not_ready_until_every_model_is_warm_then_ready(one_model):
    engine = GatedEngine()
    async with (
        in_process(one_model, lambda *_: engine, wait_ready=False) as server,
        channel_to(server) as channel,
    ):
        try:
            await entered(engine)  # the warm-up has begun and does not end
            assert await statuses(channel) == [SERVING, NOT_SERVING, NOT_SERVING]
            assert await http(server, "/healthz") == (200, "alive\n")
            assert await http(server, "/readyz") == (503, "loading models\n")
            oip = GRPCInferenceServiceStub(channel)
            assert (await oip.ServerLive(inference.ServerLiveRequest())).live
            assert not (await oip.ServerReady(inference.ServerReadyRequest())).ready
            assert not (await oip.ModelReady(inference.ModelReadyRequest(name="toy"))).ready
            stub = ClusterServiceStub(channel)
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await stub.Assign(assign_request())
            assert caught.value.code() is grpc.StatusCode.UNAVAILABLE
            assert "is loading; try again" in caught.value.details()
            assert ("grpc-retry-pushback-ms", "1000") in tuple(caught.value.trailing_metadata())
            model = (await stub.GetModel(pb.GetModelRequest(model_name="toy"))).model
            assert model.state == pb.MODEL_STATE_LOADING
            value = server.metrics.registry.get_sample_value
            assert value("nvisa_ready") == 0
        finally:
            engine.gate.set()
        while not server.is_ready():
            await asyncio.sleep(0.001)
        assert await statuses(channel) == [SERVING, SERVING, SERVING]
        assert await http(server, "/readyz") == (200, "ready\n")
        assert (await oip.ServerReady(inference.ServerReadyRequest())).ready
        assert value("nvisa_ready") == 1
        assert value("nvisa_model_state", {"model": "toy", "version": "1", "state": "ready"}) == 1
        assert value("nvisa_model_on_cuda", {"model": "toy", "version": "1"}) == 0


async def test_stopping_falls_out_of_balance_first_and_still_answers_what_comes(one_model):
    async with (
        in_process(one_model, fake_engine, drain_seconds=1000.0) as server,
        channel_to(server) as channel,
    ):
        server.stop()
        while server.is_ready():
            await asyncio.sleep(0.001)
        assert await statuses(channel) == [SERVING, NOT_SERVING, NOT_SERVING]
        assert await http(server, "/readyz") == (503, "draining\n")
        assert len((await ClusterServiceStub(channel).Assign(assign_request())).clusters_data) == 16
        # leaving the block asks a second time, which ends the wait


async def test_a_call_in_flight_is_answered_and_a_watch_does_not_hold_up_the_end(one_model):
    engine = GatedEngine(is_open=True)
    async with in_process(one_model, lambda *_: engine) as server, channel_to(server) as channel:
        watch = health_pb2_grpc.HealthStub(channel).Watch(health_pb2.HealthCheckRequest(service=SERVICES[0]))
        assert (await watch.read()).status == SERVING
        while engine.entered.acquire(blocking=False):  # the warm-up's
            pass
        engine.gate.clear()
        call = ClusterServiceStub(channel).Assign(assign_request())
        await entered(engine)
        server.stop()
        assert (await watch.read()).status == NOT_SERVING
        assert await watch.read() is grpc.aio.EOF
        engine.gate.set()
        assert len((await call).clusters_data) == 16


async def test_told_to_stop_while_loading_it_stops(one_model):
    engine = GatedEngine()
    server = Server(
        ServerSettings(model_repository=one_model, grpc_port=0, metrics_port=0, drain_seconds=0.0),
        lambda *_: engine,
    )
    running = asyncio.create_task(server.run())
    await entered(engine)
    server.stop()
    assert await running == 0
    engine.gate.set()


async def test_calls_are_cut_off_when_the_grace_is_over_and_the_exit_says_so(one_model):
    engine = GatedEngine(is_open=True)
    server = Server(
        ServerSettings(
            model_repository=one_model, grpc_port=0, metrics_port=0, drain_seconds=0.0, grace_seconds=0.05
        ),
        lambda *_: engine,
    )
    running = asyncio.create_task(server.run())
    while not server.is_ready():
        await asyncio.sleep(0.001)
    while engine.entered.acquire(blocking=False):
        pass
    engine.gate.clear()
    async with channel_to(server) as channel:
        call = ClusterServiceStub(channel).Assign(assign_request())
        await entered(engine)
        server.stop()
        with pytest.raises(grpc.aio.AioRpcError):
            await call
        assert await running == 1
    engine.gate.set()


async def test_if_a_background_task_dies_health_falls_and_the_exit_says_so(one_model, caplog):
    server = Server(
        ServerSettings(model_repository=one_model, grpc_port=0, metrics_port=0, drain_seconds=1000.0),
        fake_engine,
    )
    running = asyncio.create_task(server.run())
    while not server.is_ready():
        await asyncio.sleep(0.001)
    (batcher,) = (task for task in asyncio.all_tasks() if task.get_name() == "batcher of toy/1")
    with caplog.at_level(logging.ERROR):
        batcher.cancel()
        assert await running == 1
    assert not server.is_ready()
    assert "a background task died" in caplog.text


async def test_a_taken_port_is_a_start_error_that_names_the_flag(one_model):
    async with in_process(one_model, fake_engine) as server:
        for flag, ports in (
            ("--grpc-port", {"grpc_port": server.grpc_port}),
            ("--metrics-port", {"metrics_port": server.metrics_port}),
        ):
            with pytest.raises(StartError, match=flag):
                async with in_process(one_model, fake_engine, **ports):
                    pass


@pytest.mark.parametrize("service", ["", *SERVICES])
async def test_a_watch_of_an_unknown_service_says_so_and_a_check_is_not_found(one_model, service):
    async with in_process(one_model, fake_engine) as server, channel_to(server) as channel:
        stub = health_pb2_grpc.HealthStub(channel)
        assert (await stub.Check(health_pb2.HealthCheckRequest(service=service))).status == SERVING
        unknown = health_pb2.HealthCheckRequest(service=service + "x")
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await stub.Check(unknown)
        assert caught.value.code() is grpc.StatusCode.NOT_FOUND
        watch = stub.Watch(unknown)
        assert (await watch.read()).status == health_pb2.HealthCheckResponse.SERVICE_UNKNOWN
        watch.cancel()


async def test_the_http_port_has_three_paths(one_model):
    async with in_process(one_model, fake_engine) as server:
        status, body = await http(server, "/metrics")
        assert status == 200
        assert 'nvisa_model_state{model="toy",state="ready",version="1"} 1.0' in body
        assert (await http(server, "/elsewhere"))[0] == 404


async def test_a_stuck_event_loop_is_not_alive(one_model, monkeypatch):
    monkeypatch.setattr("serving.http_port.STUCK_AFTER_SECONDS", 0.05)
    async with in_process(one_model, fake_engine) as server:
        # Asked from within the event loop, which can take no turn while it waits for this answer.
        status, body = get(f"http://127.0.0.1:{server.metrics_port}/healthz")
        assert (status, body) == (503, "the event loop is stuck\n")
        assert (await http(server, "/healthz"))[0] == 200


@pytest.mark.parametrize("enabled", [True, False])
async def test_reflection_is_there_if_it_was_asked_for(one_model, enabled):
    request = reflection_pb2.ServerReflectionRequest(list_services="")
    async with (
        in_process(one_model, fake_engine, reflection=enabled) as server,
        channel_to(server) as channel,
    ):
        call = reflection_pb2_grpc.ServerReflectionStub(channel).ServerReflectionInfo(iter([request]))
        if enabled:
            (reply,) = [message async for message in call]
            names = {service.name for service in reply.list_services_response.service}
            assert set(SERVICES) <= names
        else:
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await call.read()
            assert caught.value.code() is grpc.StatusCode.UNIMPLEMENTED
