"""The parts of ``benchmarks/serving_speed.py``: what it would not notice, no figure of it would show."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
import time

import numpy as np
import pytest

from serving.pb.inference import grpc_service_pb2 as oip
from serving.pb.nvisa.v1 import cluster_pb2 as pb
from tests import benchmarks  # noqa: F401  first: the imports below are found through it

import serving_table  # isort: skip
from serving_peers import cases, environments, h2load, mixed, processes, systems, timer  # isort: skip
from serving_peers.http11 import Connections, HttpError  # isort: skip
from serving_peers.model import Rows, images  # isort: skip
from serving_peers.record import Record, summary  # isort: skip
from serving_peers.wires import WIRES, WireError, questions  # isort: skip

N_CLUSTERS = 10


@pytest.fixture
def rows() -> Rows:
    rng = np.random.default_rng(0)
    odds = rng.random((40, N_CLUSTERS)).astype(np.float32)
    probabilities = odds / odds.sum(axis=1, keepdims=True)
    return Rows(images(40), probabilities.argmax(axis=1).astype(np.int64), probabilities)


def reply(wire: str, clusters: np.ndarray, probabilities: np.ndarray) -> bytes:
    if wire == "native":
        return pb.AssignResponse(
            clusters_data=clusters.tobytes(), probabilities_data=probabilities.tobytes()
        ).SerializeToString()
    if wire == "oip":
        outputs = [
            oip.ModelInferResponse.InferOutputTensor(name="cluster", datatype="INT64", shape=[len(clusters)]),
            oip.ModelInferResponse.InferOutputTensor(
                name="probabilities", datatype="FP32", shape=probabilities.shape
            ),
        ]
        return oip.ModelInferResponse(
            outputs=outputs, raw_output_contents=[clusters.tobytes(), probabilities.tobytes()]
        ).SerializeToString()
    return clusters.tobytes() + probabilities.tobytes()


@pytest.mark.parametrize("wire", list(WIRES))
def test_right_answers_are_right_and_all_others_wrong(wire, rows):
    _, question = questions(WIRES[wire], rows, [5, 8])
    part = slice(5, 13)
    clusters, probabilities = rows.clusters[part], rows.probabilities[part]

    def judged(clusters: np.ndarray, probabilities: np.ndarray) -> bool:
        return question.is_right(WIRES[wire].answer(reply(wire, clusters, probabilities)))

    assert judged(clusters, probabilities)
    assert judged(clusters, probabilities)  # the second time from memory
    assert judged(clusters, probabilities + np.float32(1e-6))
    assert not judged((clusters + 1) % N_CLUSTERS, probabilities)
    assert not judged(clusters, probabilities + np.float32(1e-3))
    assert not judged(clusters, np.full_like(probabilities, np.nan))
    assert not judged(clusters[::-1].copy(), probabilities[::-1].copy())
    assert not judged(rows.clusters[:8], rows.probabilities[:8])  # another request's
    assert not judged(clusters[:4], probabilities[:4])


def test_requests_hold_the_rows_that_they_are_about(rows):
    native, raw = (questions(WIRES[wire], rows, [30, 30])[1].message for wire in ("native", "http"))
    # Of forty rows, the second thirty begin at the first again.
    assert pb.AssignRequest.FromString(native).input.data == raw == rows.x[:30].tobytes()


def test_unreadable_answers_count_as_wrong_and_refusals_as_what_they_are(rows):
    record = Record("oip")
    (question,) = questions(WIRES["oip"], rows, [2])
    good = reply("oip", rows.clusters[:2], rows.probabilities[:2])
    record.add(question, time.monotonic(), "OK", good)
    record.add(question, time.monotonic(), "OK", b"")
    record.add(question, time.monotonic(), "OK", b"\xff\xff")
    record.add(question, time.monotonic(), "RESOURCE_EXHAUSTED", b"full")
    assert (len(record.answers), record.wrong) == (1, 2)
    assert record.codes == {"OK": 3, "RESOURCE_EXHAUSTED": 1}
    found = summary(record, 2.0, 0.5, 0.1, time.monotonic() - 0.5, by_second=True)
    assert found["rows_per_second"] == 1.0
    assert found["server_cpu_seconds_per_million_rows"] == 250000.0
    assert [second["answers"] for second in found["by_second"]] == [1]
    assert found["errors"]["RESOURCE_EXHAUSTED"] == "full"


def test_typed_tensors_and_cut_bodies_are_refused():
    tensor = oip.ModelInferResponse.InferOutputTensor(name="cluster", datatype="INT64", shape=[1])
    with pytest.raises(WireError, match="raw tensors went out"):
        WIRES["oip"].answer(oip.ModelInferResponse(outputs=[tensor]).SerializeToString())
    with pytest.raises(WireError, match="no whole number"):
        WIRES["http"].answer(b"oops")


@pytest.mark.parametrize(
    ("head", "body"),
    [
        (b"Content-Length: 5", b"right"),
        (b"Transfer-Encoding: chunked", b"2\r\nri\r\n3;x=y\r\nght\r\n0\r\n\r\n"),
        (b"Connection: close\r\nContent-Length: 5", b"right"),
    ],
)
async def test_http_replies_are_read_and_connections_kept(head, body):
    asked, gone = [], asyncio.Semaphore(0)

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while True:
            try:
                await reader.readuntil(b"\r\n\r\n")
            except asyncio.IncompleteReadError:
                break
            asked.append(await reader.readexactly(3))
            writer.write(b"HTTP/1.1 200 OK\r\n" + head + b"\r\n\r\n" + body)
            if b"close" in head:
                break
        writer.close()
        await writer.wait_closed()
        gone.release()

    async with await asyncio.start_server(serve, "127.0.0.1", 0) as server:
        connections = Connections(*server.sockets[0].getsockname(), "/x")
        for _ in range(3):
            assert await connections.post(b"abc") == (200, b"right")
        await connections.close()
        for _ in range(3 if b"close" in head else 1):
            await gone.acquire()
    assert asked == [b"abc"] * 3


async def test_a_cut_http_reply_is_an_error():
    gone = asyncio.Event()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 50\r\n\r\nshort")
        writer.close()
        await writer.wait_closed()
        gone.set()

    async with await asyncio.start_server(serve, "127.0.0.1", 0) as server:
        with pytest.raises(HttpError, match="no whole reply"):
            await Connections(*server.sockets[0].getsockname(), "/x").post(b"")
        await gone.wait()


async def test_the_alarm_does_not_ring_early_and_does_not_wait_for_the_past():
    alarm = timer.Alarm()
    for wait in (0.003, 0.0004, -1.0):
        when = time.monotonic() + wait
        await asyncio.wait_for(alarm.until(when), 30)
        assert time.monotonic() >= when
    alarm.close()


def test_costs_are_of_all_processes():
    burn = "import time; end = time.process_time() + 0.3\nwhile time.process_time() < end: pass\n"
    child = f"import subprocess, sys; p = subprocess.Popen([sys.executable, '-c', {burn + 'input()'!r}]); p.wait()"
    with subprocess.Popen([sys.executable, "-c", child], stdin=subprocess.PIPE) as process:
        while processes.cpu_seconds(process.pid) < 0.3:
            time.sleep(0.02)
        family = processes.tree(process.pid)
        assert len(family) == 2
        alone = processes.pss_megabytes(family[1])
        assert processes.pss_megabytes(process.pid) > alone > 0
        assert all(processes.started_at(pid) for pid in family)
        process.communicate(b"\n")
    assert processes.cpu_seconds(process.pid) == 0.0
    assert processes.started_at(process.pid) is None


_H2LOAD = """requests: {total} total, {total} started, {done} done, {ok} succeeded, {failed} failed, {failed} errored, 0 timeout
traffic: 401.78KB (411422) total, 10.39KB (10644) headers (space savings 96.19%), 300.17KB ({data}) data
"""


def test_what_h2load_says_is_understood_and_refusals_are_no_answers():
    good = _H2LOAD.format(total=2878, done=2878, ok=2878, failed=0, data=307370)
    assert h2load.read(good, 64, 2.0) == {"case": "h2load 1x64", "calls_per_second": 1439.0}
    for bad in (
        _H2LOAD.format(total=2878, done=2878, ok=2878, failed=0, data=2000),  # trailers alone
        _H2LOAD.format(total=2878, done=2878, ok=2800, failed=78, data=307370),
        "could not connect",
    ):
        with pytest.raises(RuntimeError, match="h2load"):
            h2load.read(bad, 64, 2.0)


def test_every_peer_has_its_versions_and_its_script():
    peers = [system for system in systems.SYSTEMS.values() if system.package is not None]
    assert len(peers) == 6
    for system in peers:
        pinned = environments.requirements(system).read_text().splitlines()
        assert all("==" in line or line.startswith("#") for line in pinned)
        found = environments.versions(system)
        assert set(found) == {system.package, "onnxruntime"}
    assert len({environments.versions(system)["onnxruntime"] for system in peers}) == 1


def test_a_peer_that_cannot_be_installed_says_why(tmp_path):
    system = systems.SYSTEMS["pytriton"]
    with pytest.raises(environments.InstallError, match="not installed"):
        environments.prepare(system, tmp_path, tmp_path / "no-python")
    assert not (tmp_path / system.name / "requirements-installed.txt").exists()


def test_sizes_of_the_mixed_load_go_from_one_to_all():
    found = mixed.sizes(1000, 4096)
    assert min(found) == 1
    assert 2048 < max(found) <= 4096


def turn(name: str, rate: float) -> dict:
    made = {
        case["name"]: {
            "calls_per_second": rate,
            "rows_per_second": rate * case["rows"],
            "codes": {"OK": 9} if name != "naive" else {"OK": 8, "UNAVAILABLE": 1},
            "wrong": 0,
            "p50_ms": 1000 / rate,
            "p99_ms": 2000 / rate,
            "server_cpu_seconds_per_million_rows": 1e6 / rate / case["rows"],
        }
        for case in cases.standard(1.0)
    }
    return {"start_seconds": 0.5, "idle_megabytes": 50.0, "peak_megabytes": 60.0, "cases": made}


def test_the_table_is_of_medians_and_ratios_within_a_round():
    loop = {
        "batch": 256,
        "sessions": 2,
        "threads": 1,
        "rows_per_second": 256_000.0,
        "cpu_seconds_per_million_rows": 8.0,
        "single_row_ms": 0.1,
    }
    rounds = [
        {
            "loop": loop,
            "echo": turn("echo", 1000 * f),
            "naive": turn("naive", 300 * f),
            "nvisa": turn("nvisa", 500 * f),
        }
        for f in (1.0, 2.0, 1.0)
    ]
    # Model and transport of 256 rows take a millisecond each: at most 500 calls a second.
    assert serving_table.bound(rounds[0], "256x8") == pytest.approx(128_000)
    result = {
        "rounds": rounds,
        "machine": "m",
        "note": "of yesterday",
        "versions": {"nvisa": "1"},
        "unavailable": {"rayserve": "it is not there"},
    }
    shown = serving_table.render(
        result, lambda header, lines: json.dumps([header, *lines], ensure_ascii=False)
    )
    assert '"nvisa-serve", "2.00", "500", "–", "500", "128,000 (1.00)"' in shown
    assert "0, 21 failed" in shown  # seven cases in three rounds
    assert '"the same over the naive server", "≥ 2", "1.67 ×"' in shown
    assert "Ray Serve: it is not there" in shown
    assert "Note: of yesterday." in shown
    # 2 ms over the echo's 1 ms and the model's 0.1 ms; in the second round 1 over 0.6.
    assert '"half load, p50 over the echo\'s plus one model run", "≤ 1.5", "1.82 ×"' in shown


def test_settings_of_our_server_do_not_reach_the_systems(monkeypatch):
    monkeypatch.setenv("NVISA_SERVE_WORKERS", "3")
    found = systems.environment(systems.SYSTEMS["nvisa"])
    assert "NVISA_SERVE_WORKERS" not in found
    assert found["PATH"] == os.environ["PATH"]
