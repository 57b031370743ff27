"""The server on a GPU: it refuses to start without, serves from it, and loses readiness with it."""

from __future__ import annotations

import json
import time

import numpy as np
import pytest

from serving.bundle import read_bundle
from serving.client import ClusterClient, ClusterServiceError
from serving.engine import OnnxEngine
from serving.runtime import CUDA, import_onnxruntime
from tests.bundles import make_bundle, random_rows
from tests.chaos.load import Answers, Load
from tests.servers import TIMEOUT, ServerProcess, run_to_end

pytestmark = pytest.mark.gpu

GRAPHS = pytest.mark.parametrize("graphs", [(), ("--cuda-graphs",)], ids=["no graphs", "graphs"])
NO_DEVICE = {"CUDA_VISIBLE_DEVICES": "-1"}


@pytest.fixture(autouse=True)
def _onnxruntime():
    if CUDA not in import_onnxruntime().get_available_providers():
        pytest.skip("this onnxruntime has no CUDA: install onnxruntime-gpu in place of onnxruntime")


@pytest.fixture
def repository(tmp_path):
    make_bundle(tmp_path / "models")
    return tmp_path / "models"


def flags(repository, *more):
    ports = ("--grpc-port", "0", "--metrics-port", "0", "--drain-seconds", "0")
    return ["--model-repository", str(repository), *ports, *more]


@pytest.mark.parametrize(
    ("more", "env"),
    [((), NO_DEVICE), (("--cuda-graphs",), NO_DEVICE), (("--gpu-memory-bytes", "1"), {})],
    ids=["no device", "no device for graphs", "no memory"],
)
def test_it_refuses_to_start_on_anything_less(repository, more, env):
    ended = run_to_end(flags(repository, "--device", "cuda", *more), env)
    assert ended.returncode == 1
    errors = [json.loads(line) for line in ended.stderr.splitlines() if line.startswith("{")]
    assert any("device=cuda" in entry["message"] for entry in errors if entry["level"] == "error")


def test_left_to_choose_it_takes_the_cpu_and_says_so(repository, tmp_path):
    with ServerProcess(repository, tmp_path, "--device", "auto", env=NO_DEVICE) as server:
        assert 'nvisa_model_on_cuda{model="toy",version="1"} 0.0' in server.get("/metrics")[1]
        messages = [entry["message"] for entry in map(json.loads, json_lines(server))]
        assert any("device=auto" in message for message in messages)


def json_lines(server):
    """The server's log without what ONNX Runtime itself writes."""
    return [line for line in server.log_text().splitlines() if line.startswith("{")]


@GRAPHS
def test_it_serves_from_the_gpu(repository, tmp_path, graphs):
    rows = random_rows(1000)
    expected = OnnxEngine(read_bundle(repository / "toy" / "1"), "cpu").assign(rows)
    with (
        ServerProcess(repository, tmp_path, "--device", "cuda", *graphs) as server,
        ClusterClient(server.grpc_target) as client,
    ):
        assert 'nvisa_model_on_cuda{model="toy",version="1"} 1.0' in server.get("/metrics")[1]
        for n in (1, 3, 16, 255, 1000):
            found = client.assign(rows[:n], model="toy", probabilities=True)
            np.testing.assert_allclose(found.probabilities, expected.probabilities[:n], atol=1e-3)
        server.terminate()
        assert server.wait() == 0


@GRAPHS
def test_new_versions_are_loaded_while_it_answers(repository, tmp_path, graphs):
    answers = Answers(repository / "toy" / "1")
    flags = ("--device", "cuda", "--model-control", "poll", "--poll-seconds", "0.2", *graphs)
    with (
        ServerProcess(repository, tmp_path, *flags) as server,
        Load(server.grpc_target, answers) as load,
    ):
        for other in range(3):  # models of their own, so that every answer can still be compared
            make_bundle(repository, f"other{other}", seed=other + 1)
            end = time.monotonic() + TIMEOUT
            while (
                f'nvisa_model_on_cuda{{model="other{other}",version="1"}} 1.0'
                not in server.get("/metrics")[1]
            ):
                assert time.monotonic() < end, server.log_text()
                time.sleep(0.1)
            load.answered(50)
        load.stop()
        assert set(load.codes) == {"OK"}
        # Sums in another order may turn near ties: the chaos tests' callers compare exactly, on one device.
        assert load.wrong <= 0.01 * load.codes["OK"]


@GRAPHS
def test_it_is_not_ready_without_its_device_and_never_on_the_cpu(repository, tmp_path, graphs):
    lost = tmp_path / "lost"
    command = ("-m", "tests.gpu.breaking", str(lost))
    with (
        ServerProcess(repository, tmp_path, "--device", "cuda", *graphs, python=command) as server,
        ClusterClient(server.grpc_target) as client,
    ):
        client.assign(random_rows(4), model="toy")
        lost.touch()
        end = time.monotonic() + TIMEOUT
        failed = 0
        while server.get("/readyz")[0] == 200:
            assert time.monotonic() < end, server.log_text()
            try:
                client.assign(random_rows(4), model="toy", timeout=5)
            except ClusterServiceError:
                failed += 1
        assert failed
        with pytest.raises(ClusterServiceError):
            client.assign(random_rows(4), model="toy", timeout=5)
        assert 'nvisa_model_on_cuda{model="toy",version="1"} 1.0' in server.get("/metrics")[1]
        assert server.get("/healthz")[0] == 200
