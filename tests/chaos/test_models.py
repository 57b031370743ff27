"""A model that raises, hangs or answers nonsense, while callers call; and one that takes long to load."""

from __future__ import annotations

import time

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from tests.chaos.load import Load, total
from tests.servers import TIMEOUT, ServerProcess

SERVICE = "nvisa.v1.ClusterService"


class Device:
    """A server's device, and what breaks it."""

    def __init__(self, folder):
        self.file = folder / "fault"
        self.command = ("-m", "tests.chaos.faulty", str(self.file))

    def breaks(self, how):
        new = self.file.with_suffix(".new")
        new.write_text(how)
        new.replace(self.file)

    def mends(self):
        self.file.unlink()


@pytest.fixture
def device(tmp_path):
    return Device(tmp_path)


def serving(server):
    with grpc.insecure_channel(server.grpc_target) as channel:
        request = health_pb2.HealthCheckRequest(service=SERVICE)
        status = health_pb2_grpc.HealthStub(channel).Check(request, timeout=TIMEOUT).status
    return status == health_pb2.HealthCheckResponse.SERVING


@pytest.mark.parametrize("fault", ["raise", "shape", "nan"])
def test_a_device_that_breaks_takes_readiness_until_it_works_again(
    repository, answers, tmp_path, device, seconds, fault
):
    """Of NaN the callers' rows may be the cause: they are told so, until a try shows that it is not them."""
    with (
        ServerProcess(repository, tmp_path, python=device.command) as server,
        Load(server.grpc_target, answers) as load,
    ):
        end = time.monotonic() + seconds
        breaks = 0
        while not breaks or time.monotonic() < end:
            device.breaks(fault)
            breaks += 1
            refused = load.codes["UNAVAILABLE"]
            load.until(lambda: server.get("/readyz")[0] == 503)
            assert server.get("/readyz")[1].startswith("model toy/1 fails: ")
            assert not serving(server)
            load.until(lambda refused=refused: load.codes["UNAVAILABLE"] > refused + 20)
            assert total(server, "nvisa_model_failing") == 1
            assert server.get("/healthz")[0] == 200
            device.mends()
            load.until(lambda: server.get("/readyz")[0] == 200)
            assert serving(server)
            load.answered(50)
        load.stop()
        server.terminate()
        assert server.wait() == 0
    assert load.wrong == 0
    expected = {"OK", "UNAVAILABLE", "INVALID_ARGUMENT" if fault == "nan" else "INTERNAL"}
    assert set(load.codes) == expected, load.details
    assert set(load.retried) <= expected, load.details
    log = server.log()
    assert sum(entry["message"] == "model works again" for entry in log) == breaks


def test_a_model_that_hangs_costs_the_calls_that_it_has_and_ends_the_server(
    repository, answers, tmp_path, device
):
    with (
        ServerProcess(repository, tmp_path, "--run-timeout-seconds", "1", python=device.command) as server,
        Load(server.grpc_target, answers) as load,
    ):
        device.breaks("hang")
        assert server.wait() == 1
        load.until(lambda: load.codes["UNAVAILABLE"])
    assert load.wrong == 0
    # CANCELLED is gRPC's own word for what it had read and the server not yet taken.
    assert set(load.codes) <= {"OK", "UNAVAILABLE", "CANCELLED"}, load.details
    assert "a run of the model has taken" in server.log_text()


def test_while_it_loads_callers_are_told_to_come_back_and_those_that_do_are_answered(
    repository, answers, tmp_path, device
):
    device.breaks("hang")  # the warm-up
    with ServerProcess(repository, tmp_path, python=device.command, wait_ready=False) as server:
        load = Load(server.grpc_target, answers)
        load.start()
        load.until(lambda: load.codes["UNAVAILABLE"] > 50)
        assert server.get("/readyz") == (503, "loading models\n")
        assert not serving(server)
        assert not load.right
        device.mends()
        load.answered(50)
        load.stop()
        server.terminate()
        assert server.wait() == 0
    assert load.wrong == 0
    assert set(load.codes) == {"OK", "UNAVAILABLE"}, load.details
    assert "is loading; try again soon" in load.details["UNAVAILABLE"]
    assert load.pushback == {("UNAVAILABLE", "1000")}
    assert load.retried["OK"]
