import asyncio
import logging

import grpc
import numpy as np
import pytest

from serving.bundle import read_bundle
from serving.engine import EngineError, FakeEngine
from serving.pb.nvisa.v1 import cluster_pb2 as pb
from serving.pb.nvisa.v1.cluster_pb2_grpc import ClusterServiceStub
from tests.bundles import make_bundle, random_rows
from tests.servers import GatedEngine, fake_engine, in_process

CODE = grpc.StatusCode
ASSIGN = "nvisa.v1.ClusterService/Assign"


@pytest.fixture
async def server(repository):
    async with in_process(repository, fake_engine, max_message_bytes=100_000) as server:
        yield server


@pytest.fixture
async def channel(server):
    async with grpc.aio.insecure_channel(f"127.0.0.1:{server.grpc_port}") as channel:
        yield channel


@pytest.fixture
def stub(channel):
    return ClusterServiceStub(channel)


def tensor(x):
    dtype = pb.DATA_TYPE_UINT8 if x.dtype == np.uint8 else pb.DATA_TYPE_FLOAT32
    return pb.Tensor(dtype=dtype, shape=x.shape, data=x.tobytes())


def request(x=None, **fields):
    x = random_rows(3) if x is None else x
    return pb.AssignRequest(**{"model_name": "toy", "input": tensor(x)} | fields)


def expected_clusters(x):
    return FakeEngine(10).assign(x).clusters


def value(server, name, **labels):
    return server.metrics.registry.get_sample_value(name, labels)


async def refused(call):
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call
    return caught.value.code(), caught.value.details()


async def test_bytes_are_answered_with_bytes(stub):
    x = random_rows(5)
    reply = await stub.Assign(request(x, request_id="r-1"))
    np.testing.assert_array_equal(np.frombuffer(reply.clusters_data, "<i8"), expected_clusters(x))
    np.testing.assert_allclose(np.frombuffer(reply.confidences_data, "<f4"), 0.9)
    assert not reply.clusters
    assert not reply.confidences
    assert not reply.probabilities_data
    assert (reply.request_id, reply.model_name, reply.model_version) == ("r-1", "toy", 2)
    assert reply.n_clusters == 10
    assert 0 < reply.timings.queue_ns + reply.timings.inference_ns <= reply.timings.total_ns


async def test_numbers_are_answered_with_numbers(stub):
    x = random_rows(2)
    tensor = pb.Tensor(shape=x.shape, values=x.ravel().tolist())
    reply = await stub.Assign(request(input=tensor, want_probabilities=True))
    assert list(reply.clusters) == expected_clusters(x).tolist()
    assert np.array(reply.probabilities).reshape(2, 10).argmax(axis=1).tolist() == list(reply.clusters)
    assert not reply.clusters_data


async def test_probabilities_come_when_asked_for(stub):
    reply = await stub.Assign(request(want_probabilities=True))
    probabilities = np.frombuffer(reply.probabilities_data, "<f4").reshape(3, reply.n_clusters)
    np.testing.assert_allclose(probabilities.max(axis=1), np.frombuffer(reply.confidences_data, "<f4"))
    np.testing.assert_allclose(probabilities.sum(axis=1), 1, rtol=1e-5)


@pytest.fixture
async def novelty_stub(novelty_repository):
    """Toy/1 says novelty, toy/2 does not."""
    async with (
        in_process(novelty_repository, fake_engine) as server,
        grpc.aio.insecure_channel(f"127.0.0.1:{server.grpc_port}") as channel,
    ):
        yield ClusterServiceStub(channel)


@pytest.mark.parametrize("probabilities", [False, True])
async def test_novelty_comes_when_asked_for_in_the_form_of_the_question(novelty_stub, probabilities):
    x = random_rows(5)
    expected = FakeEngine(10, novelty=True).assign(x).novelty
    wanted = {"model_version": 1, "want_novelty": True, "want_probabilities": probabilities}
    reply = await novelty_stub.Assign(request(x, **wanted))
    np.testing.assert_array_equal(np.frombuffer(reply.novelty_data, "<f4"), expected)
    assert not reply.novelty
    assert bool(reply.probabilities_data) == probabilities
    numbers = pb.Tensor(shape=x.shape, values=x.ravel().tolist())
    reply = await novelty_stub.Assign(request(input=numbers, **wanted))
    np.testing.assert_allclose(reply.novelty, expected)
    assert not reply.novelty_data
    unasked = await novelty_stub.Assign(request(x, model_version=1))
    assert not unasked.novelty_data
    assert not unasked.novelty


async def test_novelty_of_a_model_that_does_not_say_it_is_an_invalid_argument(novelty_stub):
    code, message = await refused(novelty_stub.Assign(request(want_novelty=True)))
    assert code is CODE.INVALID_ARGUMENT
    assert "toy version 2 does not say novelty" in message
    assert "export --with-novelty" in message


async def test_get_model_tells_of_novelty_if_there_is_any(novelty_stub, novelty_manifest):
    models = (await novelty_stub.ListModels(pb.ListModelsRequest())).models
    assert [model.HasField("novelty") for model in models] == [True, False]
    told = models[0].novelty
    assert (told.score, told.rows, told.cost_ratio) == ("toy", novelty_manifest.novelty.rows, 1.5)
    assert told.max_abs_difference == novelty_manifest.novelty.max_abs_difference


@pytest.mark.parametrize(
    ("columns", "says"),
    [
        ("ab", ""),
        ("", ""),
        ("ba", "columns in another order: number 0 is 'b', not 'a'; send those that the model names"),
        ("ac", "other columns, without ['b'] and with ['c']"),
        ("abc", "names 3 columns, the model takes 2"),
    ],
)
async def test_columns_that_are_named_are_the_models_in_its_order(tmp_path, columns, says):
    make_bundle(tmp_path, shape=(2,), dtype="float32", columns=("a", "b"))
    make_bundle(tmp_path, name="nameless", shape=(2,), dtype="float32")
    async with (
        in_process(tmp_path, fake_engine) as server,
        grpc.aio.insecure_channel(f"127.0.0.1:{server.grpc_port}") as channel,
    ):
        stub = ClusterServiceStub(channel)
        told = await stub.ListModels(pb.ListModelsRequest())
        assert {m.name: list(m.input.columns) for m in told.models} == {"toy": ["a", "b"], "nameless": []}
        asked = request(random_rows(3, (2,), "float32"))
        asked.input.columns.extend(columns)
        if says:
            code, details = await refused(stub.Assign(asked))
            assert code == CODE.INVALID_ARGUMENT
            assert says in details
        else:
            assert len((await stub.Assign(asked)).clusters_data) == 3 * 8
        asked.model_name = "nameless"
        assert len((await stub.Assign(asked)).clusters_data) == 3 * 8


async def test_a_version_can_be_asked_for(stub):
    assert (await stub.Assign(request(model_version=1))).model_version == 1


@pytest.mark.parametrize(
    ("bad", "code", "says"),
    [
        (request(model_name="tyo"), CODE.NOT_FOUND, "no model 'tyo'; this server has features, toy"),
        (request(model_version=3), CODE.NOT_FOUND, "no version 3; it has 1, 2"),
        (request(model_version=-1), CODE.NOT_FOUND, "no version -1"),
        (request(random_rows(3)[:0]), CODE.INVALID_ARGUMENT, "0 rows; send at least one"),
        (
            request(random_rows(3, (8, 9))),
            CODE.INVALID_ARGUMENT,
            "shape [8, 9], the model takes [n_rows, 8, 8]",
        ),
        (
            request(random_rows(3, (64,))),
            CODE.INVALID_ARGUMENT,
            "shape [3, 64], the model takes [n_rows, 8, 8]",
        ),
        (request(random_rows(3, dtype="float32")), CODE.INVALID_ARGUMENT, "float32, the model takes uint8"),
        (request(input=None), CODE.INVALID_ARGUMENT, "no dtype"),
        (request(input=pb.Tensor(dtype=77)), CODE.INVALID_ARGUMENT, "unknown dtype 77"),
        (request(input=pb.Tensor(shape=[1, 8, 8], data=bytes(64))), CODE.INVALID_ARGUMENT, "no dtype"),
        (
            request(input=pb.Tensor(dtype=pb.DATA_TYPE_UINT8, shape=[1, 8, 8], data=bytes(63))),
            CODE.INVALID_ARGUMENT,
            "takes 64 bytes, got 63",
        ),
        (
            request(input=pb.Tensor(dtype=pb.DATA_TYPE_UINT8, shape=[1, 8, 8], data=bytes(64), values=[1])),
            CODE.INVALID_ARGUMENT,
            "both data and values",
        ),
        (
            request(np.array([[0, 1, 2, 3, 4], [0, np.nan, 2, 3, 4]], np.float32), model_name="features"),
            CODE.INVALID_ARGUMENT,
            "row 1 has NaN or infinity",
        ),
        (
            request(input=pb.Tensor(shape=[1, 8, 8], values=[0.5] * 64)),
            CODE.INVALID_ARGUMENT,
            "row 0 has a value that is not a whole number",
        ),
    ],
)
async def test_what_is_wrong_is_said_with_its_code_and_counted(server, stub, bad, code, says):
    got, message = await refused(stub.Assign(bad))
    assert got is code
    assert says in message
    assert value(server, "nvisa_requests_total", method=ASSIGN, code=code.name) == 1
    assert value(server, "nvisa_rows_total", model="toy", version="2") == 0


async def test_a_message_that_is_none_is_an_invalid_argument(server, channel):
    code, message = await refused(channel.unary_unary(f"/{ASSIGN}")(b"\xff\xff\xff"))
    assert code is CODE.INVALID_ARGUMENT
    assert "not the message" in message
    assert value(server, "nvisa_requests_total", method=ASSIGN, code="INVALID_ARGUMENT") == 1


async def test_a_message_over_the_limit_is_refused_with_both_sizes(stub):
    code, message = await refused(stub.Assign(request(random_rows(2000))))
    assert code is CODE.RESOURCE_EXHAUSTED
    assert "100000" in message


async def test_an_engine_failure_is_internal_and_its_details_stay_in_the_log(repository, caplog):
    class Broken(GatedEngine):
        def assign(self, x):
            answer = super().assign(x)
            if x.any():
                raise EngineError("secret detail")
            return answer

    async with (
        in_process(repository, lambda *_: Broken(is_open=True)) as server,
        grpc.aio.insecure_channel(f"127.0.0.1:{server.grpc_port}") as channel,
    ):
        with caplog.at_level(logging.ERROR):
            code, message = await refused(ClusterServiceStub(channel).Assign(request(request_id="r-9")))
    assert code is CODE.INTERNAL
    assert "secret" not in message
    (record,) = (r for r in caplog.records if hasattr(r, "error_id"))
    assert record.error_id in message
    assert record.request_id == "r-9"
    assert value(server, "nvisa_requests_total", method=ASSIGN, code="INTERNAL") == 1


async def busy_server_with(stub, server, engine, calls):
    """Start ``calls`` while the model is held up with one row, and wait until they wait."""
    first = stub.Assign(request(random_rows(1)))
    while value(server, "nvisa_requests_total", method=ASSIGN, code="OK") or not engine.entered.acquire(
        blocking=False
    ):
        await asyncio.sleep(0.001)
    started = [stub.Assign(call, timeout=timeout) for call, timeout in calls]
    rows = sum(call.input.shape[0] for call, _ in calls)
    while value(server, "nvisa_queue_rows", model="toy", version="2") != rows:
        await asyncio.sleep(0.001)
    return first, started


@pytest.fixture
async def gated(repository):
    """A server, a stub and the engine of toy/2, which holds up every call until its gate is opened."""
    engines = {}

    def build(bundle, *_):
        return engines.setdefault((bundle.manifest.name, bundle.manifest.version), GatedEngine(is_open=True))

    async with in_process(repository, build, inference_threads=1, max_queue_rows=10) as server:
        engine = engines["toy", 2]
        while engine.entered.acquire(blocking=False):  # the warm-up's
            pass
        engine.batch_sizes.clear()
        engine.gate.clear()
        try:
            async with grpc.aio.insecure_channel(f"127.0.0.1:{server.grpc_port}") as channel:
                yield server, ClusterServiceStub(channel), engine
        finally:
            engine.gate.set()


async def test_a_full_queue_is_resource_exhausted_with_pushback(gated):
    server, stub, engine = gated
    first, (queued,) = await busy_server_with(stub, server, engine, [(request(random_rows(8)), None)])
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await stub.Assign(request(random_rows(3)))
    assert caught.value.code() is CODE.RESOURCE_EXHAUSTED
    assert int(dict(caught.value.trailing_metadata())["grpc-retry-pushback-ms"]) > 0
    engine.gate.set()
    assert len((await queued).clusters_data) == 8 * 8
    await first


async def never():
    """A caller's message that does not come."""
    await asyncio.sleep(3600)
    yield b""


async def test_while_the_queue_is_full_a_call_is_refused_before_it_is_read(tmp_path):
    make_bundle(tmp_path)
    engine = GatedEngine(is_open=True)
    async with (
        in_process(tmp_path, lambda *_: engine, inference_threads=1, max_queue_rows=8) as server,
        grpc.aio.insecure_channel(f"127.0.0.1:{server.grpc_port}") as channel,
    ):
        engine.gate.clear()
        while engine.entered.acquire(blocking=False):  # the warm-up's
            pass
        stub = ClusterServiceStub(channel)
        calls = [stub.Assign(request(random_rows(1)))]
        while not engine.entered.acquire(blocking=False):
            await asyncio.sleep(0.001)
        calls += [stub.Assign(request(random_rows(4))) for _ in range(2)]
        while value(server, "nvisa_queue_rows", model="toy", version="1") != 8:
            await asyncio.sleep(0.001)
        unread = channel.stream_unary(f"/{ASSIGN}")(never(), metadata=[("x-request-id", "r-7")])
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await unread
        assert caught.value.code() is CODE.RESOURCE_EXHAUSTED
        assert "8 rows wait of at most 8; this call was not read" in caught.value.details()
        trailers = dict(caught.value.trailing_metadata())
        assert int(trailers["grpc-retry-pushback-ms"]) > 0
        assert trailers["x-request-id"] == "r-7"
        assert value(server, "nvisa_requests_total", method=ASSIGN, code="RESOURCE_EXHAUSTED") == 1
        dropped = {"model": "toy", "version": "1", "reason": "overload"}
        assert value(server, "nvisa_dropped_rows_total", **dropped) == 4
        await stub.GetModel(pb.GetModelRequest(model_name="toy"))
        engine.gate.set()
        for call in calls:
            await call
        assert len((await stub.Assign(request(random_rows(4)))).clusters_data) == 4 * 8


async def test_of_several_models_an_unread_call_may_be_for_any(gated):
    server, stub, engine = gated
    calls = [(request(random_rows(5)), None)] * 2
    first, queued = await busy_server_with(stub, server, engine, calls)
    assert server._repository.get("toy", 2).batcher.overload() is not None
    assert server._repository.overload() is None
    engine.gate.set()
    for call in (first, *queued):
        await call


async def test_a_caller_that_leaves_is_never_computed(gated):
    server, stub, engine = gated
    first, (gone,) = await busy_server_with(stub, server, engine, [(request(random_rows(4)), None)])
    gone.cancel()
    while not value(server, "nvisa_requests_total", method=ASSIGN, code="CANCELLED"):
        await asyncio.sleep(0.001)
    engine.gate.set()
    await first
    assert engine.batch_sizes == [1]
    assert value(server, "nvisa_dropped_rows_total", model="toy", version="2", reason="cancelled") == 4


async def test_a_caller_whose_deadline_passes_is_told_and_never_computed(gated):
    server, stub, engine = gated
    first, (late,) = await busy_server_with(stub, server, engine, [(request(random_rows(4)), 0.2)])
    code, _ = await refused(late)
    assert code is CODE.DEADLINE_EXCEEDED
    while not value(server, "nvisa_requests_total", method=ASSIGN, code="DEADLINE_EXCEEDED"):
        await asyncio.sleep(0.001)
    engine.gate.set()
    await first
    assert engine.batch_sizes == [1]


async def test_get_model_tells_what_the_manifest_does(repository, stub):
    reply = await stub.GetModel(pb.GetModelRequest(model_name="toy"))
    model, manifest = reply.model, read_bundle(repository / "toy" / "2").manifest
    assert (model.name, model.version, model.is_default) == ("toy", 2, True)
    assert model.state == pb.MODEL_STATE_READY
    assert model.device == "cpu"
    assert (model.input.dtype, list(model.input.shape)) == (pb.DATA_TYPE_UINT8, [8, 8])
    assert model.input.meaning == "image"
    assert model.n_clusters == manifest.n_clusters
    assert [c.name for c in model.clusters] == [c.name for c in manifest.clusters]
    assert [c.share for c in model.clusters] == [c.share for c in manifest.clusters]
    assert [c.mean_confidence if c.HasField("mean_confidence") else None for c in model.clusters] == [
        c.mean_confidence for c in manifest.clusters
    ]
    assert model.parity.rows == manifest.parity.rows
    assert model.training.objective == "vimco"
    assert dict(model.training.scores) == {"acc": 0.5}
    assert model.graph_sha256 == manifest.graph_sha256
    assert model.created == manifest.created
    assert reply.limits.max_message_bytes == 100_000


async def test_get_model_of_an_unknown_one_is_not_found(stub):
    code, _ = await refused(stub.GetModel(pb.GetModelRequest(model_name="nope")))
    assert code is CODE.NOT_FOUND


async def test_list_models_has_all_versions_and_marks_the_default_ones(stub):
    models = (await stub.ListModels(pb.ListModelsRequest())).models
    assert [(m.name, m.version, m.is_default) for m in models] == [
        ("features", 1, True),
        ("toy", 1, False),
        ("toy", 2, True),
    ]


async def test_calls_and_rows_are_counted_as_they_were_sent(server, stub):
    sent = [random_rows(n, seed=n) for n in (1, 2, 30)]
    for x in sent:
        await stub.Assign(request(x))
    await refused(stub.Assign(request(model_name="nope")))
    await stub.ListModels(pb.ListModelsRequest())
    toy = {"model": "toy", "version": "2"}
    assert value(server, "nvisa_requests_total", method=ASSIGN, code="OK") == 3
    assert value(server, "nvisa_requests_total", method=ASSIGN, code="NOT_FOUND") == 1
    assert value(server, "nvisa_request_seconds_count", method=ASSIGN) == 4
    assert value(server, "nvisa_requests_total", method="nvisa.v1.ClusterService/ListModels", code="OK") == 1
    assert value(server, "nvisa_rows_total", **toy) == 33
    assert value(server, "nvisa_executions_total", **toy) == 3
    assert value(server, "nvisa_queue_seconds_count", **toy) == 3
    assert value(server, "nvisa_inference_seconds_count", **toy) == 3
    assert value(server, "nvisa_padding_rows_total", **toy) == 0
    assert value(server, "nvisa_confidence_count", **toy) == 33
    counts = [value(server, "nvisa_cluster_rows_total", **toy, cluster=str(k)) for k in range(10)]
    clusters = np.concatenate([expected_clusters(x) for x in sent])
    assert counts == np.bincount(clusters, minlength=10).tolist()


async def test_every_call_is_in_the_debug_log_with_its_request_id(stub, caplog):
    with caplog.at_level(logging.DEBUG, "serving"):
        await stub.Assign(request(request_id="r-5"))
    (record,) = (r for r in caplog.records if r.message == "call")
    assert (record.method, record.code, record.request_id) == (ASSIGN, "OK", "r-5")
