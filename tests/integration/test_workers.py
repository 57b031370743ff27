"""``--workers``: several processes that answer as one server. What happens when they die: tests/chaos."""

import os
import signal
import socket
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import grpc
import numpy as np
import pytest
from google.protobuf import json_format
from grpc_health.v1 import health_pb2
from prometheus_client.parser import text_string_to_metric_families

from serving.bundle import read_bundle
from serving.drift import noise_of_index, population_stability_index
from serving.engine import OnnxEngine
from serving.pb.nvisa.v1 import cluster_pb2 as pb
from serving.pb.nvisa.v1.cluster_pb2_grpc import ClusterServiceStub
from tests.bundles import make_bundle, random_rows
from tests.integration.test_server import NATIVE, damage_hash, flags, health, last_log, request
from tests.servers import TIMEOUT, ServerProcess, run_to_end

TOY = (("model", "toy"), ("version", "1"))
N_CALLS, ROWS = 60, 5


@pytest.fixture(scope="module")
def repository(tmp_path_factory):
    path = tmp_path_factory.mktemp("models")
    make_bundle(path)
    return path


@pytest.fixture(scope="module")
def server(repository, tmp_path_factory):
    more = ("--workers", "2", "--log-level", "debug", "--health-port", "0", "--max-queue-rows", "1000")
    with ServerProcess(repository, tmp_path_factory.mktemp("server"), *more) as server:
        yield server


@pytest.fixture(scope="module")
def sent(server, repository):
    """The clusters of all rows sent, each call over a connection of its own; each was the engine's answer."""
    engine = OnnxEngine(read_bundle(repository / "toy" / "1"), "cpu")

    def send(i):
        x = random_rows(ROWS, seed=i)
        with grpc.insecure_channel(server.grpc_target, [("grpc.use_local_subchannel_pool", 1)]) as channel:
            reply = ClusterServiceStub(channel).Assign(request(x), timeout=TIMEOUT)
        expected = engine.assign(x).clusters
        np.testing.assert_array_equal(np.frombuffer(reply.clusters_data, "<i8"), expected)
        return expected

    with ThreadPoolExecutor(4) as pool:
        return np.concatenate(list(pool.map(send, range(N_CALLS))))


def samples(server):
    return {
        (sample.name, tuple(sorted(sample.labels.items()))): sample.value
        for family in text_string_to_metric_families(server.get("/metrics")[1])
        for sample in family.samples
    }


def test_both_answer_and_each_line_of_the_log_says_who(server, sent):
    calls = [entry["worker"] for entry in server.log() if entry["message"] == "call"]
    assert len(calls) == N_CALLS
    # Of 60 connections that the system deals out at random, one in 2^59 times all go to one worker.
    assert set(calls) == {0, 1}
    assert {entry.get("worker") for entry in server.log() if entry["message"] == "ready"} == {None, 0, 1}


def test_one_answer_for_prometheus_counts_what_all_workers_did(server, repository, sent):
    shown = samples(server)
    labels = (("code", "OK"), ("method", f"{NATIVE}/Assign"))
    assert shown["nvisa_requests_total", labels] == N_CALLS
    assert shown["nvisa_rows_total", TOY] == len(sent)
    assert shown["nvisa_confidence_count", TOY] == len(sent)
    counts = np.bincount(sent, minlength=10)
    for cluster, count in enumerate(counts):
        assert shown["nvisa_cluster_rows_total", (("cluster", str(cluster)), *TOY)] == count
    reference = read_bundle(repository / "toy" / "1").manifest.reference
    index = population_stability_index(counts, np.asarray(reference.cluster_shares))
    assert shown["nvisa_cluster_drift_psi", TOY] == pytest.approx(index)
    assert shown["nvisa_cluster_drift_noise_psi", TOY] == pytest.approx(
        noise_of_index(10, len(sent), reference.rows)
    )
    assert shown["nvisa_cluster_drift_rows", TOY] == len(sent)
    assert shown["nvisa_queue_limit_rows", TOY] == 2000
    assert shown["nvisa_ready", ()] == 1
    assert (shown["nvisa_workers", ()], shown["nvisa_workers_ready", ()]) == (2, 2)
    assert shown["nvisa_worker_restarts_total", ()] == 0
    pages = [int(Path(f"/proc/{pid}/statm").read_text().split()[1]) for pid in server.workers()]
    assert shown["process_resident_memory_bytes", ()] > sum(pages) * os.sysconf("SC_PAGE_SIZE")


def test_probes_find_what_they_find_at_one_process(server):
    assert server.get("/readyz") == (200, "ready\n")
    assert server.get("/healthz") == (200, "alive\n")
    assert health(server.health_target, NATIVE) == health_pb2.HealthCheckResponse.SERVING


def test_the_supervisor_loads_neither_a_model_nor_grpc(server):
    maps = Path(f"/proc/{server.process.pid}/maps").read_text()
    assert "onnxruntime" not in maps
    assert "cygrpc" not in maps
    assert all("onnxruntime" in Path(f"/proc/{pid}/maps").read_text() for pid in server.workers())


def test_a_second_server_does_not_join_the_ports(server, repository):
    for flag, port in (("--grpc-port", server.grpc_target), ("--metrics-port", server.http)):
        ended = run_to_end(flags(repository, "--workers", "2", flag, port.rpartition(":")[2]))
        assert ended.returncode == 1
        assert flag in last_log(ended)["message"]
        assert "taken" in last_log(ended)["message"] or "in use" in last_log(ended)["message"]


def test_a_broken_bundle_stops_the_start_with_one_clear_error(tmp_path):
    damage_hash(make_bundle(tmp_path))
    ended = run_to_end(flags(tmp_path, "--workers", "2"))
    assert ended.returncode == 1
    assert last_log(ended)["message"].startswith("cannot start: ")
    assert ended.stderr.count('"level": "error"') == 1
    assert ended.stderr.count("the manifest says") == 1
    assert "Traceback" not in ended.stderr


def test_workers_end_with_their_supervisor_and_finish_what_is_in_flight(repository, tmp_path):
    more = ("--workers", "2", "--max-queue-delay", "1")  # the delay keeps a call in flight
    with (
        ServerProcess(repository, tmp_path, *more) as server,
        grpc.insecure_channel(server.grpc_target) as channel,
    ):
        workers = server.workers()
        call = ClusterServiceStub(channel).Assign.future(request(random_rows(2)))
        while samples(server)["nvisa_queue_rows", TOY] != 2:
            time.sleep(0.005)
        server.process.send_signal(signal.SIGKILL)
        assert len(call.result(TIMEOUT).clusters_data) == 16
        end = time.monotonic() + TIMEOUT
        while any(map(is_running, workers)):
            assert time.monotonic() < end
            time.sleep(0.01)
        host, port = server.grpc_target.split(":")
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection((host, int(port)))
        assert "the supervisor is gone; this worker ends, too" in {entry["message"] for entry in server.log()}


def is_running(pid):
    """Whether process ``pid`` has not ended; nobody may have waited for it yet."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def test_get_model_says_the_same_whichever_worker_answers(server):
    replies = set()
    for _ in range(8):
        with grpc.insecure_channel(server.grpc_target, [("grpc.use_local_subchannel_pool", 1)]) as channel:
            reply = ClusterServiceStub(channel).GetModel(
                pb.GetModelRequest(model_name="toy"), timeout=TIMEOUT
            )
            replies.add(json_format.MessageToJson(reply))
    assert len(replies) == 1
