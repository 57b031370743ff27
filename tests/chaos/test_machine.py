"""The machine under a server: a disk that is full, and a clock that jumps."""

from __future__ import annotations

import shlex
import shutil
import subprocess
import sys
import time
from datetime import datetime
from pathlib import Path

import grpc
import numpy as np
import pyarrow.parquet as pq
import pytest

from serving.pb.nvisa.v1.cluster_pb2_grpc import ClusterServiceStub
from tests.chaos.load import Load, request, total
from tests.servers import ROOT, TIMEOUT, ServerProcess, environment

FAKETIME = next(Path("/usr").glob("lib*/**/faketime/libfaketimeMT.so.1"), None)


def namespace():
    """The command that runs another where it may mount, or ``None``."""
    for command in (("unshare", "--mount"), ("unshare", "--user", "--map-root-user", "--mount")):
        mount = (*command, "mount", "-t", "tmpfs", "-o", "size=64k", "none", "/mnt")
        if shutil.which("unshare") and not subprocess.run(mount, capture_output=True, check=False).returncode:
            return command
    return None


NAMESPACE = namespace()
needs_mounts = pytest.mark.skipif(NAMESPACE is None, reason="no mount namespaces here: a full disk needs one")


def on_small_disk(folder, size, script):
    """Run ``script`` with a disk of ``size`` at ``folder``, that nobody else sees; what it printed."""
    mount = f"mount -t tmpfs -o size={size} none {shlex.quote(str(folder))}"
    done = subprocess.run(
        [*NAMESPACE, "sh", "-c", f"set -e\n{mount}\nset +e\n{script}"],
        cwd=ROOT,
        env=environment(),
        capture_output=True,
        text=True,
        timeout=2 * TIMEOUT,
        check=False,
    )
    return done.stdout, done.stderr


def test_a_log_that_cannot_be_written_costs_no_call(repository, answers, tmp_path, seconds):
    """The disk with the log is full: a server that logs every call, on /dev/full."""
    with (
        ServerProcess(repository, tmp_path, "--log-level", "debug", log=Path("/dev/full")) as server,
        Load(server.grpc_target, answers) as load,
    ):
        time.sleep(seconds)
        load.answered(50)
        assert server.get("/readyz")[0] == 200
        load.stop()
        assert total(server, "nvisa_requests_total") == load.codes["OK"] + load.retried["OK"]
        server.terminate()
        assert server.wait() == 0
    assert load.wrong == 0
    assert set(load.codes) == {"OK"}, load.details


@needs_mounts
def test_a_port_file_that_cannot_be_written_stops_the_start(repository, tmp_path):
    disk = tmp_path / "disk"
    disk.mkdir()
    serve = [
        *(sys.executable, "-m", "serving.cli", "--model-repository", str(repository), "--device", "cpu"),
        *("--grpc-port", "0", "--metrics-port", "0", "--port-file", str(disk / "ports.json")),
    ]
    script = f"head -c 1M /dev/zero >{disk}/filler\n{shlex.join(serve)}\necho status $?; ls -A {disk}"
    out, err = on_small_disk(disk, "64k", script)
    assert out == "status 1\nfiller\n"
    assert f"cannot start: cannot write --port-file {disk}/ports.json: No space left on device" in err


@needs_mounts
def test_a_job_whose_disk_is_full_ends_and_goes_on_when_there_is_room(repository, answers, tmp_path):
    """Against a server under load, which does not notice; nothing half-written counts, and no row is lost."""
    rows = np.concatenate([answers.rows] * 200)
    expected = np.concatenate([answers.clusters] * 200)
    np.save(tmp_path / "x.npy", rows)
    disk, kept = tmp_path / "disk", tmp_path / "kept"
    disk.mkdir()
    with (
        ServerProcess(repository, tmp_path) as server,
        Load(server.grpc_target, answers) as load,
    ):
        job = [
            *(sys.executable, "-m", "serving.labelling.cli", "--model", str(repository / "toy" / "1")),
            *("--input", str(tmp_path / "x.npy"), "--output", str(disk / "out"), "--rows-per-shard", "8192"),
            *("--target", server.grpc_target),
        ]
        script = (
            f"{shlex.join(job)} >&2\necho $?\n"
            f"ls -A {disk}/out | grep -c '[.]tmp$'; ls {disk}/out | grep -cx _SUCCESS\n"
            f"mount -o remount,size=64m {disk}\n"
            f"{shlex.join([*job, '--resume'])} >&2\necho $?\n"
            f"cp -r {disk}/out {kept}"
        )
        out, err = on_small_disk(disk, "256k", script)
        load.answered(20)
        load.stop()
    first, leftovers, finished, second = map(int, out.split())
    assert first not in (0, 42), "another try helps, once there is room"
    assert "No space left on device" in err
    assert (leftovers, finished, second) == (0, 0, 0)
    table = pq.read_table(sorted(kept.glob("*.parquet")))
    order = np.argsort(table["row"].to_numpy())
    np.testing.assert_array_equal(table["cluster"].to_numpy()[order], expected)
    assert (kept / "_SUCCESS").exists()
    assert load.wrong == 0
    assert set(load.codes) == {"OK"}, load.details


@pytest.mark.skipif(
    FAKETIME is None, reason="libfaketime is not installed (on Debian: apt-get install libfaketime)"
)
def test_a_clock_that_jumps_changes_no_answer_and_no_deadline(repository, answers, tmp_path, seconds):
    """Only the wall clock jumps, as when somebody sets it: a day ahead, two days back, and a day ahead."""
    offset = tmp_path / "offset"

    def jump(to):
        offset.with_suffix(".new").write_text(to)
        offset.with_suffix(".new").replace(offset)

    jump("+0")
    env = {
        "LD_PRELOAD": str(FAKETIME),
        "FAKETIME_TIMESTAMP_FILE": str(offset),
        "FAKETIME_NO_CACHE": "1",
        "FAKETIME_DONT_FAKE_MONOTONIC": "1",
        "DONT_FAKE_MONOTONIC": "1",
    }
    flags = ("--workers", "2", "--log-level", "debug", "--drift-window-rows", "1000")
    health = ("--health-port", "0", "--max-queue-delay", "0.01")
    with (
        ServerProcess(repository, tmp_path, *flags, *health, env=env) as server,
        grpc.insecure_channel(server.grpc_target) as channel,
        Load(server.grpc_target, answers) as load,
    ):
        stub = ClusterServiceStub(channel)
        jumps = ("+86400", "-86400", "+0")
        for to in jumps:
            jump(to)
            end = time.monotonic() + seconds / len(jumps)
            while time.monotonic() < end:
                load.answered(10)
                # A short deadline is neither passed at once nor put off.
                stub.Assign(request(answers.rows[:2]), timeout=20)
            assert server.get("/readyz")[0] == 200
            drift = total(server, "nvisa_cluster_drift_rows")
            assert 0 < drift <= 1000
        load.stop()
        server.terminate()
        assert server.wait() == 0
    assert load.wrong == 0
    assert set(load.codes) == {"OK"}, load.details
    assert set(load.retried) == {"OK"}, load.details
    calls = [entry for entry in server.log() if entry["message"] == "call"]
    days = {datetime.fromisoformat(entry["time"]).date() for entry in calls}
    assert len(days) >= 3, "the server's clock did jump"
    assert all(0 <= entry["seconds"] < 20 for entry in calls)
