"""The client, against a service in this process."""

from __future__ import annotations

import dataclasses
import json
import os
import signal
import socket
import subprocess
import sys
import threading
from concurrent import futures

import grpc
import numpy as np
import pyarrow.csv as pacsv
import pyarrow.parquet as pq
import pytest
from grpc_health.v1 import health_pb2_grpc

from serving.client import AsyncClusterClient, ClusterClient, ClusterServiceError, Health
from serving.client.cli import main
from serving.client.messages import assign_request, is_small, slices
from tests.unit.serving.cluster_service import N_CLUSTERS, ClusterService, running

UNAVAILABLE = (grpc.StatusCode.UNAVAILABLE, {})


def rows(n: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (n, 4), dtype=np.uint8)


def expected(x: np.ndarray) -> np.ndarray:
    return x.sum(axis=1, dtype=np.int64) % N_CLUSTERS


@pytest.fixture
def service():
    service = ClusterService()
    with running(service) as target:
        service.target = target
        yield service


@pytest.fixture
def client(service):
    with ClusterClient(service.target) as client:
        yield client


@pytest.fixture(params=["sync", "asyncio"])
def ask(request, service):
    """Calls a method of either client: ``await ask("assign", x, model="toy")``."""

    async def ask(method, *args, **kwargs):
        if request.param == "sync":
            with ClusterClient(service.target) as client:
                return getattr(client, method)(*args, **kwargs)
        async with AsyncClusterClient(service.target) as client:
            return await getattr(client, method)(*args, **kwargs)

    return ask


async def test_assign(ask):
    x = rows(7)
    result = await ask("assign", x, model="toy", probabilities=True)
    np.testing.assert_array_equal(result.clusters, expected(x))
    assert (result.clusters.dtype, result.confidences.dtype) == (np.int64, np.float32)
    np.testing.assert_allclose(result.confidences, 0.9)
    np.testing.assert_array_equal(result.probabilities.argmax(axis=1), result.clusters)
    assert (result.model, result.version, len(result)) == ("toy", 2, 7)
    result.clusters[0] = 3  # the caller owns it


async def test_probabilities_only_when_asked_for_and_version_as_asked_for(ask, service):
    result = await ask("assign", rows(2), model="toy", version=1)
    assert result.probabilities is None
    assert result.version == 1
    assert service.calls[0].model_version == 1


async def test_novelty_only_when_asked_for_also_of_an_array_that_is_split(ask, service):
    service.says_novelty = True
    assert (await ask("model", "toy")).has_novelty
    assert (await ask("assign", rows(2), model="toy")).novelty is None
    x = rows(4500)
    result = await ask("assign", x, model="toy", novelty=True)
    assert result.novelty.dtype == np.float32
    np.testing.assert_allclose(result.novelty, x.sum(axis=1, dtype=np.int64) % 101 / 100, rtol=1e-6)
    assert len(service.calls) > 2


async def test_novelty_of_a_model_that_does_not_say_it_is_refused_by_the_server(ask):
    assert not (await ask("model", "toy")).has_novelty
    with pytest.raises(ClusterServiceError, match="INVALID_ARGUMENT: toy does not say novelty"):
        await ask("assign", rows(2), model="toy", novelty=True)


async def test_large_arrays_are_split_in_order_and_pinned_to_one_version(ask, service):
    x = rows(10_001)
    result = await ask("assign", x, model="toy", probabilities=True)
    np.testing.assert_array_equal(result.clusters, expected(x))
    assert result.probabilities.shape == (10_001, N_CLUSTERS)
    assert sorted(call.input.shape[0] for call in service.calls) == [1] + [2000] * 5  # max_queue_rows
    assert {call.model_version for call in service.calls} == {2}


async def test_a_label_in_place_of_a_version(ask, service):
    assert (await ask("assign", rows(2), model="toy", version="canary")).version == 1
    assert (await ask("assign", rows(5000), model="toy", version="canary")).version == 1
    assert [(c.model_version, c.model_label) for c in service.calls] == [(0, "canary")] + [(1, "")] * 3
    assert (await ask("model", "toy", version="canary")).labels == ("canary",)
    with pytest.raises(ClusterServiceError, match="NOT_FOUND: no label 'latest'"):
        await ask("assign", rows(2), model="toy", version="latest")


@pytest.mark.parametrize("version", ["", "3"])
async def test_what_is_no_label_is_refused_before_it_is_sent(ask, service, version):
    for n in (1, 5000):
        with pytest.raises(ValueError, match="pass a number as an int, or a label such as 'canary'"):
            await ask("assign", rows(n), model="toy", version=version)
    assert service.attempts == 0


@pytest.mark.parametrize("version", [1, 2])
async def test_the_id_of_a_call_decides_for_all_parts_whether_the_canary_answers(ask, service, version):
    service.canaries = {"one"}
    x = rows(5000)
    result = await ask("assign", x, model="toy", request_id={1: "one", 2: "two"}[version])
    np.testing.assert_array_equal(result.clusters, expected(x))
    assert result.version == version
    assert {call.model_version for call in service.calls} == {version}


async def test_split_keeps_within_the_servers_message_limit(ask, service):
    service.limits.max_message_bytes = 8192
    x = rows(5000)
    np.testing.assert_array_equal((await ask("assign", x, model="toy")).clusters, expected(x))
    assert max(call.ByteSize() for call in service.calls) <= 8192
    assert len(service.calls) > 1


def test_the_names_of_columns_count_in_a_message(service, client):
    info = dataclasses.replace(client.model("toy"), max_message_bytes=16384)
    x = np.zeros((900, 500), np.float32)
    names = tuple(f"column {i}" for i in range(500))
    parts = slices(x, names, info, 1 << 30)
    sizes = [assign_request(x[part], names, "toy", None, False, False).ByteSize() for part in parts]
    assert max(sizes) <= 16384
    assert sum(len(x[part]) for part in parts) == 900
    assert is_small(np.zeros((1, 250_000), np.float32), ())
    assert not is_small(np.zeros((1, 250_000), np.float32), tuple(f"column {i}" for i in range(5000)))


async def test_failure_of_one_part_is_the_callers(ask, service):
    service.failures = [(grpc.StatusCode.INTERNAL, {})]
    with pytest.raises(ClusterServiceError, match="INTERNAL: not now"):
        await ask("assign", rows(9000), model="toy")


async def test_errors_carry_code_message_and_target(ask, service):
    with pytest.raises(ClusterServiceError) as error:
        await ask("assign", rows(1), model="other")
    assert error.value.code is grpc.StatusCode.NOT_FOUND
    assert error.value.message == "no model 'other'"
    assert str(error.value) == f"{service.target}: NOT_FOUND: no model 'other'"
    with pytest.raises(ClusterServiceError, match="INVALID_ARGUMENT: the model takes uint8"):
        await ask("assign", rows(1).astype(np.float64), model="toy")
    with pytest.raises(ClusterServiceError, match="NOT_FOUND"):
        await ask("model", "other")


@pytest.mark.parametrize("x", [rows(2).astype(np.int64), np.array(["a"]), rows(2) > 3, np.uint8(3)])
async def test_arrays_that_cannot_be_sent(ask, service, x):
    with pytest.raises(ValueError, match=r"convert it to uint8|must be rows"):
        await ask("assign", x, model="toy")
    assert service.attempts == 0


async def test_retries_what_may_pass(ask, service):
    service.failures = [
        UNAVAILABLE,
        (grpc.StatusCode.RESOURCE_EXHAUSTED, {"grpc-retry-pushback-ms": "20"}),
        (grpc.StatusCode.CANCELLED, {}),
    ]
    x = rows(3)
    np.testing.assert_array_equal((await ask("assign", x, model="toy")).clusters, expected(x))
    assert service.attempts == 4


async def test_retries_large_requests_too(ask, service):
    service.limits.max_message_bytes = 4 << 20
    service.limits.max_queue_rows = 0
    service.failures = [UNAVAILABLE]
    x = np.zeros((600, 1500), np.uint8)  # 900 kB: more than the retry buffer that gRPC has by default
    assert len(await ask("assign", x, model="toy")) == 600
    assert service.attempts == 2


async def test_pushback_that_says_no_is_honoured(ask, service):
    service.failures = [(grpc.StatusCode.RESOURCE_EXHAUSTED, {"grpc-retry-pushback-ms": "-1"})] * 2
    with pytest.raises(ClusterServiceError, match="RESOURCE_EXHAUSTED"):
        await ask("assign", rows(1), model="toy")
    assert service.attempts == 1


@pytest.mark.parametrize("code", [grpc.StatusCode.INTERNAL, grpc.StatusCode.INVALID_ARGUMENT])
async def test_never_retries_what_will_not_pass(ask, service, code):
    service.failures = [(code, {})] * 2
    with pytest.raises(ClusterServiceError):
        await ask("assign", rows(1), model="toy")
    assert service.attempts == 1


async def test_gives_up_after_five_attempts(ask, service):
    service.failures = [(grpc.StatusCode.UNAVAILABLE, {"grpc-retry-pushback-ms": "1"})] * 9
    with pytest.raises(ClusterServiceError, match="UNAVAILABLE"):
        await ask("assign", rows(1), model="toy")
    assert service.attempts == 5


async def test_deadline_includes_retries(ask, service):
    service.failures = [(grpc.StatusCode.UNAVAILABLE, {"grpc-retry-pushback-ms": "60000"})]
    with pytest.raises(ClusterServiceError) as error:
        await ask("assign", rows(1), model="toy", timeout=0.3)
    assert error.value.code in (grpc.StatusCode.DEADLINE_EXCEEDED, grpc.StatusCode.UNAVAILABLE)
    assert service.attempts == 1


async def test_models_and_model(ask):
    models = await ask("models")
    assert [(m.name, m.version, m.is_default, m.state) for m in models] == [
        ("toy", 1, False, "ready"),
        ("toy", 2, True, "ready"),
    ]
    model = await ask("model", "toy", version=1)
    assert model == models[0]
    assert (model.dtype, model.shape, model.meaning, model.n_clusters) == ("uint8", (4,), "image", 5)


async def test_health(ask, service):
    service.set_ready(False)
    assert await ask("health") == Health(alive=True, ready=False)
    service.set_ready(True)
    assert await ask("health") == Health(alive=True, ready=True)


@pytest.fixture
def free_port():
    """A port nobody listens on: bound, but not listening."""
    with socket.socket() as bound:
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)  # a gRPC server may take it from us
        bound.bind(("127.0.0.1", 0))
        yield bound.getsockname()[1]


def test_no_server(free_port, capsys):
    with ClusterClient(f"127.0.0.1:{free_port}") as client, pytest.raises(ClusterServiceError) as error:
        client.models(timeout=5)
    assert error.value.code is grpc.StatusCode.UNAVAILABLE
    assert main(["health", "--target", f"127.0.0.1:{free_port}"]) == 1
    captured = capsys.readouterr()
    assert captured.err.startswith(f"nvisa-client: 127.0.0.1:{free_port}: UNAVAILABLE: ")
    assert captured.err.count("\n") == 1


def test_needs_nothing_of_the_server():
    heavy = [
        "pyarrow",
        "PIL",
        "onnxruntime",
        "pydantic",
        "prometheus_client",
        "serving.engine",
        "serving.readers",
    ]
    code = f"import sys, serving.client.cli; print([m for m in {heavy} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


@pytest.fixture
def cli(service, capsys):
    def run(command, *arguments, status=0):
        assert main([command, "--target", service.target, *map(str, arguments)]) == status
        return capsys.readouterr()

    return run


def test_cli_models_and_health(cli, service):
    lines = cli("models").out.splitlines()
    assert lines[0].split() == [
        "name",
        "version",
        "default",
        "labels",
        "state",
        "device",
        "input",
        "clusters",
        "created",
    ]
    assert lines[2].split()[:5] == ["toy", "2", "yes", "stable", "ready"]
    assert [m["version"] for m in json.loads(cli("models", "--json").out)] == [1, 2]
    service.set_ready(False)
    assert "ready: no" in cli("health", status=1).out
    service.set_ready(True)
    assert json.loads(cli("health", "--json").out) == {"alive": True, "ready": True}


def test_cli_ends_in_silence_when_nobody_reads_on(service):
    reader, writer = os.pipe()
    os.close(reader)
    command = [sys.executable, "-m", "serving.client.cli", "models", "--target", service.target]
    done = subprocess.run(command, stdout=writer, stderr=subprocess.PIPE, text=True, check=False)
    os.close(writer)
    assert (done.returncode, done.stderr) == (128 + signal.SIGPIPE, "")


def test_cli_health_waits_for_a_server_that_is_loading(cli, service):
    service.set_ready(False)
    timer = threading.Timer(0.3, service.set_ready, [True])
    timer.start()
    assert "ready: yes" in cli("health", "--wait", 30).out
    service.set_ready(False)
    assert "ready: no" in cli("health", "--wait", 0.2, status=1).out


def test_cli_health_waits_for_a_server_that_does_not_listen_yet(service, free_port, capsys):
    target = f"127.0.0.1:{free_port}"
    assert main(["health", "--target", target, "--wait", "0.3"]) == 1
    assert capsys.readouterr().err.startswith(f"nvisa-client: {target}: UNAVAILABLE: ")
    service.set_ready(True)
    server = grpc.server(futures.ThreadPoolExecutor(2))
    health_pb2_grpc.add_HealthServicer_to_server(service.health, server)

    def listen():
        assert server.add_insecure_port(target) == free_port
        server.start()

    timer = threading.Timer(0.5, listen)
    timer.start()
    try:
        assert main(["health", "--target", target, "--wait", "30"]) == 0
    finally:
        timer.join()
        server.stop(None).wait()


def test_cli_health_does_not_wait_for_a_server_of_another_kind(capsys):
    server = grpc.server(futures.ThreadPoolExecutor(2))
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    try:
        assert main(["health", "--target", f"127.0.0.1:{port}", "--wait", "1000"]) == 1
    finally:
        server.stop(None).wait()
    assert "UNIMPLEMENTED" in capsys.readouterr().err


@pytest.fixture
def npy(tmp_path):
    x = rows(9000)
    np.save(tmp_path / "x.npy", x)
    return tmp_path / "x.npy", expected(x)


def test_cli_assign_shows_counts_and_first_rows(cli, npy):
    path, clusters = npy
    out = cli("assign", "--model", "toy", "--input", path).out
    assert "first 10 of 9000 rows" in out
    for k, count in enumerate(np.bincount(clusters)):
        assert f"{k}        cluster {k}  {count:,}" in out
    assert "9,000 rows by toy version 2, mean confidence 0.9000, 0 unreadable" in out


def test_cli_assign_by_a_label(cli, npy):
    assert (
        "by toy version 1," in cli("assign", "--model", "toy", "--version", "canary", "--input", npy[0]).out
    )
    err = cli("assign", "--model", "toy", "--version", "latest", "--input", npy[0], status=1).err
    assert "NOT_FOUND: no label 'latest'" in err


def test_cli_assign_while_the_model_is_loading(cli, service, npy):
    service.loading = True
    err = cli("assign", "--model", "toy", "--input", npy[0], status=1).err
    assert (
        err
        == f"nvisa-client: {service.target}: UNAVAILABLE: model toy version 2 is loading; try again soon\n"
    )


@pytest.mark.parametrize("flag", [("--version", "0"), ("--version", "9" * 20), ("--timeout", "-1")])
def test_cli_numbers_that_cannot_be_are_wrong_usage(flag, capsys):
    with pytest.raises(SystemExit) as caught:
        main(["assign", "--model", "toy", "--input", "x.npy", *flag])
    assert caught.value.code == 2
    assert "not a positive" in capsys.readouterr().err


@pytest.mark.parametrize("suffix", ["parquet", "csv", "npy"])
def test_cli_assign_writes(cli, npy, tmp_path, suffix):
    path, clusters = npy
    output = tmp_path / f"out.{suffix}"
    said = json.loads(cli("assign", "--model", "toy", "--input", path, "--output", output, "--json").out)
    assert said["counts"] == np.bincount(clusters).tolist()
    assert (said["rows"], said["errors"], said["version"]) == (9000, 0, 2)
    assert said["mean_confidence"] == pytest.approx(0.9)
    if suffix == "npy":
        written = np.load(output)
    else:
        table = pq.read_table(output) if suffix == "parquet" else pacsv.read_csv(output)
        np.testing.assert_array_equal(table["row"].to_numpy(), np.arange(9000))
        written = table["cluster"].to_numpy()
    np.testing.assert_array_equal(written, clusters)
    assert sorted(p.name for p in tmp_path.iterdir()) == sorted([output.name, "x.npy"])


def test_cli_assign_shows_and_writes_the_novelty_of_a_model_that_says_it(cli, service, npy, tmp_path):
    path, _ = npy
    output = tmp_path / "out.parquet"
    assert "novelty" not in cli("assign", "--model", "toy", "--input", path, "--output", output).out
    assert "novelty" not in pq.read_table(output).column_names
    service.says_novelty = True
    expected = np.load(path).sum(axis=1, dtype=np.int64) % 101 / 100
    out = cli("assign", "--model", "toy", "--input", path, "--output", output).out
    assert f"mean novelty {expected.mean():.4f}" in out
    table = pq.read_table(output)
    assert table.column_names == ["row", "cluster", "confidence", "novelty", "error"]
    np.testing.assert_allclose(table["novelty"], expected, rtol=1e-6)
    said = json.loads(cli("assign", "--model", "toy", "--input", path, "--json").out)
    assert said["mean_novelty"] == pytest.approx(expected.mean(), rel=1e-5)


def test_cli_assign_refuses_in_one_line(cli, npy, tmp_path):
    path, _ = npy
    np.save(tmp_path / "wide.npy", np.zeros((3, 5), np.uint8))
    for arguments, message in (
        (["--input", tmp_path / "none.npy"], "no such file"),
        (["--input", tmp_path / "wide.npy"], "its rows are uint8 [5], but toy version 2 takes uint8 [4]"),
        (["--input", path, "--output", tmp_path / "out.txt"], "cannot write this format"),
        (["--input", path, "--output", tmp_path / "none" / "out.npy"], "there is no folder"),
    ):
        err = cli("assign", "--model", "toy", *arguments, status=1).err
        assert message in err
        assert err.count("\n") == 1
    assert "NOT_FOUND" in cli("assign", "--model", "other", "--input", path, status=1).err
