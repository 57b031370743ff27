"""Real bundles and the real server: versions change under load, and memory that was taken is given back."""

from __future__ import annotations

import asyncio
import shutil
from pathlib import Path

import grpc
import numpy as np

from serving.bundle import read_bundle
from serving.engine import OnnxEngine
from serving.labels import LABELS_FILE
from serving.loading import onnx_engine
from serving.pb.nvisa.v1 import cluster_pb2 as pb
from serving.pb.nvisa.v1.cluster_pb2_grpc import ClusterServiceStub
from tests.bundles import make_bundle, random_rows
from tests.reloads import memory_over_reloads
from tests.servers import in_process

CALLERS = 6


async def test_no_call_fails_or_is_answered_wrongly_while_versions_come_go_and_labels_move(tmp_path):
    repository, store = tmp_path / "models", tmp_path / "store"
    make_bundle(repository, seed=1)
    bundles = {1: repository / "toy" / "1"}
    bundles |= {version: make_bundle(store, version=version, seed=version) for version in (2, 3, 4)}
    rows = random_rows(40)
    expected = {v: OnnxEngine(read_bundle(path), "cpu").assign(rows).clusters for v, path in bundles.items()}
    assert len({clusters.tobytes() for clusters in expected.values()}) == len(expected)
    tensor = pb.Tensor(dtype=pb.DATA_TYPE_UINT8, shape=rows.shape, data=rows.tobytes())
    answers: list[int] = []
    done = asyncio.Event()

    async def call(stub: ClusterServiceStub) -> None:
        while not done.is_set():
            reply = await stub.Assign(pb.AssignRequest(model_name="toy", input=tensor))
            clusters = np.frombuffer(reply.clusters_data, "<i8")
            np.testing.assert_array_equal(clusters, expected[reply.model_version])
            answers.append(reply.model_version)

    async def until_answered_by(*versions: int) -> None:
        """Until these versions answer, and only these."""
        async with asyncio.timeout(60):
            while True:
                before = len(answers)
                while len(answers) < before + 60:
                    assert not any(caller.done() for caller in callers), callers
                    await asyncio.sleep(0.001)
                if set(answers[before + CALLERS :]) == set(versions):
                    return

    def label(text: str) -> None:
        (tmp_path / "labels").write_text(text)
        (tmp_path / "labels").replace(repository / "toy" / LABELS_FILE)

    async with (
        in_process(repository, onnx_engine, model_control="poll", poll_seconds=0.02) as server,
        grpc.aio.insecure_channel(f"127.0.0.1:{server.grpc_port}") as channel,
    ):
        stub = ClusterServiceStub(channel)
        callers = [asyncio.create_task(call(stub)) for _ in range(CALLERS)]
        await until_answered_by(1)
        bundles[2].rename(repository / "toy" / "2")
        await until_answered_by(2)
        label("stable: 1\ncanary: {version: 2, share: 0.5}")
        await until_answered_by(1, 2)
        label("stable: 2\nshadow: {version: 1}")
        await until_answered_by(2)
        copied = repository / "toy" / "3"
        copied.mkdir()
        for path in bundles[3].iterdir():  # slowly, as over a network
            content = path.read_bytes()
            with (copied / path.name).open("wb") as file:
                for start in range(0, len(content), 1000):
                    file.write(content[start : start + 1000])
                    file.flush()
                    await asyncio.sleep(0.005)
        label("stable: 3")
        await until_answered_by(3)
        shutil.rmtree(repository / "toy" / "1")
        shutil.rmtree(repository / "toy" / "2")
        (repository / "toy" / LABELS_FILE).unlink()
        bundles[4].rename(repository / "toy" / "4")
        await until_answered_by(4)
        shutil.rmtree(repository / "toy" / "4")  # a rollback without labels
        await until_answered_by(3)
        done.set()
        await asyncio.gather(*callers)
        answered = sum(
            server.metrics.registry.get_sample_value(
                "nvisa_requests_total", {"method": "nvisa.v1.ClusterService/Assign", "code": code}
            )
            for code in ("OK", "INTERNAL")
        )
        assert answered == len(answers)
        assert [model.version for model in server._repository.models()] == [3]


def test_an_unloaded_model_gives_its_memory_back(tmp_path: Path):
    sizes = memory_over_reloads(tmp_path, reloads=8)
    # The graph has 20 MB; were it left behind each time, these would lie 100 MB apart.
    assert sizes.loaded - sizes.unloaded[-1] > 15
    assert sizes.unloaded[-1] - sizes.unloaded[2] < 30
