"""TLS, mutual TLS and tokens: the real server and both clients, over real sockets."""

from __future__ import annotations

import json
import re
import threading
import time
from concurrent import futures
from contextlib import ExitStack
from pathlib import Path

import grpc
import numpy as np
import pyarrow.parquet as pq
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

from serving import grpc_assign, grpc_inference
from serving.auth import ADMINISTRATION
from serving.bundle import read_bundle
from serving.client import AsyncClusterClient, ClusterClient, ClusterServiceError, Health, Security
from serving.client.cli import main as client_main
from serving.engine import OnnxEngine
from serving.labelling.cli import main as label_main
from serving.pb.nvisa.v1 import cluster_pb2 as pb
from serving.pb.nvisa.v1.cluster_pb2_grpc import ClusterServiceStub
from tests.bundles import make_bundle, random_rows
from tests.certificates import LONG_AGO, Authority, put
from tests.servers import TIMEOUT, ServerProcess, run_to_end

CODE = grpc.StatusCode
INFERENCE, ADMIN, UNKNOWN = "inference-0123456789", "admin-0123456789abcdef", "nobody-gave-this-one-out"
METHODS = [
    f"/{service.full_name}/{method.name}"
    for service in (grpc_assign.SERVICE, grpc_inference.SERVICE)
    for method in service.methods
]
SERVING = health_pb2.HealthCheckResponse.SERVING


@pytest.fixture(scope="module")
def bundle(tmp_path_factory):
    return read_bundle(make_bundle(tmp_path_factory.mktemp("served") / "models"))


@pytest.fixture(scope="module")
def authority(tmp_path_factory):
    return Authority(tmp_path_factory.mktemp("authority"))


@pytest.fixture(scope="module")
def stranger(tmp_path_factory):
    return Authority(tmp_path_factory.mktemp("stranger"), "stranger")


@pytest.fixture(scope="module")
def token_files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tokens")
    for name, token in (("inference", INFERENCE), ("admin", ADMIN), ("unknown", UNKNOWN)):
        (folder / name).write_text(token + "\n")
    (folder / "server").write_text(f"# two callers\ninference:{INFERENCE}\n\nadmin:{ADMIN}\n")
    return folder


def tls_flags(pair):
    return ("--tls-certificate", str(pair.cert), "--tls-key", str(pair.key))


@pytest.fixture(scope="module")
def secured(bundle, authority, token_files, tmp_path_factory):
    """TLS and tokens; everything that happens is logged."""
    with ServerProcess(
        bundle.path.parents[1],
        tmp_path_factory.mktemp("secured"),
        *tls_flags(authority.issue("server")),
        *("--token-file", str(token_files / "server"), "--reflection", "--log-level", "debug"),
        *("--max-message-bytes", "1000000"),
    ) as server:
        yield server


@pytest.fixture(scope="module")
def mutual(bundle, authority, tmp_path_factory):
    """Mutual TLS, with the plaintext port for probes."""
    with ServerProcess(
        bundle.path.parents[1],
        tmp_path_factory.mktemp("mutual"),
        *tls_flags(authority.issue("mutual-server")),
        *("--tls-client-ca", str(authority.ca), "--health-port", "0"),
    ) as server:
        yield server


@pytest.fixture
def channel(secured, authority):
    credentials = grpc.ssl_channel_credentials(authority.ca.read_bytes())
    with grpc.secure_channel(secured.grpc_target, credentials) as channel:
        yield channel


def bearer(token):
    return (("authorization", f"Bearer {token}"),)


def refusal(call):
    with pytest.raises(grpc.RpcError) as caught:
        call()
    return caught.value.code(), caught.value.details()


def id_of_refusal(call):
    with pytest.raises(grpc.RpcError) as caught:
        call()
    return dict(caught.value.trailing_metadata())["x-request-id"]


def outcome(call):
    try:
        call()
    except grpc.RpcError as error:
        return error.code()
    return CODE.OK


def sample(server, name):
    """The value of a metric, 0 if it is not shown yet."""
    for line in server.get("/metrics")[1].splitlines():
        if line.startswith(name + " "):
            return float(line.split()[-1])
    return 0.0


def eventually(condition):
    end = time.monotonic() + TIMEOUT
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.01)


async def test_both_clients_with_tls_and_a_token_get_the_engines_answers(
    secured, bundle, authority, token_files
):
    x = random_rows(300, seed=3)
    expected = OnnxEngine(bundle, "cpu").assign(x).clusters
    security = Security(ca=authority.ca, token_file=token_files / "inference")
    with ClusterClient(secured.grpc_target, security=security) as client:
        np.testing.assert_array_equal(client.assign(x, model="toy").clusters, expected)
        assert [a.clusters.tolist() for a in client.assign_stream([x], model="toy")] == [expected.tolist()]
        assert client.health() == Health(alive=True, ready=True)
    security = Security(ca=authority.ca, token=ADMIN)
    async with AsyncClusterClient(secured.grpc_target, security=security) as client:
        np.testing.assert_array_equal((await client.assign(x, model="toy")).clusters, expected)
        streamed = [a.clusters.tolist() async for a in client.assign_stream([x], model="toy")]
        assert streamed == [expected.tolist()]
        assert [model.name for model in await client.models()] == ["toy"]


@pytest.mark.parametrize("method", METHODS)
def test_every_method_asks_for_a_token(channel, method):
    call = channel.unary_unary(method)
    wrong = [(), bearer(UNKNOWN), bearer(INFERENCE[:-1]), bearer(INFERENCE) + bearer(ADMIN)]
    wrong += [(("authorization", f"Basic {INFERENCE}"),), (("x-api-key", "x" * 4000),)]
    for metadata in wrong:
        code, details = refusal(lambda metadata=metadata: call(b"", metadata=metadata, timeout=TIMEOUT))
        assert code is CODE.UNAUTHENTICATED
        assert "token" in details
    # An empty request is wrong for some of them, and that is said now.
    token = ADMIN if method.rpartition("/")[2] in ADMINISTRATION else INFERENCE
    answers = (CODE.OK, CODE.NOT_FOUND, CODE.FAILED_PRECONDITION)
    assert outcome(lambda: call(b"", metadata=bearer(token), timeout=TIMEOUT)) in answers


def test_a_call_without_a_token_has_an_id_all_the_same(channel):
    call = channel.unary_unary("/nvisa.v1.ClusterService/ListModels")
    ids = {id_of_refusal(lambda: call(b"", timeout=TIMEOUT)) for _ in range(2)}
    assert len(ids) == 2
    assert all(ids)
    mine = (("x-request-id", "mine-1"),)
    assert id_of_refusal(lambda: call(b"", metadata=mine, timeout=TIMEOUT)) == "mine-1"


def test_loading_and_unloading_take_the_role_admin(channel):
    for name in ("RepositoryModelLoad", "RepositoryModelUnload"):
        call = channel.unary_unary(f"/inference.GRPCInferenceService/{name}")
        code, details = refusal(lambda call=call: call(b"", metadata=bearer(INFERENCE), timeout=TIMEOUT))
        assert code is CODE.PERMISSION_DENIED
        assert "admin" in details
        # This server's models stay as they are: whoever might change them is told so.
        code, details = refusal(lambda call=call: call(b"", metadata=bearer(ADMIN), timeout=TIMEOUT))
        assert code is CODE.FAILED_PRECONDITION
        assert "--model-control explicit" in details


def test_without_a_token_no_request_is_waited_for_or_read(channel):
    # A unary method, called as a stream that never sends its message: it is refused all the same.
    silent = threading.Event()

    def nothing():
        silent.wait(TIMEOUT)
        yield from ()

    call = channel.stream_stream("/nvisa.v1.ClusterService/Assign")(nothing(), timeout=TIMEOUT)
    try:
        assert refusal(lambda: next(call))[0] is CODE.UNAUTHENTICATED
    finally:
        silent.set()
    # Nor is a message held against the size limit, or found to be garbage, before the caller is known.
    for garbage in (bytes(2_000_000), b"\xff" * 1000):
        assign = channel.unary_unary("/nvisa.v1.ClusterService/Assign")
        call = lambda metadata, assign=assign, garbage=garbage: assign(  # noqa: E731
            garbage, metadata=metadata, timeout=TIMEOUT
        )
        assert refusal(lambda call=call: call(()))[0] is CODE.UNAUTHENTICATED
        known, _ = refusal(lambda call=call: call(bearer(INFERENCE)))
        assert known in (CODE.RESOURCE_EXHAUSTED, CODE.INVALID_ARGUMENT)


def test_health_is_open_and_reflection_is_not(channel):
    check = health_pb2_grpc.HealthStub(channel).Check
    reply = check(health_pb2.HealthCheckRequest(service="nvisa.v1.ClusterService"), timeout=TIMEOUT)
    assert reply.status == SERVING

    def listed(metadata):
        question = reflection_pb2.ServerReflectionRequest(list_services="")
        stub = reflection_pb2_grpc.ServerReflectionStub(channel)
        answer = next(stub.ServerReflectionInfo(iter([question]), metadata=metadata, timeout=TIMEOUT))
        return {service.name for service in answer.list_services_response.service}

    assert refusal(lambda: listed(()))[0] is CODE.UNAUTHENTICATED
    assert "nvisa.v1.ClusterService" in listed(bearer(INFERENCE))


def test_outcomes_are_counted_and_callers_make_no_labels(secured, channel):
    name = "nvisa_authentications_total"
    assign = channel.unary_unary("/nvisa.v1.ClusterService/ListModels")
    refused = 'nvisa_requests_total{code="UNAUTHENTICATED",method="nvisa.v1.ClusterService/ListModels"}'
    load = channel.unary_unary("/inference.GRPCInferenceService/RepositoryModelLoad")
    before = {o: sample(secured, f'{name}{{outcome="{o}"}}') for o in ("accepted", "missing", "wrong")}
    before_refused = sample(secured, refused)
    before_forbidden = sample(secured, f'{name}{{outcome="forbidden"}}')
    for _ in range(3):
        assign(b"", metadata=bearer(INFERENCE), timeout=TIMEOUT)
    for _ in range(2):
        refusal(lambda: assign(b"", timeout=TIMEOUT))
    refusal(lambda: assign(b"", metadata=bearer(UNKNOWN), timeout=TIMEOUT))
    refusal(lambda: load(b"", metadata=bearer(INFERENCE), timeout=TIMEOUT))
    refusal(lambda: channel.unary_unary("/made.up/Method")(b"", timeout=TIMEOUT))
    assert sample(secured, f'{name}{{outcome="accepted"}}') == before["accepted"] + 3
    assert sample(secured, f'{name}{{outcome="missing"}}') == before["missing"] + 3
    assert sample(secured, f'{name}{{outcome="wrong"}}') == before["wrong"] + 1
    assert sample(secured, f'{name}{{outcome="forbidden"}}') == before_forbidden + 1
    assert sample(secured, refused) == before_refused + 3
    assert "made.up" not in secured.get("/metrics")[1]


def test_the_command_line_says_what_is_missing(
    secured, authority, stranger, token_files, capsys, monkeypatch
):
    right = ["--ca", str(authority.ca), "--token-file", str(token_files / "inference")]
    assert client_main(["models", "--target", secured.grpc_target, *right, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)[0]["name"] == "toy"
    for flags, says in (
        ([], "if it speaks TLS, pass --tls or --ca"),
        (["--ca", str(authority.ca)], "the server asks for a token; pass the file that holds yours"),
        (["--ca", str(authority.ca), "--token-file", str(token_files / "unknown")], "none of this server's"),
        (["--ca", str(stranger.ca)], "not signed by an authority that this client trusts"),
        (["--tls"], "not signed by an authority that this client trusts"),
    ):
        assert client_main(["models", "--target", secured.grpc_target, *flags]) == 1
        err = capsys.readouterr().err
        assert says in err
        assert err.count("\n") == 1
        assert UNKNOWN not in err


def test_labelling_by_a_secured_server(secured, bundle, authority, token_files, tmp_path, capsys):
    x = random_rows(500, seed=5)
    np.save(tmp_path / "x.npy", x)
    arguments = ["--model", str(bundle.path), "--input", str(tmp_path / "x.npy")]
    arguments += ["--target", secured.grpc_target, "--ca", str(authority.ca)]
    refused = [*arguments, "--output", str(tmp_path / "refused")]
    assert label_main(refused) == 42
    assert "--token-file" in capsys.readouterr().err
    token = ["--token-file", str(token_files / "inference")]
    assert label_main([*arguments, "--output", str(tmp_path / "out"), *token]) == 0
    clusters = pq.read_table(tmp_path / "out")["cluster"]
    np.testing.assert_array_equal(clusters, OnnxEngine(bundle, "cpu").assign(x).clusters)
    elsewhere = ["--target", "192.0.2.1:8001", "--output", str(tmp_path / "plain"), *token]
    assert label_main([*arguments[:4], *elsewhere]) == 42
    assert "in plaintext" in capsys.readouterr().err


def test_no_secret_is_logged(secured, channel):
    refusal(lambda: channel.unary_unary(METHODS[0])(b"", metadata=bearer(UNKNOWN), timeout=TIMEOUT))
    channel.unary_unary("/nvisa.v1.ClusterService/ListModels")(b"", metadata=bearer(ADMIN), timeout=TIMEOUT)
    refused = [entry for entry in secured.log() if entry.get("code") == "UNAUTHENTICATED"]
    assert refused
    log = json.dumps(secured.log()) + secured.get("/metrics")[1]
    for secret in (INFERENCE, ADMIN, UNKNOWN, "PRIVATE KEY"):
        assert secret not in log
    listening = next(entry for entry in secured.log() if entry["message"] == "listening")
    assert (listening["tls"], listening["tokens"]) == ("server", "required")


def test_mutual_tls_lets_in_who_has_a_certificate(mutual, bundle, authority, stranger, tmp_path, capsys):
    mine = authority.issue("client", "caller@example.org")
    x = random_rows(20, seed=8)
    with ClusterClient(
        mutual.grpc_target, security=Security(ca=authority.ca, cert=mine.cert, key=mine.key)
    ) as client:
        expected = OnnxEngine(bundle, "cpu").assign(x).clusters
        np.testing.assert_array_equal(client.assign(x, model="toy").clusters, expected)
    foreign = stranger.issue("client", "caller@example.org")
    old = authority.issue("old", "caller@example.org", not_after=LONG_AGO)
    for flags, says in (
        ([], "if it asks for a client's certificate, pass --cert and --key"),
        (["--cert", str(foreign.cert), "--key", str(foreign.key)], "may not trust this client's certificate"),
        (["--cert", str(old.cert), "--key", str(old.key)], "may not trust this client's certificate"),
    ):
        assert client_main(["models", "--target", mutual.grpc_target, "--ca", str(authority.ca), *flags]) == 1
        assert says in capsys.readouterr().err


def test_probes_have_a_plaintext_port_with_the_health_service_alone(mutual):
    with grpc.insecure_channel(mutual.health_target) as channel:
        check = health_pb2_grpc.HealthStub(channel).Check
        for service in ("", "nvisa.v1.ClusterService"):
            assert check(health_pb2.HealthCheckRequest(service=service), timeout=TIMEOUT).status == SERVING
        code, _ = refusal(
            lambda: ClusterServiceStub(channel).ListModels(pb.ListModelsRequest(), timeout=TIMEOUT)
        )
        assert code is CODE.UNIMPLEMENTED
        large = health_pb2.HealthCheckRequest(service="x" * 10_000)
        assert refusal(lambda: check(large, timeout=TIMEOUT))[0] is CODE.RESOURCE_EXHAUSTED


def test_clients_tell_an_expired_certificate_and_a_wrong_name(authority, bundle):
    for pair, says in (
        (authority.issue("expired", not_after=LONG_AGO), "the server's certificate has expired"),
        (authority.issue("elsewhere", "elsewhere.example"), "is for other names than this one"),
    ):
        server = grpc.server(futures.ThreadPoolExecutor(1))
        credentials = grpc.ssl_server_credentials([(pair.key.read_bytes(), pair.cert.read_bytes())])
        port = server.add_secure_port("127.0.0.1:0", credentials)
        server.start()
        try:
            with (
                ClusterClient(f"127.0.0.1:{port}", security=Security(ca=authority.ca)) as client,
                pytest.raises(ClusterServiceError, match=says) as caught,
            ):
                client.models(timeout=TIMEOUT)
        finally:
            server.stop(None).wait()
        assert caught.value.code is CODE.UNAVAILABLE


def test_certificates_are_replaced_while_clients_call(bundle, authority, stranger, tmp_path):
    served = authority.issue("rotated")
    new = stranger.issue("rotated")
    expires = 'nvisa_certificate_expiry_timestamp_seconds{certificate="server"}'
    stale = 'nvisa_credentials_stale{credential="tls certificate"}'
    reloads = 'nvisa_credential_reloads_total{credential="tls certificate",outcome='
    flags = (*tls_flags(served), "--reload-seconds", "0.02")
    with ServerProcess(bundle.path.parents[1], tmp_path, *flags) as server:

        def call(ca):
            with ClusterClient(server.grpc_target, security=Security(ca=ca)) as client:
                return client.assign(random_rows(1), model="toy", timeout=TIMEOUT).clusters

        assert sample(server, expires) > time.time()
        stop, failures, calls = threading.Event(), [], []

        def keep_calling():
            with ClusterClient(server.grpc_target, security=Security(ca=authority.ca)) as client:
                while not stop.is_set():
                    try:
                        calls.append(client.assign(random_rows(1), model="toy", timeout=TIMEOUT))
                    except ClusterServiceError as error:
                        failures.append(error)

        caller = threading.Thread(target=keep_calling)
        caller.start()
        try:
            # Half of the pair is new: it does not fit, and the old one stays in force, without a pause.
            put(served.cert, new.cert.read_bytes())
            eventually(lambda: sample(server, stale) == 1)
            assert sample(server, reloads + '"failure"}') == 1
            call(authority.ca)
            put(served.key, new.key.read_bytes()[:100])  # and a file that was cut short
            eventually(lambda: sample(server, reloads + '"failure"}') == 2)
            call(authority.ca)
            # Now the pair is whole, and whoever connects sees the new one.
            put(served.key, new.key.read_bytes())
            eventually(lambda: sample(server, reloads + '"success"}') == 1)
            assert sample(server, stale) == 0
            call(stranger.ca)
            with pytest.raises(ClusterServiceError, match="not signed by an authority"):
                call(authority.ca)
            # An expired one is not taken.
            served.replace(stranger.issue("expired", not_after=LONG_AGO))
            eventually(lambda: any("expired on" in entry.get("why", "") for entry in server.log()))
            call(stranger.ca)
            # Whoever was connected stays so.
            n_calls = len(calls)
            eventually(lambda: len(calls) > n_calls or failures)
        finally:
            stop.set()
            caller.join()
        assert not failures
        server.terminate()
        assert server.wait() == 0
    refused = [entry for entry in server.log() if "cannot be used" in entry["message"]]
    assert "does not belong" in refused[0]["why"]
    assert all(entry["level"] == "error" for entry in refused)


def test_tokens_are_replaced_while_clients_call(bundle, tmp_path):
    tokens, mine = tmp_path / "tokens", tmp_path / "mine"
    tokens.write_text(f"inference:{INFERENCE}\n")
    mine.write_text(INFERENCE)
    flags = ("--token-file", str(tokens), "--reload-seconds", "0.02", "--health-needs-token")
    stale = 'nvisa_credentials_stale{credential="tokens"}'
    with (
        ServerProcess(bundle.path.parents[1], tmp_path, *flags) as server,  # plaintext, on the loopback
        ClusterClient(server.grpc_target, security=Security(token_file=mine)) as client,
        ClusterClient(server.grpc_target) as nobody,
    ):
        assert client.health().ready
        with pytest.raises(ClusterServiceError, match="UNAUTHENTICATED"):
            nobody.health()
        assert client.models()
        # Both are in force for as long as callers need; then the old one goes.
        put(tokens, f"inference:{INFERENCE}\ninference:{UNKNOWN}\n".encode())
        eventually(
            lambda: (
                sample(server, 'nvisa_credential_reloads_total{credential="tokens",outcome="success"}') == 1
            )
        )
        put(mine, UNKNOWN.encode())
        assert client.models()
        put(tokens, f"inference:{UNKNOWN}\n".encode())
        eventually(
            lambda: (
                sample(server, 'nvisa_credential_reloads_total{credential="tokens",outcome="success"}') == 2
            )
        )
        assert client.models()
        put(mine, INFERENCE.encode())
        with pytest.raises(ClusterServiceError, match="UNAUTHENTICATED: the token is none"):
            client.models()
        put(mine, UNKNOWN.encode())
        # What cannot be used changes nothing, least of all opens the door; nor does a file that has gone.
        for broken in (b"", b"inference:short\n", None):
            tokens.unlink() if broken is None else put(tokens, broken)
            eventually(lambda: sample(server, stale) == 1)
            assert client.models()
            with pytest.raises(ClusterServiceError, match="UNAUTHENTICATED"):
                nobody.models()
            put(tokens, f"inference:{UNKNOWN}\n".encode())
            eventually(lambda: sample(server, stale) == 0)
        log = json.dumps(server.log())
    for secret in (INFERENCE, UNKNOWN, "short"):
        assert f":{secret}" not in log


def test_requests_without_a_token_take_no_memory(bundle, token_files, tmp_path):
    body, n_calls = bytes(60 << 20), 8

    def peak():
        status = Path(f"/proc/{server.process.pid}/status").read_text()
        return int(re.search(r"VmHWM:\s+(\d+) kB", status)[1]) << 10

    flags = ("--token-file", str(token_files / "server"))
    options = [("grpc.max_send_message_length", -1), ("grpc.use_local_subchannel_pool", 1)]
    with ServerProcess(bundle.path.parents[1], tmp_path, *flags) as server, ExitStack() as open_channels:
        before = peak()
        channels = [
            open_channels.enter_context(grpc.insecure_channel(server.grpc_target, options))
            for _ in range(n_calls)
        ]
        calls = [channel.unary_unary(METHODS[0]).future(body, timeout=TIMEOUT) for channel in channels]
        assert {call.exception().code() for call in calls} == {CODE.UNAUTHENTICATED}
        assert peak() - before < len(body)  # with a token it is more than all of them together


def test_the_port_for_probes_says_that_the_server_drains(bundle, tmp_path):
    flags = ("--health-port", "0", "--drain-seconds", "1000")
    with ServerProcess(bundle.path.parents[1], tmp_path, *flags) as server:
        server.terminate()
        eventually(lambda: server.get("/readyz")[0] == 503)
        with grpc.insecure_channel(server.health_target) as channel:
            check = health_pb2_grpc.HealthStub(channel).Check
            ready = check(health_pb2.HealthCheckRequest(service="nvisa.v1.ClusterService"), timeout=TIMEOUT)
            assert ready.status == health_pb2.HealthCheckResponse.NOT_SERVING
            assert check(health_pb2.HealthCheckRequest(service=""), timeout=TIMEOUT).status == SERVING
        server.terminate()
        assert server.wait() == 0


def start_flags(bundle, *more):
    ports = ("--grpc-port", "0", "--metrics-port", "0")
    return ["--model-repository", str(bundle.path.parents[1]), *ports, *more]


def test_it_does_not_start_with_credentials_that_cannot_be_used(bundle, authority):
    flags = tls_flags(authority.issue("expired", not_after=LONG_AGO))
    ended = run_to_end(start_flags(bundle, *flags))
    assert ended.returncode == 1
    assert "the certificate expired on 2025-01-01" in ended.stderr
    assert "Traceback" not in ended.stderr
