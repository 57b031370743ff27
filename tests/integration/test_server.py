"""The real server as a process of its own: ONNX Runtime, sockets, signals, exit statuses."""

import hashlib
import json
import os
import socket
import threading
import time

import grpc
import numpy as np
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from serving.bundle import GRAPH_FILE, MANIFEST_FILE, read_bundle
from serving.engine import OnnxEngine
from serving.pb.nvisa.v1 import cluster_pb2 as pb
from serving.pb.nvisa.v1.cluster_pb2_grpc import ClusterServiceStub
from serving.runtime import import_onnxruntime
from tests.bundles import make_bundle, random_rows
from tests.servers import TIMEOUT, ServerProcess, run_to_end

CODE = grpc.StatusCode
NATIVE = "nvisa.v1.ClusterService"
SERVING = health_pb2.HealthCheckResponse.SERVING
NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING


@pytest.fixture(scope="module")
def repository(tmp_path_factory):
    path = tmp_path_factory.mktemp("models")
    make_bundle(path)
    make_bundle(path, name="features", shape=(5,), dtype="float32", seed=1)
    return path


@pytest.fixture(scope="module")
def server(repository, tmp_path_factory):
    with ServerProcess(repository, tmp_path_factory.mktemp("server")) as server:
        yield server


@pytest.fixture(scope="module")
def stub(server):
    with grpc.insecure_channel(server.grpc_target) as channel:
        yield ClusterServiceStub(channel)


def request(x, model="toy", **fields):
    dtype = pb.DATA_TYPE_UINT8 if x.dtype == np.uint8 else pb.DATA_TYPE_FLOAT32
    return pb.AssignRequest(
        model_name=model, input=pb.Tensor(dtype=dtype, shape=x.shape, data=x.tobytes()), **fields
    )


def health(target, service):
    with grpc.insecure_channel(target) as channel:
        return (
            health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest(service=service)).status
        )


@pytest.mark.parametrize(
    ("model", "shape", "dtype"), [("toy", (8, 8), "uint8"), ("features", (5,), "float32")]
)
@pytest.mark.parametrize("n", [1, 7, 256, 1000])
def test_answers_are_the_in_process_engines(repository, stub, model, shape, dtype, n):
    x = random_rows(n, shape, dtype, seed=n)
    expected = OnnxEngine(read_bundle(repository / model / "1"), "cpu").assign(x)
    reply = stub.Assign(request(x, model, want_probabilities=True), timeout=TIMEOUT)
    np.testing.assert_array_equal(np.frombuffer(reply.clusters_data, "<i8"), expected.clusters)
    probabilities = np.frombuffer(reply.probabilities_data, "<f4").reshape(n, 10)
    np.testing.assert_allclose(probabilities, expected.probabilities, rtol=1e-5, atol=1e-7)
    np.testing.assert_allclose(np.frombuffer(reply.confidences_data, "<f4"), probabilities.max(axis=1))


def test_messages_over_grpcs_four_megabytes_pass_without_a_setting(repository, stub):
    rows = random_rows(65_536)
    assert rows.nbytes >= 4 << 20
    reply = stub.Assign(request(rows), timeout=TIMEOUT)
    expected = OnnxEngine(read_bundle(repository / "toy" / "1"), "cpu").assign(rows)
    np.testing.assert_array_equal(np.frombuffer(reply.clusters_data, "<i8"), expected.clusters)


def test_many_callers_at_once_each_get_their_own_answer(repository, stub):
    engine = OnnxEngine(read_bundle(repository / "toy" / "1"), "cpu")
    inputs = [random_rows(1 + i % 5, seed=i) for i in range(200)]
    calls = [stub.Assign.future(request(x, request_id=str(i))) for i, x in enumerate(inputs)]
    for i, (x, call) in enumerate(zip(inputs, calls, strict=True)):
        reply = call.result(TIMEOUT)
        assert reply.request_id == str(i)
        np.testing.assert_array_equal(np.frombuffer(reply.clusters_data, "<i8"), engine.assign(x).clusters)


NAN = np.array([[0, 0, 0, 0, 0], [0, np.nan, 0, 0, 0]], np.float32)


@pytest.mark.parametrize(
    ("bad", "code", "says"),
    [
        (request(random_rows(1), "nope"), CODE.NOT_FOUND, "no model 'nope'; this server has features, toy"),
        (request(random_rows(1), model_version=2), CODE.NOT_FOUND, "no version 2; it has 1"),
        (request(random_rows(1, (9, 9))), CODE.INVALID_ARGUMENT, "the model takes [n_rows, 8, 8]"),
        (request(random_rows(1, dtype="float32")), CODE.INVALID_ARGUMENT, "the model takes uint8"),
        (request(random_rows(1)[:0]), CODE.INVALID_ARGUMENT, "send at least one"),
        (request(NAN, "features"), CODE.INVALID_ARGUMENT, "row 1 has NaN or infinity"),
        (request(NAN[:1] + 1e38, "features"), CODE.INVALID_ARGUMENT, "row 0: the model has no finite"),
        (
            pb.AssignRequest(
                model_name="toy", input=pb.Tensor(dtype=pb.DATA_TYPE_UINT8, shape=[2, 8, 8], data=bytes(127))
            ),
            CODE.INVALID_ARGUMENT,
            "takes 128 bytes, got 127",
        ),
        (request(np.zeros((64 * 2**14 + 1, 8, 8), np.uint8)), CODE.RESOURCE_EXHAUSTED, "larger than max"),
    ],
)
def test_bad_requests(stub, bad, code, says):
    with pytest.raises(grpc.RpcError) as caught:
        stub.Assign(bad, timeout=TIMEOUT)
    assert caught.value.code() is code
    assert says in caught.value.details()


def test_it_says_where_it_listens_what_it_loaded_and_with_which_settings(server):
    log = {entry["message"]: entry for entry in server.log()}
    assert log["settings"]["max_batch_rows"] == 256
    assert log["ready"]["models"] == ["features/1", "toy/1"]
    assert server.grpc_target.endswith(f":{log['ready']['grpc_port']}")


def test_metrics_count_what_was_sent(repository, tmp_path):
    with ServerProcess(repository, tmp_path) as server, grpc.insecure_channel(server.grpc_target) as channel:
        stub = ClusterServiceStub(channel)
        for n in (3, 300):  # the second takes two runs
            stub.Assign(request(random_rows(n)), timeout=TIMEOUT)
        with pytest.raises(grpc.RpcError):
            stub.Assign(request(random_rows(1), "nope"), timeout=TIMEOUT)
        metrics = server.get("/metrics")[1].splitlines()
    assert f'nvisa_requests_total{{code="OK",method="{NATIVE}/Assign"}} 2.0' in metrics
    assert f'nvisa_requests_total{{code="NOT_FOUND",method="{NATIVE}/Assign"}} 1.0' in metrics
    toy = 'model="toy",version="1"'
    assert f"nvisa_rows_total{{{toy}}} 303.0" in metrics
    assert f"nvisa_executions_total{{{toy}}} 3.0" in metrics
    assert f"nvisa_model_on_cuda{{{toy}}} 0.0" in metrics
    assert f"nvisa_confidence_count{{{toy}}} 303.0" in metrics
    assert "nvisa_ready 1.0" in metrics


def test_not_ready_before_it_is_warm_ready_while_it_serves(tmp_path):
    bundle = make_bundle(tmp_path / "models")
    graph = (bundle / GRAPH_FILE).read_bytes()
    (bundle / GRAPH_FILE).unlink()
    os.mkfifo(bundle / GRAPH_FILE)  # loading now lasts until someone writes the graph
    with ServerProcess(tmp_path / "models", tmp_path, wait_ready=False) as server:
        assert server.get("/healthz") == (200, "alive\n")
        assert server.get("/readyz") == (503, "loading models\n")
        assert health(server.grpc_target, "") == SERVING
        assert health(server.grpc_target, NATIVE) == NOT_SERVING
        with grpc.insecure_channel(server.grpc_target) as channel:
            stub = ClusterServiceStub(channel)
            with pytest.raises(grpc.RpcError) as caught:
                stub.Assign(request(random_rows(1)), timeout=TIMEOUT)
            assert caught.value.code() is CODE.UNAVAILABLE
            (bundle / GRAPH_FILE).write_bytes(graph)
            while server.get("/readyz")[0] != 200:
                time.sleep(0.005)
            assert health(server.grpc_target, NATIVE) == SERVING
            assert len(stub.Assign(request(random_rows(1)), timeout=TIMEOUT).clusters_data) == 8
        server.terminate()
        assert server.wait() == 0


def test_after_sigterm_it_is_not_ready_answers_what_is_in_flight_and_ends_well(repository, tmp_path):
    flags = ("--max-queue-delay", "1", "--drain-seconds", "0.3")  # the delay keeps a call in flight
    with (
        ServerProcess(repository, tmp_path, *flags) as server,
        grpc.insecure_channel(server.grpc_target) as channel,
    ):
        call = ClusterServiceStub(channel).Assign.future(request(random_rows(2)))
        while 'nvisa_queue_rows{model="toy",version="1"} 2.0' not in server.get("/metrics")[1]:
            time.sleep(0.001)
        server.terminate()
        while (ready := server.get("/readyz"))[0] == 200:
            time.sleep(0.001)
        assert ready == (503, "draining\n")
        assert health(server.grpc_target, "") == SERVING
        assert health(server.grpc_target, NATIVE) == NOT_SERVING
        assert len(call.result(TIMEOUT).clusters_data) == 16
        assert server.wait() == 0
    assert [entry["message"] for entry in server.log()][-2:] == ["draining", "stopped"]


def test_a_second_signal_ends_the_wait_for_load_balancers(repository, tmp_path):
    with ServerProcess(repository, tmp_path, "--drain-seconds", "1000") as server:
        server.terminate()
        while server.get("/readyz")[0] == 200:
            time.sleep(0.001)
        server.terminate()
        assert server.wait() == 0


def damage_hash(bundle):
    path = bundle / GRAPH_FILE
    path.write_bytes(path.read_bytes()[:-1])


def damage_graph(bundle):
    graph = b"this is no graph"
    (bundle / GRAPH_FILE).write_bytes(graph)
    manifest = json.loads((bundle / MANIFEST_FILE).read_text())
    manifest["graph_sha256"] = hashlib.sha256(graph).hexdigest()
    (bundle / MANIFEST_FILE).write_text(json.dumps(manifest))


def damage_manifest(bundle):
    (bundle / MANIFEST_FILE).write_text("{")


@pytest.mark.parametrize(
    ("damage", "says"),
    [
        (damage_hash, "the manifest says"),
        (damage_graph, "ONNX Runtime cannot load the graph"),
        (damage_manifest, "manifest.json"),
    ],
)
def test_a_broken_bundle_stops_the_start_with_one_clear_error(tmp_path, damage, says):
    damage(make_bundle(tmp_path))
    ended = run_to_end(flags(tmp_path))
    assert ended.returncode == 1
    assert says in last_log(ended)["message"]
    assert "Traceback" not in ended.stderr


def flags(repository, *more):
    ports = ("--grpc-port", "0", "--metrics-port", "0", "--drain-seconds", "0")
    return ["--model-repository", str(repository), *ports, *more]


def last_log(ended):
    errors = [json.loads(line) for line in ended.stderr.splitlines() if line.startswith("{")]
    return next(entry for entry in reversed(errors) if entry["level"] == "error")


def test_an_empty_or_missing_repository_stops_the_start(tmp_path):
    for path, says in ((tmp_path, "has no bundle"), (tmp_path / "missing", "not a directory")):
        ended = run_to_end(flags(path))
        assert ended.returncode == 1
        assert says in last_log(ended)["message"]


@pytest.mark.skipif(
    "CUDAExecutionProvider" in import_onnxruntime().get_available_providers(),
    reason="this onnxruntime has CUDA",
)
@pytest.mark.parametrize("more", [(), ("--tensorrt",)])
def test_cuda_is_refused_where_there_is_none(repository, more):
    ended = run_to_end(flags(repository, "--device", "cuda", *more))
    assert ended.returncode == 1
    assert "device=cuda" in last_log(ended)["message"]
    assert "--device cpu" in last_log(ended)["message"]


def test_a_taken_port_stops_the_start(repository):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        for flag in ("--grpc-port", "--metrics-port"):
            ended = run_to_end(flags(repository, flag, port))
            assert ended.returncode == 1
            assert flag in last_log(ended)["message"]


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ([], "--model-repository is missing"),
        (["--model-repository", "m", "--device", "tpu"], "--device"),
        (["--model-repository", "m", "--what"], "--what"),
    ],
)
def test_wrong_settings_are_one_line_and_exit_status_two(arguments, says):
    ended = run_to_end(arguments)
    assert ended.returncode == 2
    assert ended.stderr.startswith("nvisa-serve: ")
    assert says in ended.stderr
    assert ended.stderr.count("\n") == 1


def test_a_client_that_vanishes_takes_nothing_down(server, stub):
    host, port = server.grpc_target.split(":")
    for garbage in (b"", b"GET / HTTP/1.1\r\n\r\n", os.urandom(1000)):
        with socket.create_connection((host, int(port))) as connection:
            connection.sendall(garbage)
    done = threading.Event()
    call = stub.Assign.future(request(random_rows(1)))
    call.add_done_callback(lambda _: done.set())
    call.cancel()
    assert done.wait(TIMEOUT)
    assert len(stub.Assign(request(random_rows(1)), timeout=TIMEOUT).clusters_data) == 8
