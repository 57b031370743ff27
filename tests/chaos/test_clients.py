"""Clients that are slow, do not read, or come by the thousand: what others see, and what they get themselves."""

from __future__ import annotations

import asyncio
import contextlib
import resource
import time
from pathlib import Path

import grpc
import numpy as np
import pytest

from serving.pb.nvisa.v1 import cluster_pb2 as pb
from serving.pb.nvisa.v1.cluster_pb2_grpc import ClusterServiceStub
from tests.chaos import http2
from tests.chaos.load import Load, request, total
from tests.servers import TIMEOUT, ServerProcess

CONNECTIONS = 1000
ACTIVE = 250
STREAM = [("grpc.use_local_subchannel_pool", 1)]


def memory(server):
    """Megabytes that the server holds."""
    (line,) = [
        line
        for line in Path(f"/proc/{server.process.pid}/status").read_text().splitlines()
        if line.startswith("VmRSS")
    ]
    return int(line.split()[1]) / 1024


@pytest.fixture
def many_files():
    """Lets this process, and servers that it starts, open enough files."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = 3 * CONNECTIONS
    if hard != resource.RLIM_INFINITY and hard < wanted:
        pytest.skip(f"the limit of open files is {hard}; this takes {wanted} (ulimit -n)")
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, wanted), hard))
    yield
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_callers_who_send_slowly_are_answered_and_hold_nobody_up(repository, answers, tmp_path, seconds):
    part = slice(0, 40)
    frames = http2.message(request(answers.rows[part]).SerializeToString())
    assert len(frames) > 2
    with (
        ServerProcess(repository, tmp_path) as server,
        Load(server.grpc_target, answers) as load,
        contextlib.ExitStack() as held,
    ):
        slow = [held.enter_context(http2.connect(server.grpc_target, TIMEOUT)) for _ in range(20)]
        # These never get further: no word, half a preface, headers without a body, half a body.
        stuck = [held.enter_context(http2.connect(server.grpc_target, TIMEOUT)) for _ in range(20)]
        for connection, sent in zip(
            stuck,
            [b"", http2.PREFACE[:9], http2.opening(), http2.opening() + b"".join(frames[:-1])] * 5,
            strict=True,
        ):
            connection.sendall(sent)
        # On the HTTP port, too: half a request.
        held.enter_context(http2.connect(server.http.removeprefix("http://"), TIMEOUT)).sendall(b"GET /met")
        whole = http2.opening() + b"".join(frames)
        step = len(whole) // 25 + 1
        for first in range(0, len(whole), step):
            for connection in slow:
                connection.sendall(whole[first : first + step])
            time.sleep(seconds / 25)
            load.answered(4)
        for connection in slow:
            reply = pb.AssignResponse.FromString(http2.read_message(connection))
            clusters = np.frombuffer(reply.clusters_data, "<i8")
            probabilities = np.frombuffer(reply.probabilities_data, "<f4").reshape(len(clusters), -1)
            assert not answers.wrong(part, clusters, probabilities)
        assert server.get("/readyz")[0] == 200
        assert total(server, "nvisa_queue_rows") < 1000  # what is half sent waits in no queue
        load.answered(50)
        load.stop()
        held.close()
        server.terminate()
        assert server.wait() == 0
    assert load.wrong == 0
    assert set(load.codes) == {"OK"}, load.details


def test_a_stream_whose_caller_does_not_read_is_held_back_and_then_answered(repository, answers, tmp_path):
    """The server reads no more of it, so that neither side's memory grows; once it is read, nothing is missing."""
    part = slice(0, len(answers.rows))
    message = pb.AssignStreamRequest(request=request(answers.rows[part]))
    most = 20_000  # 650 MB

    async def stream(server, load):
        async with grpc.aio.insecure_channel(server.grpc_target, STREAM) as channel:
            call = ClusterServiceStub(channel).AssignStream(timeout=TIMEOUT)
            before, sent = memory(server), 0
            while sent < most:
                message.request.request_id = str(sent)
                writing = asyncio.ensure_future(call.write(message))
                done, _ = await asyncio.wait({writing}, timeout=1.0)
                sent += 1
                if not done:
                    break
            else:
                pytest.fail("the server takes whatever it is sent")
            assert memory(server) - before < 60
            await asyncio.to_thread(load.answered, 50)
            found = []

            async def read():
                while (reply := await call.read()) is not grpc.aio.EOF:
                    found.append(reply)

            reading = asyncio.ensure_future(read())
            await writing
            await call.done_writing()
            await reading
            assert await call.code() is grpc.StatusCode.OK
            return sent, found

    with (
        ServerProcess(repository, tmp_path) as server,
        Load(server.grpc_target, answers) as load,
    ):
        sent, found = asyncio.run(stream(server, load))
        load.stop()
    assert load.wrong == 0
    assert set(load.codes) == {"OK"}, load.details
    assert sorted(int(reply.request_id) for reply in found) == list(range(sent))
    for reply in found:
        clusters = np.frombuffer(reply.response.clusters_data, "<i8")
        probabilities = np.frombuffer(reply.response.probabilities_data, "<f4").reshape(len(clusters), -1)
        assert not answers.wrong(part, clusters, probabilities)


def test_a_thousand_connections_idle_and_calling(repository, answers, tmp_path, many_files):
    """Most say nothing, the others call all at once, and again; a few more are served meanwhile."""

    async def call(stub, n):
        part = slice(n % 400, n % 400 + 3)
        reply = await stub.Assign(request(answers.rows[part]), timeout=TIMEOUT)
        clusters = np.frombuffer(reply.clusters_data, "<i8")
        probabilities = np.frombuffer(reply.probabilities_data, "<f4").reshape(len(clusters), -1)
        assert not answers.wrong(part, clusters, probabilities)

    async def callers(server, load):
        async with contextlib.AsyncExitStack() as held:
            stubs = [
                ClusterServiceStub(
                    await held.enter_async_context(grpc.aio.insecure_channel(server.grpc_target, STREAM))
                )
                for _ in range(ACTIVE)
            ]
            for _ in range(2):
                await asyncio.gather(*(call(stub, n) for n, stub in enumerate(stubs)))
                assert total(server, "process_open_fds") > CONNECTIONS
                await asyncio.to_thread(load.answered, 50)

    with (
        ServerProcess(repository, tmp_path) as server,
        contextlib.ExitStack() as held,
        Load(server.grpc_target, answers) as load,
    ):
        before = memory(server)
        for _ in range(CONNECTIONS - ACTIVE):
            held.enter_context(http2.connect(server.grpc_target, TIMEOUT)).sendall(http2.PREFACE)
        asyncio.run(callers(server, load))
        assert memory(server) - before < 150
        assert server.get("/readyz")[0] == 200
        load.stop()
        held.close()  # gRPC would wait 20 seconds for those that do not answer its pings
        server.terminate()
        assert server.wait() == 0
    assert load.wrong == 0
    assert set(load.codes) == {"OK"}, load.details


def test_without_file_descriptors_it_serves_whom_it_has_and_then_everybody(
    repository, answers, tmp_path, many_files
):
    """More connections than the server may open: the rest wait outside, and are let in when others leave."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with contextlib.ExitStack() as held:
        resource.setrlimit(resource.RLIMIT_NOFILE, (150, hard))
        try:
            server = held.enter_context(ServerProcess(repository, tmp_path))
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        channel = held.enter_context(grpc.insecure_channel(server.grpc_target, STREAM))
        stub = ClusterServiceStub(channel)

        def ask():
            part = slice(5, 9)
            reply = stub.Assign(request(answers.rows[part]), timeout=TIMEOUT)
            clusters = np.frombuffer(reply.clusters_data, "<i8")
            probabilities = np.frombuffer(reply.probabilities_data, "<f4").reshape(len(clusters), -1)
            assert not answers.wrong(part, clusters, probabilities)

        ask()
        with contextlib.ExitStack() as crowd:
            for _ in range(300):
                crowd.enter_context(http2.connect(server.grpc_target, TIMEOUT)).sendall(http2.PREFACE)
            open_files = Path(f"/proc/{server.process.pid}/fd")
            end = time.monotonic() + TIMEOUT
            while len(list(open_files.iterdir())) < 150:
                assert time.monotonic() < end
                time.sleep(0.01)
            for _ in range(20):
                ask()
        with Load(server.grpc_target, answers) as load:  # new connections
            load.answered(50)
        assert server.get("/readyz")[0] == 200
        server.terminate()
        assert server.wait() == 0
    assert load.wrong == 0
