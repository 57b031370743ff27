"""Workers that are killed, get stuck or are told to stop, while callers call."""

from __future__ import annotations

import os
import signal
import socket
import time

import pytest

from tests.chaos.load import Load, total
from tests.servers import ServerProcess


def test_a_killed_worker_costs_only_its_calls_in_flight_and_no_total_falls(
    repository, answers, tmp_path, seconds
):
    counted = (
        "nvisa_rows_total",
        "nvisa_requests_total",
        "nvisa_confidence_count",
        "process_cpu_seconds_total",
    )
    with (
        ServerProcess(repository, tmp_path, "--workers", "2") as server,
        Load(server.grpc_target, answers) as load,
    ):
        end = time.monotonic() + seconds
        before = dict.fromkeys(counted, 0.0)
        kills = 0
        while not kills or time.monotonic() < end:
            os.kill(server.workers()[0], signal.SIGKILL)
            kills += 1
            load.answered(50)  # by the other one

            def is_whole():
                now = {name: total(server, name) for name in counted}
                assert all(now[name] >= before[name] for name in counted), (before, now)
                before.update(now)
                assert server.get("/readyz")[0] == 200
                return total(server, "nvisa_workers_ready") == 2

            load.until(is_whole)
        load.answered(50)
        assert total(server, "nvisa_worker_restarts_total") == kills
        load.stop()
        assert total(server, "nvisa_rows_total") > 0
        server.terminate()
        assert server.wait() == 0
    assert load.wrong == 0
    assert set(load.codes) <= {"OK", "UNAVAILABLE"}, load.details
    assert set(load.retried) == {"OK"}, load.details
    died = [entry for entry in server.log() if entry["message"] == "a worker died; it is started again"]
    assert [entry["status"] for entry in died] == ["SIGKILL"] * kills


@pytest.mark.parametrize("workers", [1, 2])
@pytest.mark.parametrize("sent", [signal.SIGTERM, signal.SIGINT])
def test_told_to_stop_it_answers_every_call_that_it_accepts_and_then_accepts_none(
    repository, answers, tmp_path, workers, sent
):
    flags = ("--workers", str(workers), "--drain-seconds", "0.3", "--log-level", "debug")
    with ServerProcess(repository, tmp_path, *flags) as server:
        with Load(server.grpc_target, answers, plain=4, retrying=1) as load:
            server.process.send_signal(sent)
            assert server.wait() == 0
            host, port = server.grpc_target.split(":")
            with pytest.raises(ConnectionRefusedError):
                socket.create_connection((host, int(port)))
        assert load.wrong == 0
        # gRPC's core cancels what it has read and the server not yet taken; our client tries those again.
        assert set(load.codes) <= {"OK", "UNAVAILABLE", "CANCELLED"}, load.details
        assert set(load.retried) <= {"OK", "UNAVAILABLE"}, load.details
        log = server.log()
        # The server's word for it: whatever reached it was answered, and the caller has the answer.
        calls = [entry["code"] for entry in log if entry["message"] == "call"]
        assert set(calls) == {"OK"}
        assert len(calls) == load.codes["OK"] + load.retried["OK"]
        for worker in range(workers) if workers > 1 else [None]:
            own = [entry["message"] for entry in log if entry.get("worker") == worker]
            assert "draining" in own
            assert "call" not in own[own.index("stopped") :]
            if sent == signal.SIGTERM:  # while load balancers take notice it still answers
                assert "call" in own[own.index("draining") :]


def test_a_stuck_worker_is_named_and_the_other_answers(repository, answers, tmp_path):
    with ServerProcess(repository, tmp_path, "--workers", "2", "--grace-seconds", "1") as server:
        stuck = server.workers()[0]
        with Load(server.grpc_target, answers) as load:
            load.answered(10)
        counted = total(server, "nvisa_rows_total")
        assert counted > 0
        os.kill(stuck, signal.SIGSTOP)
        try:
            status, body = server.get("/healthz")
            assert status == 503
            assert body in {f"the event loop of worker {n} is stuck\n" for n in (0, 1)}
            assert total(server, "nvisa_rows_total") == counted  # with what it had counted when last asked
        finally:
            os.kill(stuck, signal.SIGCONT)
        while server.get("/healthz")[0] != 200:
            time.sleep(0.01)
        server.terminate()
        assert server.wait() == 0
    assert load.wrong == 0
