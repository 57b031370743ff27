"""A model that fails on every run takes readiness with it, is tried, and comes back; never on another device."""

from __future__ import annotations

import asyncio
import logging
import threading
from contextlib import asynccontextmanager

import grpc
import numpy as np
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from serving import failing
from serving.engine import EngineError
from serving.failing import FailsTooLong, FailureWatch
from serving.grpc_port import SERVICES
from serving.labels import LABELS_FILE
from serving.pb.inference import grpc_service_pb2 as oip
from serving.pb.inference.grpc_service_pb2_grpc import GRPCInferenceServiceStub
from serving.pb.nvisa.v1 import cluster_pb2 as pb
from serving.pb.nvisa.v1.cluster_pb2_grpc import ClusterServiceStub
from serving.server import Server
from serving.settings import ServerSettings
from serving.watchdog import RunTooLong
from tests.bundles import make_bundle, random_rows
from tests.servers import TIMEOUT, get, in_process
from tests.unit.serving.served import Numbered, serving

CODE = grpc.StatusCode
GONE = "inference failed: the device is gone"
POISON, TOO_LARGE = 255, 254  # rows of nothing else make a run fail, or give NaN


@pytest.fixture(autouse=True)
def hasty(monkeypatch):
    monkeypatch.setattr(failing, "FIRST_PAUSE_SECONDS", 0.01)
    monkeypatch.setattr(failing, "LONGEST_PAUSE_SECONDS", 0.02)


class Device:
    """Where engines run: all that were built of a version stop working while it is ``gone``."""

    def __init__(self):
        self.gone, self.nan = set(), set()
        self.hang = threading.Event()
        self.let_go = threading.Event()
        self.built = []

    def build(self, bundle, *_):
        device, version = self, bundle.manifest.version

        class OnDevice(Numbered):
            def assign(self, x):
                if device.hang.is_set() and not (x == 1).any():
                    assert device.let_go.wait(TIMEOUT)
                if version in device.gone or (x == POISON).all():
                    raise EngineError(GONE)
                answer = super().assign(x)
                if (x == TOO_LARGE).all() or version in device.nan:
                    answer.probabilities[:] = np.nan
                return answer

        self.built.append(version)
        return OnDevice(version)


@pytest.fixture
def device():
    device = Device()
    yield device
    device.let_go.set()


async def until(condition):
    async with asyncio.timeout(TIMEOUT):
        while not condition():
            await asyncio.sleep(0.001)


def watch(attempt, *, failures=2, seconds=0.0, patience=0.0):
    """A watch, what it says of the model, and the tasks that it hands over."""
    said, tasks = [], []
    found = FailureWatch(
        "toy/1",
        attempt,
        said.append,
        failures=failures,
        seconds=seconds,
        patience=patience,
        ended=tasks.append,
    )
    return found, said, tasks


async def test_only_failures_in_a_row_are_looked_into():
    tried = []
    looks, said, _ = watch(lambda: tried.append(1))
    for _ in range(3):
        looks.ran(EngineError(GONE))
        looks.ran(None)
    await asyncio.sleep(0.02)
    assert tried == []
    looks.ran(EngineError(GONE))
    looks.ran(EngineError(GONE))
    await until(lambda: tried)
    await asyncio.sleep(0.02)
    assert (tried, said) == ([1], []), "its own rows are answered: it does not fail"
    looks.ran(EngineError(GONE))
    await asyncio.sleep(0.02)
    assert tried == [1], "it counts from nought again"


async def test_what_fails_is_tried_until_it_works(caplog):
    outcomes = [ValueError("once"), ValueError("twice"), RuntimeError(), None]

    def attempt():
        if (error := outcomes.pop(0)) is not None:
            raise error

    looks, said, tasks = watch(attempt)
    with caplog.at_level(logging.WARNING):
        for _ in range(5):  # runs that were under way meanwhile begin nothing new
            looks.ran(EngineError(GONE))
        await until(lambda: len(said) == 2)
    assert (said, outcomes, tasks) == (["once", ""], [], [])
    assert [r.getMessage() for r in caplog.records] == [
        "model fails; it is tried until it works again",
        "model works again",
    ]


async def test_what_fails_for_too_long_is_handed_over():
    tried = []

    def attempt():
        tried.append(1)
        raise EngineError(GONE)

    looks, said, tasks = watch(attempt, failures=1, patience=0.1)
    looks.ran(EngineError(GONE))
    await until(lambda: tasks)
    assert isinstance(tasks[0].exception(), FailsTooLong)
    assert str(tasks[0].exception()).endswith(f"--failing-seconds 0.1, at last with: {GONE}")
    assert len(tried) > 2
    assert said == [GONE]


async def test_a_try_that_hangs_is_handed_over_and_one_that_was_closed_is_not():
    gate = threading.Event()
    looks, said, tasks = watch(lambda: gate.wait(TIMEOUT), failures=1, seconds=0.02)
    looks.ran(EngineError(GONE))
    await until(lambda: tasks)
    assert isinstance(tasks[0].exception(), RunTooLong)
    assert said == []
    looks.ran(EngineError(GONE))
    looks.close()
    await asyncio.sleep(0.05)
    assert len(tasks) == 1
    gate.set()


async def test_once_closed_it_looks_no_more_whatever_still_fails():
    tried = []
    looks, said, tasks = watch(lambda: tried.append(1), failures=1)
    looks.close()
    looks.ran(EngineError(GONE))
    await asyncio.sleep(0.02)
    assert (tried, said, tasks) == ([], [], [])


async def test_a_timeout_that_the_device_raises_is_no_hang():
    def attempt():
        raise TimeoutError("the device did not answer")

    looks, said, tasks = watch(attempt, failures=1, seconds=30.0)
    looks.ran(EngineError(GONE))
    await until(lambda: said)
    assert (said, tasks) == (["the device did not answer"], [])
    looks.close()


def request(x, **fields):
    tensor = pb.Tensor(dtype=pb.DATA_TYPE_UINT8, shape=x.shape, data=x.tobytes())
    return pb.AssignRequest(**{"model_name": "toy", "input": tensor} | fields)


class Caller:
    """Asks a server in this process."""

    def __init__(self, server, channel):
        self.server, self._channel = server, channel
        self.clusters = ClusterServiceStub(channel)
        self.oip = GRPCInferenceServiceStub(channel)

    async def assign(self, x=None, **fields):
        """Version and clusters, or the status."""
        x = np.minimum(random_rows(3), 200) if x is None else x
        try:
            reply = await self.clusters.Assign(request(x, **fields))
        except grpc.aio.AioRpcError as error:
            return error.code(), error.details()
        expected = Numbered(reply.model_version).assign(x).clusters
        np.testing.assert_array_equal(np.frombuffer(reply.clusters_data, "<i8"), expected)
        return CODE.OK, reply.model_version

    async def readyz(self):
        return await asyncio.to_thread(get, f"http://127.0.0.1:{self.server.metrics_port}/readyz")

    async def health(self):
        stub = health_pb2_grpc.HealthStub(self._channel)
        asked = [health_pb2.HealthCheckRequest(service=name) for name in ("", *SERVICES)]
        return [(await stub.Check(one)).status for one in asked]

    async def model_ready(self, version=""):
        return (await self.oip.ModelReady(oip.ModelReadyRequest(name="toy", version=version))).ready

    def value(self, name, version=1):
        return self.server.metrics.registry.get_sample_value(name, {"model": "toy", "version": str(version)})


@asynccontextmanager
async def caller(path, device, **settings):
    async with (
        in_process(path, device.build, **settings) as server,
        grpc.aio.insecure_channel(f"127.0.0.1:{server.grpc_port}") as channel,
    ):
        yield Caller(server, channel)


async def test_a_device_that_goes_takes_readiness_and_brings_it_back(tmp_path, device, caplog):
    make_bundle(tmp_path)
    async with caller(tmp_path, device) as ask:
        assert await ask.assign() == (CODE.OK, 1)
        device.gone = {1}
        codes = []
        while ask.server.is_ready():
            codes.append((await ask.assign())[0])
        assert codes[:3] == [CODE.INTERNAL] * 3
        assert ask.value("nvisa_failed_executions_total") >= 3
        assert await ask.assign() == (
            CODE.UNAVAILABLE,
            f"model toy version 1 is failed: it fails on every run: {GONE}",
        )
        assert await ask.readyz() == (503, f"model toy/1 fails: {GONE}\n")
        assert await ask.health() == [1, 2, 2]  # alive, and nothing served
        assert ask.value("nvisa_model_failing") == 1
        assert ask.server.metrics.registry.get_sample_value("nvisa_ready") == 0
        assert not await ask.model_ready()
        model = (await ask.clusters.GetModel(pb.GetModelRequest(model_name="toy"))).model
        assert (model.state, GONE in model.state_reason, model.device) == (pb.MODEL_STATE_FAILED, True, "cpu")
        (listed,) = (await ask.oip.RepositoryIndex(oip.RepositoryIndexRequest())).models
        assert (listed.state, GONE in listed.reason) == ("UNAVAILABLE", True)
        device.gone = set()
        await until(ask.server.is_ready)
        assert await ask.assign() == (CODE.OK, 1)
        assert await ask.readyz() == (200, "ready\n")
        assert await ask.health() == [1, 1, 1]
        assert ask.value("nvisa_model_failing") == 0
        assert await ask.model_ready()
        assert device.built == [1], "it is the same engine on the same device"
        failed = ask.value("nvisa_failed_executions_total")
        assert failed == codes.count(CODE.INTERNAL), "tries are not counted as runs"
    assert "model works again" in caplog.text


async def test_rows_that_make_a_model_fail_cost_others_nothing(tmp_path, device):
    make_bundle(tmp_path)
    async with caller(tmp_path, device, failed_runs=2) as ask:
        poison = np.full((2, 8, 8), POISON, np.uint8)
        for _ in range(20):
            assert (await ask.assign(poison))[0] is CODE.INTERNAL
            assert ask.server.is_ready()
        too_large = np.full((2, 8, 8), TOO_LARGE, np.uint8)
        for _ in range(20):
            assert (await ask.assign(too_large))[0] is CODE.INVALID_ARGUMENT
            assert ask.server.is_ready()
        assert await ask.assign() == (CODE.OK, 1)
        assert ask.value("nvisa_model_failing") == 0


async def test_a_device_that_answers_nan_whatever_it_is_asked_fails(tmp_path, device):
    make_bundle(tmp_path)
    async with caller(tmp_path, device) as ask:
        device.nan = {1}
        while ask.server.is_ready():
            code, _ = await ask.assign()
            assert code is CODE.INVALID_ARGUMENT or not ask.server.is_ready()  # it may have noticed meanwhile
        assert "answers zeros with NaN or infinity" in (await ask.readyz())[1]
        assert (await ask.assign())[0] is CODE.UNAVAILABLE
        device.nan = set()
        await until(ask.server.is_ready)
        assert await ask.assign() == (CODE.OK, 1)


async def test_while_the_largest_fails_no_older_version_answers_in_its_place(tmp_path, device):
    make_bundle(tmp_path)
    make_bundle(tmp_path, version=2)
    async with caller(tmp_path, device, failed_runs=1) as ask:
        device.gone = {2}
        while ask.server.is_ready():
            code, _ = await ask.assign()
            assert code is CODE.INTERNAL or not ask.server.is_ready()  # it may have noticed meanwhile
        assert (await ask.assign())[0] is CODE.UNAVAILABLE
        assert await ask.assign(model_version=1) == (CODE.OK, 1)  # who asks for it gets it
        assert (await ask.readyz())[1] == f"model toy/2 fails: {GONE}\n"


async def test_a_canary_that_fails_does_not_take_the_server_with_it(tmp_path, device):
    make_bundle(tmp_path)
    make_bundle(tmp_path, version=2)
    (tmp_path / "toy" / LABELS_FILE).write_text("stable: 1\ncanary: {version: 2, share: 0.5}")
    async with caller(tmp_path, device, failed_runs=1) as ask:
        ids = [f"call-{i}" for i in range(20)]
        assert {await ask.assign(request_id=i) for i in ids} == {(CODE.OK, 1), (CODE.OK, 2)}
        device.gone = {2}
        while ask.value("nvisa_model_failing", version=2) == 0:
            assert (await ask.assign(model_label="canary"))[0] in (CODE.INTERNAL, CODE.UNAVAILABLE)
        assert {await ask.assign(request_id=i) for i in ids} == {(CODE.OK, 1)}
        assert (await ask.assign(model_label="canary"))[0] is CODE.UNAVAILABLE
        assert (await ask.readyz())[0] == 200
        assert await ask.model_ready()
        assert not await ask.model_ready("canary")
        device.gone = set()
        await until(lambda: ask.value("nvisa_model_failing", version=2) == 0)
        assert {await ask.assign(request_id=i) for i in ids} == {(CODE.OK, 1), (CODE.OK, 2)}


async def test_with_allow_partial_the_server_is_ready_while_any_model_answers(tmp_path, device):
    make_bundle(tmp_path)
    make_bundle(tmp_path, name="other", version=2)
    async with caller(tmp_path, device, failed_runs=1, allow_partial=True) as ask:
        device.gone = {1}
        while ask.value("nvisa_model_failing") == 0:
            assert (await ask.assign())[0] is not CODE.OK
        assert (await ask.readyz())[0] == 200
        assert not await ask.model_ready()
        device.gone = {1, 2}
        while ask.server.is_ready():
            assert (await ask.assign(model_name="other"))[0] is not CODE.OK
        assert (await ask.readyz())[1] == f"model other/2 fails: {GONE}; model toy/1 fails: {GONE}\n"
        device.gone = set()
        await until(ask.server.is_ready)


async def test_loading_a_model_again_gives_it_a_new_engine(tmp_path, device):
    make_bundle(tmp_path)
    async with serving(tmp_path, device.build, model_control="explicit", failed_runs=1) as served:
        model = served.repository.version(("toy", 1))
        device.gone = {1}
        with pytest.raises(EngineError):
            await served.ask()
        await until(lambda: model.failing)
        device.gone = set()
        model.watch.close()  # so that it is not its own try that mends it
        await served.control.load("toy")
        assert device.built == [1, 1]
        assert (await served.ask())[0] == 1
        assert served.value("nvisa_model_failing", model="toy", version=1) == 0


async def test_a_version_that_is_unloaded_while_it_fails_leaves_nothing_behind(tmp_path, device):
    make_bundle(tmp_path)
    async with serving(tmp_path, device.build, model_control="explicit", failed_runs=1) as served:
        model = served.repository.version(("toy", 1))
        device.gone = {1}
        with pytest.raises(EngineError):
            await served.ask()
        await until(lambda: model.failing)
        await served.control.unload("toy")
        device.gone = set()
        await asyncio.sleep(0.05)
        assert served.of_version(1) == []
        assert not any("tries of" in task.get_name() for task in asyncio.all_tasks())


@pytest.mark.parametrize(
    ("hangs", "limit", "says"),
    [
        (True, {"run_timeout_seconds": 0.3}, "a try of the model that failed takes longer than"),
        (False, {"failing_seconds": 0.3}, f"has failed for --failing-seconds 0.3, at last with: {GONE}"),
    ],
    ids=["hangs", "fails"],
)
async def test_a_model_that_hangs_or_fails_for_too_long_ends_the_server(
    tmp_path, device, caplog, hangs, limit, says
):
    make_bundle(tmp_path)
    settings = ServerSettings(
        model_repository=tmp_path,
        grpc_port=0,
        metrics_port=0,
        device="cpu",
        failed_runs=1,
        **limit,
    )
    server = Server(settings, device.build)
    running = asyncio.create_task(server.run())
    await until(server.is_ready)
    if hangs:
        device.hang.set()
    device.gone = {1}
    async with grpc.aio.insecure_channel(f"127.0.0.1:{server.grpc_port}") as channel:
        with caplog.at_level(logging.ERROR):
            code, _ = await Caller(server, channel).assign(np.ones((1, 8, 8), np.uint8))
            assert code is CODE.INTERNAL
            assert await running == 1
    assert "toy/1" in caplog.text
    assert says in caplog.text
