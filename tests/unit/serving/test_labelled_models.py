"""Labels and versions as callers see them, over gRPC: who answers, and whether the metrics say so."""

from __future__ import annotations

import asyncio

import grpc
import pytest

from serving.client import AsyncClusterClient, ClusterClient
from serving.engine import FakeEngine
from serving.labels import LABELS_FILE
from serving.pb.inference import grpc_service_pb2 as oip
from serving.pb.inference.grpc_service_pb2_grpc import GRPCInferenceServiceStub
from serving.pb.nvisa.v1 import cluster_pb2 as pb
from serving.pb.nvisa.v1.cluster_pb2_grpc import ClusterServiceStub
from serving.routing import place
from serving.server import Server
from serving.settings import ServerSettings
from tests.bundles import make_bundle, random_rows
from tests.servers import fake_engine, in_process

SHARE = 0.3
ROWS = random_rows(3)
CODE = grpc.StatusCode


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    path = tmp_path_factory.mktemp("labelled")
    for version in (1, 2, 3, 4):
        make_bundle(path, version=version)
    labels = f"stable: 1\ncanary: {{version: 2, share: {SHARE}}}\nshadow: {{version: 3}}"
    (path / "toy" / LABELS_FILE).write_text(labels)
    return path


@pytest.fixture
async def server(path):
    async with in_process(path, fake_engine) as server:
        yield server


@pytest.fixture
async def channel(server):
    async with grpc.aio.insecure_channel(f"127.0.0.1:{server.grpc_port}") as channel:
        yield channel


def request(**fields):
    tensor = pb.Tensor(dtype=pb.DATA_TYPE_UINT8, shape=ROWS.shape, data=ROWS.tobytes())
    return pb.AssignRequest(**{"model_name": "toy", "input": tensor} | fields)


def infer(**fields):
    message = oip.ModelInferRequest(model_name="toy", raw_input_contents=[ROWS.tobytes()], **fields)
    message.inputs.add(name="x", datatype="UINT8", shape=ROWS.shape)
    return message


async def test_stable_and_canary_share_the_calls_by_id_and_every_counter_says_what_was_sent(server, channel):
    native, other = ClusterServiceStub(channel), GRPCInferenceServiceStub(channel)
    ids = [f"call-{i}" for i in range(40)]
    chosen = {i: 2 if place(i) < SHARE else 1 for i in ids}
    assert set(chosen.values()) == {1, 2}
    answered = {1: 0, 2: 0, 3: 0}
    for i in ids:
        versions = {
            (await native.Assign(request(request_id=i))).model_version,
            int((await other.ModelInfer(infer(id=i))).model_version),
        }
        assert versions == {chosen[i]}
        answered[chosen[i]] += 2
    for label, version in (("stable", 1), ("canary", 2), ("shadow", 3)):
        assert (await native.Assign(request(model_label=label))).model_version == version
        assert (await other.ModelInfer(infer(model_version=label))).model_version == str(version)
        answered[version] += 2
    assert (await native.Assign(request(model_version=1, request_id=ids[0]))).model_version == 1
    answered[1] += 1
    value = server.metrics.registry.get_sample_value
    three = {"model": "toy", "version": "3"}
    compared = answered[1] * len(ROWS)

    def shadow_rows():
        dropped = value("nvisa_shadow_dropped_rows_total", three | {"reason": "busy"})
        return value("nvisa_shadow_rows_total", three) + dropped, dropped

    async with asyncio.timeout(30):
        while shadow_rows()[0] < compared:
            await asyncio.sleep(0.001)
    total, dropped = shadow_rows()
    assert (total, dropped) == (compared, 0)
    assert value("nvisa_shadow_disagreeing_rows_total", three) == 0
    assert value("nvisa_shadow_dropped_rows_total", three | {"reason": "failed"}) == 0
    assert value("nvisa_shadow_disagreement", three) == 0
    rows = {v: value("nvisa_rows_total", {"model": "toy", "version": str(v)}) for v in (1, 2, 3, 4)}
    direct = {version: calls * len(ROWS) for version, calls in answered.items()}
    assert rows == direct | {3: direct[3] + compared, 4: 0}
    for label, version, share in (("stable", 1, 1 - SHARE), ("canary", 2, SHARE), ("shadow", 3, 0)):
        labels = {"model": "toy", "version": str(version), "label": label}
        assert value("nvisa_label_share", labels) == pytest.approx(share)


async def test_a_stream_stays_with_one_version_and_its_id_decides_which(channel):
    stub = ClusterServiceStub(channel)
    by_id = {}
    for stream in [f"stream-{i}" for i in range(12)]:
        messages = [pb.AssignStreamRequest(request=request(request_id=f"{stream}-{n}")) for n in range(8)]
        call = stub.AssignStream(iter(messages), metadata=(("x-request-id", stream),))
        versions = {reply.response.model_version async for reply in call}
        assert versions == {2 if place(stream) < SHARE else 1}
        by_id[stream] = versions.pop()
    assert set(by_id.values()) == {1, 2}
    seen = set()
    for _ in range(40):  # without an id chance decides, once a stream
        messages = [pb.AssignStreamRequest(request=request(request_id=f"m-{n}")) for n in range(4)]
        versions = {reply.response.model_version async for reply in stub.AssignStream(iter(messages))}
        assert len(versions) == 1
        seen |= versions
    assert seen == {1, 2}


@pytest.mark.parametrize("kind", ["sync", "asyncio"])
async def test_cut_arrays_and_streams_of_our_clients_stay_with_one_version(server, kind):
    """Every array goes to one version whole, by its id; and every stream, by the id that it was given."""
    x = random_rows(20_000, seed=1)
    stable = FakeEngine(10).assign(x).clusters
    target = f"127.0.0.1:{server.grpc_port}"
    seen = set()

    def sync_array(name):
        with ClusterClient(target) as client:
            return client.assign(x, model="toy", request_id=name)

    async def array(name):
        if kind == "sync":
            return await asyncio.to_thread(sync_array, name)
        async with AsyncClusterClient(target) as client:
            return await client.assign(x, model="toy", request_id=name)

    for name in [f"call-{i}" for i in range(12)]:
        result = await array(name)
        assert result.version == (2 if place(name) < SHARE else 1)
        assert (result.clusters == stable).all()
        seen.add(result.version)
    assert seen == {1, 2}

    def sync_stream():
        with ClusterClient(target) as client:
            return list(client.assign_stream([ROWS] * 8, model="toy"))

    async def stream():
        if kind == "sync":
            return await asyncio.to_thread(sync_stream)
        async with AsyncClusterClient(target) as client:
            return [answer async for answer in client.assign_stream([ROWS] * 8, model="toy")]

    for _ in range(8):
        answers = await stream()
        assert len({answer.version for answer in answers}) == 1
        name = answers[0].request_id.rpartition("-")[0]
        assert answers[0].version == (2 if place(name) < SHARE else 1)


async def test_models_say_their_labels(channel):
    stub, other = ClusterServiceStub(channel), GRPCInferenceServiceStub(channel)
    models = (await stub.ListModels(pb.ListModelsRequest())).models
    assert [(m.version, list(m.labels), m.is_default) for m in models] == [
        (1, ["stable"], True),
        (2, ["canary"], False),
        (3, ["shadow"], False),
        (4, [], False),
    ]
    for label, version in (("", 1), ("canary", 2)):
        question = pb.GetModelRequest(model_name="toy", model_label=label)
        assert (await stub.GetModel(question)).model.version == version
    for i in [f"call-{i}" for i in range(20)]:
        version = 2 if place(i) < SHARE else 1
        question = pb.GetModelRequest(model_name="toy", request_id=i)
        assert (await stub.GetModel(question)).model.version == version
        question = pb.GetModelRequest(model_name="toy", request_id=i, model_version=4)
        assert (await stub.GetModel(question)).model.version == 4
    assert (await other.ModelReady(oip.ModelReadyRequest(name="toy", version="shadow"))).ready
    metadata = await other.ModelMetadata(oip.ModelMetadataRequest(name="toy", version="canary"))
    assert list(metadata.versions) == ["1", "2", "3", "4"]


@pytest.mark.parametrize(
    ("fields", "code", "says"),
    [
        ({"model_label": "latest"}, CODE.NOT_FOUND, "no label 'latest'; it has stable, canary, shadow"),
        ({"model_label": "stable", "model_version": 1}, CODE.INVALID_ARGUMENT, "set one of them"),
        ({"model_label": "stable", "model_name": "nope"}, CODE.NOT_FOUND, "no model 'nope'"),
    ],
)
async def test_a_wrong_label_is_said(channel, fields, code, says):
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await ClusterServiceStub(channel).Assign(request(**fields))
    assert caught.value.code() is code
    assert says in caught.value.details()


async def test_without_labels_to_go_by_a_model_is_not_ready(tmp_path):
    make_bundle(tmp_path)
    (tmp_path / "toy" / LABELS_FILE).write_text("stable: 9")
    async with (
        in_process(tmp_path, fake_engine, allow_partial=True) as server,
        grpc.aio.insecure_channel(f"127.0.0.1:{server.grpc_port}") as channel,
    ):
        other = GRPCInferenceServiceStub(channel)
        assert not (await other.ModelReady(oip.ModelReadyRequest(name="toy"))).ready
        assert (await other.ModelReady(oip.ModelReadyRequest(name="toy", version="1"))).ready
        (model,) = (await ClusterServiceStub(channel).ListModels(pb.ListModelsRequest())).models
        assert not model.is_default
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await ClusterServiceStub(channel).Assign(request())
        assert caught.value.code() is CODE.UNAVAILABLE
        assert "stable is version 9" in caught.value.details()


async def test_the_index_and_what_load_and_unload_refuse(tmp_path):
    make_bundle(tmp_path)
    (tmp_path / "toy" / "2").mkdir()
    async with (
        in_process(tmp_path, fake_engine, allow_partial=True, model_control="explicit") as server,
        grpc.aio.insecure_channel(f"127.0.0.1:{server.grpc_port}") as channel,
    ):
        stub = GRPCInferenceServiceStub(channel)
        make_bundle(tmp_path, version=3)

        async def index(**fields):
            reply = await stub.RepositoryIndex(oip.RepositoryIndexRequest(**fields))
            return [(m.name, m.version, m.state) for m in reply.models], [m.reason for m in reply.models]

        listed, reasons = await index()
        states = (("1", "READY"), ("2", "UNAVAILABLE"), ("3", "UNAVAILABLE"))
        assert listed == [("toy", version, state) for version, state in states]
        assert reasons[0] == ""
        assert "model.onnx" in reasons[1] or "manifest.json" in reasons[1]
        assert reasons[2] == "not loaded"
        assert (await index(ready=True))[0] == [("toy", "1", "READY")]

        async def refusal(method, message):
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await method(message)
            return caught.value.code(), caught.value.details()

        load, unload = oip.RepositoryModelLoadRequest, oip.RepositoryModelUnloadRequest
        with_config = load(model_name="toy")
        with_config.parameters["config"].string_param = "{}"
        wrong = [
            (
                stub.RepositoryModelLoad,
                with_config,
                CODE.INVALID_ARGUMENT,
                "leave out the parameters 'config'",
            ),
            (
                stub.RepositoryModelLoad,
                load(model_name="no"),
                CODE.NOT_FOUND,
                "in the repository; it has toy",
            ),
            (stub.RepositoryModelUnload, unload(model_name="no"), CODE.NOT_FOUND, "no model 'no' is loaded"),
            (
                stub.RepositoryModelLoad,
                load(repository_name="other"),
                CODE.INVALID_ARGUMENT,
                "this server has one",
            ),
            (
                stub.RepositoryModelLoad,
                load(model_name="toy"),
                CODE.FAILED_PRECONDITION,
                "cannot read bundle",
            ),
        ]
        for method, message, code, says in wrong:
            found, details = await refusal(method, message)
            assert (found, says in details) == (code, True), details
        assert (await index(ready=True))[0] == [("toy", "1", "READY"), ("toy", "3", "READY")]


@pytest.mark.parametrize("ends", ["dies", "is unloaded"])
async def test_the_batcher_of_a_version_that_came_later_is_watched_until_it_is_unloaded(tmp_path, ends):
    make_bundle(tmp_path)
    settings = ServerSettings(
        model_repository=tmp_path, grpc_port=0, metrics_port=0, drain_seconds=0.0, model_control="explicit"
    )
    server = Server(settings, fake_engine)
    running = asyncio.create_task(server.run())
    while not server.is_ready():
        assert not running.done()
        await asyncio.sleep(0.001)
    make_bundle(tmp_path, version=2)
    async with grpc.aio.insecure_channel(f"127.0.0.1:{server.grpc_port}") as channel:
        stub = GRPCInferenceServiceStub(channel)
        await stub.RepositoryModelLoad(oip.RepositoryModelLoadRequest(model_name="toy"))
        if ends == "is unloaded":
            await stub.RepositoryModelUnload(oip.RepositoryModelUnloadRequest(model_name="toy"))
            assert server.is_ready()
            server.stop()
            assert await running == 0
        else:
            (task,) = (task for task in asyncio.all_tasks() if task.get_name() == "batcher of toy/2")
            task.cancel()
            assert await running == 1
