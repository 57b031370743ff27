"""Spans of real calls over real sockets, as an exporter in memory gets them."""

from __future__ import annotations

import asyncio
import io
import json
import logging
import subprocess
import sys
from concurrent import futures
from contextlib import asynccontextmanager

import grpc
import pytest

from serving.engine import EngineError, FakeEngine
from serving.logs import set_up_logs
from serving.pb.inference import grpc_service_pb2 as oip
from serving.pb.inference.grpc_service_pb2_grpc import GRPCInferenceServiceStub
from serving.pb.nvisa.v1 import cluster_pb2 as pb
from serving.pb.nvisa.v1.cluster_pb2_grpc import ClusterServiceStub
from serving.server import Server
from serving.settings import ServerSettings
from serving.start_error import StartError
from tests.bundles import random_rows
from tests.servers import ROOT, GatedEngine, ServerProcess, environment, in_process, run_to_end

pytest.importorskip("opentelemetry.sdk", reason="the extra `tracing` is not installed")

from opentelemetry.proto.collector.trace.v1 import trace_service_pb2, trace_service_pb2_grpc
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import SpanKind, StatusCode

from serving.tracing import TraceIds, Tracing

ASSIGN = "nvisa.v1.ClusterService/Assign"
TRACE, CALLER = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
SAMPLED = [("traceparent", f"00-{TRACE}-{CALLER}-01")]
NOT_SAMPLED = [("traceparent", f"00-{TRACE}-{CALLER}-00")]


@pytest.fixture
def exporter():
    return InMemorySpanExporter()


@pytest.fixture
def tracing(exporter):
    provider = TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    return Tracing(provider)


@pytest.fixture
def traced(repository, monkeypatch, tracing):
    """``traced(engine)`` serves ``engine``, and gives a channel."""
    monkeypatch.setattr("serving.server._start_tracing", lambda: tracing)

    @asynccontextmanager
    async def serve(engine=None, **settings):
        engine = engine or FakeEngine(10)
        async with (
            in_process(repository, lambda *_: engine, tracing=True, **settings) as server,
            grpc.aio.insecure_channel(f"127.0.0.1:{server.grpc_port}") as channel,
        ):
            yield channel

    return serve


def request(rows=3, **fields):
    x = random_rows(rows)
    tensor = pb.Tensor(dtype=pb.DATA_TYPE_UINT8, shape=x.shape, data=x.tobytes())
    return pb.AssignRequest(**{"model_name": "toy", "model_version": 1, "input": tensor} | fields)


def by_name(exporter):
    named = {}
    for span in exporter.get_finished_spans():
        named.setdefault(span.name, []).append(span)
    return named


async def test_a_call_is_traced_from_its_callers_span_through_queue_and_model(traced, exporter):
    async with traced() as channel:
        await ClusterServiceStub(channel).Assign(request(), metadata=SAMPLED)
    spans = by_name(exporter)
    assert set(spans) == {ASSIGN, "queue", "model"}
    ([call], [queue], [model]) = spans[ASSIGN], spans["queue"], spans["model"]
    assert {f"{span.context.trace_id:032x}" for span in (call, queue, model)} == {TRACE}
    assert f"{call.parent.span_id:016x}" == CALLER
    assert queue.parent.span_id == model.parent.span_id == call.context.span_id
    assert call.kind is SpanKind.SERVER
    assert dict(call.attributes) == {
        "rpc.system": "grpc",
        "rpc.service": "nvisa.v1.ClusterService",
        "rpc.method": "Assign",
        "rpc.grpc.status_code": 0,
    }
    assert dict(queue.attributes) == {
        "nvisa.model": "toy",
        "nvisa.model_version": 1,
        "nvisa.rows": 3,
        "nvisa.reached_model": True,
    }
    assert model.attributes["nvisa.batch.rows"] == 3
    # One after the other, within the call; the clocks of two threads may differ in their last digits.
    slack = 1_000_000
    assert call.start_time <= queue.start_time + slack
    assert queue.end_time <= model.start_time + slack
    assert model.end_time <= call.end_time + slack


async def test_the_other_protocol_is_traced_and_a_call_without_a_parent_begins_a_trace(traced, exporter):
    x = random_rows(2)
    tensor = oip.ModelInferRequest.InferInputTensor(name="x", datatype="UINT8", shape=x.shape)
    async with traced() as channel:
        await GRPCInferenceServiceStub(channel).ModelInfer(
            oip.ModelInferRequest(model_name="toy", inputs=[tensor], raw_input_contents=[x.tobytes()])
        )
    spans = by_name(exporter)
    [call] = spans["inference.GRPCInferenceService/ModelInfer"]
    assert call.parent is None
    assert spans["model"][0].context.trace_id == call.context.trace_id


async def test_a_caller_that_does_not_sample_is_not_traced(traced, exporter):
    async with traced() as channel:
        await ClusterServiceStub(channel).Assign(request(), metadata=NOT_SAMPLED)
    assert exporter.get_finished_spans() == ()


async def test_a_split_call_has_a_span_for_every_run(traced, exporter):
    async with traced(max_batch_rows=4) as channel:
        await ClusterServiceStub(channel).Assign(request(10))
    spans = by_name(exporter)
    assert sorted(span.attributes["nvisa.batch.rows"] for span in spans["model"]) == [2, 4, 4]
    assert len(spans["queue"]) == 1


class Failing(FakeEngine):
    """Answers the runs that warm it up, then fails."""

    broken = False

    def assign(self, x):
        if self.broken:
            raise EngineError("secret details")
        return super().assign(x)


async def test_a_failing_model_marks_its_span_and_the_calls_without_details(traced, exporter):
    engine = Failing(10)
    async with traced(engine) as channel:
        engine.broken = True
        with pytest.raises(grpc.aio.AioRpcError):
            await ClusterServiceStub(channel).Assign(request())
    spans = by_name(exporter)
    assert spans["model"][0].status.status_code is StatusCode.ERROR
    [call] = spans[ASSIGN]
    assert call.attributes["rpc.grpc.status_code"] == 13
    assert call.status.status_code is StatusCode.ERROR
    assert "secret" not in "".join(span.to_json() for span in exporter.get_finished_spans())


async def test_a_callers_mistake_has_its_code_and_is_no_error_of_the_server(traced, exporter):
    async with traced() as channel:
        with pytest.raises(grpc.aio.AioRpcError):
            await ClusterServiceStub(channel).Assign(request(model_name="nope"))
    [call] = exporter.get_finished_spans()
    assert call.attributes["rpc.grpc.status_code"] == 5
    assert call.status.status_code is StatusCode.UNSET


async def test_a_call_that_left_has_waited_and_never_reached_the_model(traced, exporter):
    engine = GatedEngine(is_open=True)
    async with traced(engine, inference_threads=1, max_batch_rows=3) as channel:
        stub = ClusterServiceStub(channel)
        while engine.entered.acquire(blocking=False):
            pass
        engine.gate.clear()
        # One runs, and a full one is prepared: the third waits in the queue.
        running = [asyncio.ensure_future(stub.Assign(request())) for _ in range(2)]
        assert await asyncio.to_thread(engine.entered.acquire, timeout=30)
        with pytest.raises(grpc.aio.AioRpcError):
            await stub.Assign(request(), timeout=0.3)
        engine.gate.set()
        await asyncio.gather(*running)
    spans = by_name(exporter)
    # The caller gives up at its deadline, which may reach the server just before its own clock says so.
    [late] = [span for span in spans[ASSIGN] if span.attributes["rpc.grpc.status_code"] in (1, 4)]
    is_late = late.attributes["rpc.grpc.status_code"] == 4
    assert (late.status.status_code is StatusCode.ERROR) == is_late
    [queue] = [span for span in spans["queue"] if span.parent.span_id == late.context.span_id]
    assert queue.attributes["nvisa.reached_model"] is False
    assert len(spans["model"]) == 2


async def test_log_lines_of_a_traced_call_name_the_trace(traced):
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    stream = io.StringIO()
    try:
        async with traced() as channel:
            set_up_logs("json", "debug", stream)
            root.handlers[0].addFilter(TraceIds())
            await ClusterServiceStub(channel).Assign(request(), metadata=SAMPLED)
    finally:
        root.handlers[:] = handlers
        root.setLevel(level)
    [line] = [
        entry for entry in map(json.loads, stream.getvalue().splitlines()) if entry["message"] == "call"
    ]
    assert line["trace_id"] == TRACE
    assert len(line["span_id"]) == 16


def test_without_tracing_nothing_of_opentelemetry_is_imported(repository):
    code = (
        "import sys, serving.cli, serving.server, serving.labelling.cli, serving.client;"
        "sys.exit(any(name.partition('.')[0] == 'opentelemetry' for name in sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, env=environment(), check=False)
    assert done.returncode == 0


@pytest.mark.parametrize(
    ("name", "value", "says"),
    [
        ("OTEL_EXPORTER_OTLP_PROTOCOL", "carrier-pigeon", "set it to grpc or http/protobuf"),
        ("OTEL_TRACES_EXPORTER", "zipkin", "set it to otlp, console or none"),
    ],
)
def test_settings_that_cannot_be_followed_stop_the_start(monkeypatch, name, value, says):
    monkeypatch.setenv(name, value)
    with pytest.raises(StartError, match=says):
        Tracing.from_environment()


async def test_without_the_packages_the_start_says_what_to_install(repository, monkeypatch):
    monkeypatch.setitem(sys.modules, "serving.tracing", None)
    with pytest.raises(StartError, match=r"pip install 'nvisa\[tracing\]'"):
        Server(ServerSettings(model_repository=repository, tracing=True))


def test_traces_reach_a_collector_where_the_environment_says(repository, tmp_path):
    """The real exporter, into a collector of a few lines, from a server that is a process of its own."""
    received = []

    class Collector(trace_service_pb2_grpc.TraceServiceServicer):
        def Export(self, request, context):
            received.append(request)
            return trace_service_pb2.ExportTraceServiceResponse()

    collector = grpc.server(futures.ThreadPoolExecutor(2))
    trace_service_pb2_grpc.add_TraceServiceServicer_to_server(Collector(), collector)
    port = collector.add_insecure_port("127.0.0.1:0")
    collector.start()
    variables = {"OTEL_EXPORTER_OTLP_ENDPOINT": f"http://127.0.0.1:{port}", "OTEL_SERVICE_NAME": "clusters"}
    try:
        with pytest.MonkeyPatch.context() as patch:
            for name, value in variables.items():
                patch.setenv(name, value)
            with ServerProcess(repository, tmp_path, "--tracing") as server:
                with grpc.insecure_channel(server.grpc_target) as channel:
                    ClusterServiceStub(channel).Assign(request(), metadata=SAMPLED, timeout=30)
                server.terminate()
                assert server.wait() == 0  # what was not sent yet is sent at the end
    finally:
        collector.stop(None).wait()
    spans, services = [], set()
    for batch in (each for message in received for each in message.resource_spans):
        services |= {a.value.string_value for a in batch.resource.attributes if a.key == "service.name"}
        spans += [span for scope in batch.scope_spans for span in scope.spans]
    assert services == {"clusters"}
    assert {span.name for span in spans} == {ASSIGN, "queue", "model"}
    assert {span.trace_id.hex() for span in spans} == {TRACE}


def test_a_wrong_variable_is_one_clear_line_and_no_traceback(repository):
    ended = run_to_end(
        ["--model-repository", str(repository), "--tracing", "--grpc-port", "0"],
        env={"OTEL_TRACES_EXPORTER": "zipkin"},
    )
    assert ended.returncode == 1
    assert "OTEL_TRACES_EXPORTER is 'zipkin'" in ended.stderr
    assert "Traceback" not in ended.stderr
