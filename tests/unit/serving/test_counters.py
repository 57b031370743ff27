"""Every metric of the server, read over HTTP after a known series of calls over gRPC."""

from __future__ import annotations

import asyncio
import contextlib

import grpc
import numpy as np
import pytest
from prometheus_client.parser import text_string_to_metric_families

from serving.bundle import read_bundle
from serving.drift import SMALLEST_SHARE
from serving.engine import EngineError, FakeEngine
from serving.limits import BatchLimits
from serving.pb.inference import grpc_service_pb2 as oip
from serving.pb.inference.grpc_service_pb2_grpc import GRPCInferenceServiceStub
from serving.pb.nvisa.v1 import cluster_pb2 as pb
from serving.pb.nvisa.v1.cluster_pb2_grpc import ClusterServiceStub
from tests.bundles import make_bundle, random_rows
from tests.servers import GatedEngine, get, in_process

NATIVE, OIP = "nvisa.v1.ClusterService", "inference.GRPCInferenceService"
TOY = {"model": "toy", "version": "1"}
# Shown with TLS or tokens only: tests/integration/test_security.py counts them.
OF_SECURITY = ("nvisa_authentications", "nvisa_credential_reloads", "nvisa_credentials_stale")
# Shown with a labels file only: test_labelled_models counts them.
OF_LABELS = (
    *("nvisa_label_share", "nvisa_shadow_rows", "nvisa_shadow_disagreeing_rows"),
    *("nvisa_shadow_dropped_rows", "nvisa_shadow_disagreement"),
)
BAD = 255  # the first pixel of a row that makes the engine fail


class Engine(GatedEngine):
    """Answers as `FakeEngine`, with the first pixel in hundredths as confidence; waits for its gate."""

    def assign(self, x):
        answer = super().assign(x)
        first = x.reshape(len(x), -1)[:, 0]
        if (first == BAD).any():
            raise EngineError("told to fail")
        answer.probabilities[np.arange(len(x)), answer.clusters] = first / np.float32(100)
        return answer


@pytest.fixture(scope="module")
def one_model(tmp_path_factory):
    path = tmp_path_factory.mktemp("one-model")
    make_bundle(path, novelty=True)
    return path


def rows(n, seed, confidences):
    """``n`` rows of 8 x 8; the engine is as sure of them as ``confidences``, in hundredths, says."""
    x = random_rows(n, seed=seed)
    x[:, 0, 0] = np.resize(np.asarray(confidences, np.uint8), n)
    return x


def request(x, **fields):
    tensor = pb.Tensor(dtype=pb.DATA_TYPE_UINT8, shape=x.shape, data=x.tobytes())
    return pb.AssignRequest(**{"model_name": "toy", "input": tensor} | fields)


async def scrape(server):
    text = await asyncio.to_thread(lambda: get(f"http://127.0.0.1:{server.metrics_port}/metrics")[1])
    families = {family.name: family for family in text_string_to_metric_families(text)}
    samples = {
        (sample.name, frozenset(sample.labels.items())): sample.value
        for family in families.values()
        for sample in family.samples
    }
    ours = {name for name in families if name.startswith("nvisa_") and not name.endswith("_created")}
    return samples, ours


class Scraped:
    """What was scraped, and which families of it were looked at."""

    def __init__(self, samples):
        self._samples = samples
        self.seen = set()

    def __call__(self, name, suffix="", **labels):
        self.seen.add(name)
        return self._samples.get((name + suffix, frozenset(labels.items())))


async def test_every_metric_says_what_was_sent(one_model, monkeypatch):
    engine = Engine(is_open=True, novelty=True)
    # As on CUDA, with padding; but one thread on the CPU.
    limits = BatchLimits(max_batch_rows=16, max_queue_rows=40, buckets=(1, 4, 16), threads=1)
    for module in ("loading", "version_lifecycle"):
        monkeypatch.setattr(f"serving.{module}.batch_limits", lambda *_: limits)
    async with (
        in_process(one_model, lambda *_: engine, low_confidence=0.6, drift_window_rows=10_000) as server,
        grpc.aio.insecure_channel(f"127.0.0.1:{server.grpc_port}") as channel,
    ):
        stub, other = ClusterServiceStub(channel), GRPCInferenceServiceStub(channel)
        warm_ups = len(engine.batch_sizes)
        assert warm_ups == 3
        for _ in range(warm_ups):
            assert engine.entered.acquire(timeout=0)

        sent = [rows(3, 1, [11, 61, 96]), rows(40, 2, [21, 97]), rows(2, 3, [59, 61])]
        for x in sent[:2]:  # 3 -> one run of 4; 40 -> runs of 16, 16 and 8, padded to 16
            await stub.Assign(request(x))
        x = sent[2]  # -> one run of 4
        tensor = oip.ModelInferRequest.InferInputTensor(name="x", datatype="UINT8", shape=x.shape)
        await other.ModelInfer(
            oip.ModelInferRequest(model_name="toy", inputs=[tensor], raw_input_contents=[x.tobytes()])
        )
        for bad in (request(sent[0], model_name="nope"), request(sent[0], model_version=7)):
            with pytest.raises(grpc.aio.AioRpcError):
                await stub.Assign(bad)
        with pytest.raises(grpc.aio.AioRpcError):
            await stub.Assign(request(random_rows(1, (9, 9))))
        with pytest.raises(grpc.aio.AioRpcError):  # one run that fails
            await stub.Assign(request(rows(5, 4, [BAD])))
        unknown = pb.AssignStreamRequest(request=request(sent[0], model_name="nope"))
        assert [r.error.code async for r in stub.AssignStream(iter([unknown]))] == [5]
        await stub.ListModels(pb.ListModelsRequest())
        await other.ServerLive(oip.ServerLiveRequest())

        # The engine is held up inside a run of 1; these wait: 2 leave, 3 are too late, 36 are too many.
        while engine.entered.acquire(blocking=False):
            pass
        engine.gate.clear()
        held = rows(1, 5, [50])
        running = stub.Assign(request(held))
        assert await asyncio.to_thread(engine.entered.acquire, timeout=30)
        leaves = stub.Assign(request(rows(2, 6, [50])))
        late = stub.Assign(request(rows(3, 7, [50])), timeout=0.5)
        async with asyncio.timeout(30):
            while server.metrics.registry.get_sample_value("nvisa_queue_rows", TOY) < 5:
                await asyncio.sleep(0.001)
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await stub.Assign(request(rows(36, 8, [50])))
        assert caught.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        samples, _ = await scrape(server)
        assert Scraped(samples)("nvisa_queue_rows", **TOY) == 5
        leaves.cancel()
        with pytest.raises(asyncio.CancelledError):
            await leaves
        with pytest.raises(grpc.aio.AioRpcError):
            await late
        async with asyncio.timeout(30):
            while server.metrics.registry.get_sample_value("nvisa_queue_rows", TOY) > 0:
                await asyncio.sleep(0.001)
        engine.gate.set()
        await running
        sent.append(held)

        samples, families = await scrape(server)
    value = Scraped(samples)

    codes = {
        ("OK", f"{NATIVE}/Assign"): 3,
        ("OK", f"{NATIVE}/AssignStream"): 1,
        ("OK", f"{NATIVE}/ListModels"): 1,
        ("OK", f"{OIP}/ModelInfer"): 1,
        ("OK", f"{OIP}/ServerLive"): 1,
        ("NOT_FOUND", f"{NATIVE}/Assign"): 2,
        ("INVALID_ARGUMENT", f"{NATIVE}/Assign"): 1,
        ("INTERNAL", f"{NATIVE}/Assign"): 1,
        ("CANCELLED", f"{NATIVE}/Assign"): 1,
        ("DEADLINE_EXCEEDED", f"{NATIVE}/Assign"): 1,
        ("RESOURCE_EXHAUSTED", f"{NATIVE}/Assign"): 1,
    }
    shown = {
        (dict(labels)["code"], dict(labels)["method"]): count
        for (name, labels), count in samples.items()
        if name == "nvisa_requests_total" and count
    }
    value.seen.add("nvisa_requests")
    # A caller gives up at its deadline, which may reach the server just before its own clock says so.
    late = ("DEADLINE_EXCEEDED", f"{NATIVE}/Assign")
    if late not in shown:
        codes[("CANCELLED", f"{NATIVE}/Assign")] += codes.pop(late)
    assert shown == codes
    # From zero on: of a series that begins at one, Prometheus never sees the first increase.
    assert (
        samples[
            "nvisa_requests_total", frozenset({"method": f"{OIP}/ModelInfer", "code": "INTERNAL"}.items())
        ]
        == 0
    )
    for method in {method for _, method in codes}:
        calls = sum(count for (_, m), count in codes.items() if m == method)
        assert value("nvisa_request_seconds", "_count", method=method) == calls

    everything = np.concatenate(sent)
    answer = FakeEngine(10, novelty=True).assign(everything)
    confidences = everything[:, 0, 0] / np.float32(100)
    n = len(everything)
    assert value("nvisa_rows", "_total", **TOY) == n
    assert value("nvisa_executions", "_total", **TOY) == 6  # 1 + 3 + 1 + the held one
    assert value("nvisa_failed_executions", "_total", **TOY) == 1
    assert value("nvisa_padding_rows", "_total", **TOY) == 1 + 8 + 2
    dropped = [value("nvisa_dropped_rows", "_total", **TOY, reason=why) for why in ("cancelled", "expired")]
    assert dropped in ([2, 3], [5, 0])
    assert value("nvisa_dropped_rows", "_total", **TOY, reason="overload") == 36
    assert value("nvisa_queue_rows", **TOY) == 0
    assert value("nvisa_queue_limit_rows", **TOY) == 40
    assert value("nvisa_queue_seconds", "_count", **TOY) == len(sent)
    assert value("nvisa_inference_seconds", "_count", **TOY) == 6 + 1  # the failed run took time, too

    counts = np.bincount(answer.clusters, minlength=10)
    shown = [value("nvisa_cluster_rows", "_total", **TOY, cluster=str(k)) for k in range(10)]
    assert shown == counts.tolist()
    assert value("nvisa_low_confidence_rows", "_total", **TOY) == (confidences < np.float32(0.6)).sum()
    for name, values in (("nvisa_confidence", confidences), ("nvisa_novelty", answer.novelty)):
        assert value(name, "_count", **TOY) == n
        assert value(name, "_sum", **TOY) == pytest.approx(values.sum(dtype=np.float64))
        for edge in (0.1, 0.2, 0.5, 0.9, 0.95, 0.99):
            at_most = int((values.astype(np.float64) <= edge).sum())
            assert value(name, "_bucket", **TOY, le=str(edge)) == at_most, edge

    reference = read_bundle(one_model / "toy" / "1").manifest.reference
    live = np.maximum(counts / n, SMALLEST_SHARE)
    expected = np.maximum(reference.cluster_shares, SMALLEST_SHARE)
    kullback_leibler = np.sum(live * np.log(live / expected)) + np.sum(expected * np.log(expected / live))
    assert value("nvisa_cluster_drift_psi", **TOY) == pytest.approx(kullback_leibler)
    assert value("nvisa_cluster_drift_rows", **TOY) == n
    assert value("nvisa_cluster_drift_noise_psi", **TOY) == pytest.approx(9 / n + 9 / reference.rows)
    shares = [value("nvisa_cluster_reference_share", **TOY, cluster=str(k)) for k in range(10)]
    assert shares == pytest.approx(reference.cluster_shares)
    assert 0 <= value("nvisa_reference_low_confidence_share", **TOY) <= 1

    assert value("nvisa_model_on_cuda", **TOY) == 0
    states = {
        state: value("nvisa_model_state", **TOY, state=state) for state in ("loading", "ready", "failed")
    }
    assert states == {"loading": 0, "ready": 1, "failed": 0}
    info = [dict(labels) for (name, labels) in samples if name == "nvisa_model_info"]
    value.seen.add("nvisa_model_info")
    assert [(i["model"], i["version"], i["device"]) for i in info] == [("toy", "1", "cpu")]
    assert value("nvisa_ready") == 1
    assert value("nvisa_stream_messages", "_total", code="NOT_FOUND") == 1
    assert value("nvisa_model_loads", "_total", **TOY, outcome="success") == 1
    assert value("nvisa_model_loads", "_total", **TOY, outcome="failure") == 0
    assert value("nvisa_model_stale", **TOY) == 0
    assert value("nvisa_model_failing", **TOY) == 0  # test_failing has it at 1
    assert value("nvisa_labels_stale", model="toy") == 0
    assert value("nvisa_repository_unreadable") == 0
    for name in OF_SECURITY + OF_LABELS:
        value.seen.add(name)
        assert not [labels for sample, labels in samples if sample.startswith(name)], "not asked for"
    assert families - value.seen == set(), "a metric without a test"


async def test_a_call_that_the_queue_itself_finds_late_is_counted_as_expired(one_model):
    engine = Engine(novelty=True, is_open=True)
    async with in_process(one_model, lambda *_: engine, inference_threads=1) as server:
        batcher = server._repository.get("toy").batcher
        with pytest.raises(Exception, match="deadline"):
            await batcher.assign(rows(3, 0, [50]), deadline_ns=1)
        samples, _ = await scrape(server)
    assert Scraped(samples)("nvisa_dropped_rows", "_total", **TOY, reason="expired") == 3


async def test_nothing_is_shown_of_a_model_that_was_unloaded(repository):
    def engine(bundle, *_):
        return FakeEngine(bundle.manifest.n_clusters)

    async with (
        in_process(repository, engine) as server,
        grpc.aio.insecure_channel(f"127.0.0.1:{server.grpc_port}") as channel,
    ):
        stub = ClusterServiceStub(channel)
        for version in (1, 2, 1):
            await stub.Assign(request(random_rows(3), model_version=version))
        before, _ = await scrape(server)
        server.metrics.unloaded("toy", 1)
        await stub.Assign(request(random_rows(3), model_version=1))  # what its last calls count is not shown
        after, _ = await scrape(server)

    def of(samples, model, version):
        wanted = {("model", model), ("version", version)}
        return {key for key in samples if wanted <= key[1]}

    assert len(of(before, "toy", "1")) > 100
    assert of(after, "toy", "1") == set()
    assert of(after, "toy", "2") == of(before, "toy", "2")
    assert of(after, "features", "1") == of(before, "features", "1")


async def test_a_caller_cannot_make_labels(one_model):
    engine = FakeEngine(10, novelty=True)
    async with (
        in_process(one_model, lambda *_: engine) as server,
        grpc.aio.insecure_channel(f"127.0.0.1:{server.grpc_port}") as channel,
    ):
        stub = ClusterServiceStub(channel)

        async def ask(i):
            with contextlib.suppress(grpc.aio.AioRpcError):
                await stub.Assign(request(random_rows(1), model_name=f"m{i}", model_version=i))
            with contextlib.suppress(grpc.aio.AioRpcError):
                await channel.unary_unary(f"/{NATIVE}/Method{i}")(b"")

        await ask(1)
        before, _ = await scrape(server)
        for i in range(2, 50):
            await ask(i)
        after, _ = await scrape(server)
    assert set(after) == set(before)
