"""Whatever is sent, the server answers with a status of its table, stays as large as it was, and stays right.

``NVISA_FUZZ_INPUTS`` says how many inputs; they are the same ones in every run of as many.
"""

from __future__ import annotations

import gzip
import os
import socket
from pathlib import Path

import grpc
import numpy as np
import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from serving.bundle import read_bundle
from serving.engine import OnnxEngine
from serving.pb.inference import grpc_service_pb2 as oip
from serving.pb.nvisa.v1 import cluster_pb2 as pb
from tests.bundles import make_bundle, random_rows
from tests.fuzz.messages import payload
from tests.servers import ServerProcess

N_INPUTS = int(os.environ.get("NVISA_FUZZ_INPUTS", "2000"))
# INTERNAL and UNKNOWN are missing: they would mean that something happened which nobody had thought of.
STATUSES = {
    grpc.StatusCode.OK,
    grpc.StatusCode.INVALID_ARGUMENT,
    grpc.StatusCode.NOT_FOUND,
    grpc.StatusCode.RESOURCE_EXHAUSTED,
    grpc.StatusCode.FAILED_PRECONDITION,  # to load a model, where that is not allowed
}
ASSIGN = "nvisa.v1.ClusterService/Assign"
SERVICES = (
    pb.DESCRIPTOR.services_by_name["ClusterService"],
    oip.DESCRIPTOR.services_by_name["GRPCInferenceService"],
)
METHODS = {f"{service.full_name}/{m.name}": m for service in SERVICES for m in service.methods}
# Of the parser, the allocator and the interpreter; a leak of a few hundred bytes an input would be more.
GROWTH_MIB = 24
LARGEST_MESSAGE = 1 << 20


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("fuzz")
    make_bundle(folder / "models")
    make_bundle(folder / "models", "floats", shape=(4,), dtype="float32", novelty=True, columns=tuple("abcd"))
    return folder


@pytest.fixture(scope="module")
def server(folder):
    with ServerProcess(
        folder / "models", folder, "--max-message-bytes", str(LARGEST_MESSAGE), "--max-queue-rows", "4096"
    ) as process:
        yield process


@pytest.fixture(scope="module")
def channel(server):
    with grpc.insecure_channel(server.grpc_target) as channel:
        yield channel


@pytest.fixture(scope="module")
def right(folder):
    """The answer that has to come, whatever was sent before."""
    x = random_rows(5, seed=1)
    tensor = pb.Tensor(dtype=pb.DATA_TYPE_UINT8, shape=x.shape, data=x.tobytes())
    clusters = OnnxEngine(read_bundle(folder / "models" / "toy" / "1"), "cpu").assign(x).clusters
    return pb.AssignRequest(model_name="toy", input=tensor), clusters


def send(channel, method, data, timeout=30.0):
    """Status of ``data`` as a call's only message; statuses within a stream's answer are looked at, too."""
    if METHODS[method].client_streaming:
        call = channel.stream_stream(f"/{method}")(iter([data]), timeout=timeout)
        for answer in call:
            reply = pb.AssignStreamResponse.FromString(answer)
            code = next(code for code in grpc.StatusCode if code.value[0] == reply.error.code)
            assert code in STATUSES, reply.error.message
        return call.code(), call.details()
    call = channel.unary_unary(f"/{method}")
    try:
        call(data, timeout=timeout)
    except grpc.RpcError as error:
        return error.code(), error.details()
    return grpc.StatusCode.OK, ""


def check_right(channel, right):
    request, clusters = right
    reply = channel.unary_unary(
        f"/{ASSIGN}",
        request_serializer=pb.AssignRequest.SerializeToString,
        response_deserializer=pb.AssignResponse.FromString,
    )(request, timeout=30.0)
    np.testing.assert_array_equal(np.frombuffer(reply.clusters_data, "<i8"), clusters)


def resident_mib(process, field="VmRSS"):
    lines = Path(f"/proc/{process.pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(field)) / 1024


def throw(channel, method, n_inputs):
    """Send ``n_inputs`` payloads to ``method``."""

    @settings(
        max_examples=n_inputs,
        derandomize=True,
        database=None,
        deadline=None,
        phases=(Phase.generate, Phase.shrink),
        suppress_health_check=list(HealthCheck),
    )
    @given(payload(method))
    def try_one(data):
        code, details = send(channel, method, data)
        assert code in STATUSES, details

    try_one()


@pytest.mark.timeout(3600)
def test_every_rpc_answers_whatever_it_is_sent_and_memory_does_not_grow(server, channel, right):
    share = dict.fromkeys(METHODS, 1.0)
    share[ASSIGN] = share["inference.GRPCInferenceService/ModelInfer"] = 10.0
    share["nvisa.v1.ClusterService/AssignStream"] = 4.0
    total = sum(share.values())
    throw(channel, ASSIGN, 300)  # what grows once: caches, the allocator's arenas
    before = resident_mib(server.process)
    for method, part in share.items():
        throw(channel, method, max(20, round(N_INPUTS * part / total)))
        check_right(channel, right)
    assert resident_mib(server.process) < before + GROWTH_MIB
    assert server.process.poll() is None
    assert not [line for line in server.log() if line["level"] == "error"]


@pytest.mark.parametrize("method", [m for m in METHODS if not METHODS[m].client_streaming])
def test_a_message_over_the_limit_is_refused_and_not_kept(server, channel, right, method):
    code, details = send(channel, method, bytes(LARGEST_MESSAGE + 1))
    assert code is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert str(LARGEST_MESSAGE) in details
    check_right(channel, right)


def test_a_small_message_that_unpacks_to_a_large_one_is_not_unpacked(server, channel, right):
    before = resident_mib(server.process, "VmHWM")
    call = channel.unary_unary(f"/{ASSIGN}")
    with pytest.raises(grpc.RpcError) as caught:
        call(bytes(300 << 20), compression=grpc.Compression.Gzip, timeout=60.0)
    assert caught.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert resident_mib(server.process, "VmHWM") < before + 100
    check_right(channel, right)


def test_more_rows_than_may_wait_are_refused_however_narrow_they_are(server, channel, right):
    # 16 bytes a row; what is answered is three times that, and what is computed meanwhile more.
    x = np.zeros((4097, 4), "<f4")
    tensor = pb.Tensor(dtype=pb.DATA_TYPE_FLOAT32, shape=x.shape, data=x.tobytes())
    request = pb.AssignRequest(model_name="floats", input=tensor)
    code, details = send(channel, ASSIGN, request.SerializeToString())
    assert code is grpc.StatusCode.INVALID_ARGUMENT
    assert "4097 rows" in details
    assert "4096" in details
    check_right(channel, right)


@pytest.mark.timeout(3600)
@settings(
    max_examples=max(20, N_INPUTS // 100),
    derandomize=True,
    database=None,
    deadline=None,
    suppress_health_check=list(HealthCheck),
)
@given(
    data=st.one_of(
        st.binary(max_size=600),
        st.binary(max_size=300).map(lambda tail: b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + tail),
        st.binary(max_size=300).map(lambda tail: b"GET /" + tail + b" HTTP/1.1\r\n\r\n"),
        st.binary(max_size=300).map(lambda tail: b"GET /metrics HTTP/1.1\r\n" + tail + b"\r\n\r\n"),
        st.binary(max_size=300).map(gzip.compress),
    ),
    port=st.sampled_from(["grpc", "http"]),
)
def test_ports_survive_bytes_that_are_no_call(server, channel, right, data, port):
    address = server.grpc_target if port == "grpc" else server.http.removeprefix("http://")
    host, number = address.split(":")
    with socket.create_connection((host, int(number)), timeout=10) as connection:
        connection.sendall(data)
        connection.shutdown(socket.SHUT_WR)
        connection.settimeout(0.05)
        try:
            while connection.recv(65536):
                pass
        except OSError:
            pass
    check_right(channel, right)
    assert server.get("/healthz")[0] == 200
