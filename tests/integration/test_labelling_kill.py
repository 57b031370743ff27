"""The labelling job as a process of its own: killed, stopped, out of disk, and several at once."""

from __future__ import annotations

import resource
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from tests.bundles import make_bundle, random_rows

N_ROWS = 20_000
ROWS_PER_SHARD = 400
N_SHARDS = N_ROWS // ROWS_PER_SHARD
CHUNK_ROWS = "4"  # so small that a run takes seconds on any machine: time enough to kill it


@pytest.fixture(scope="module")
def job(tmp_path_factory):
    """The command without ``--output``, and the table of an uninterrupted run."""
    folder = tmp_path_factory.mktemp("job")
    np.save(folder / "x.npy", random_rows(N_ROWS))
    command = [
        sys.executable, "-m", "serving.labelling.cli", "--model", str(make_bundle(folder / "models")),
        "--input", str(folder / "x.npy"), "--rows-per-shard", str(ROWS_PER_SHARD), "--chunk-rows", CHUNK_ROWS,
        "--device", "cpu", "--threads", "1",
    ]  # fmt: skip
    done = subprocess.run([*command, "--output", str(folder / "whole")], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return command, pq.read_table(folder / "whole")


def start(command: list[str], output: Path, *more: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [*command, "--output", str(output), *more], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def n_parts(output: Path) -> int:
    return len(list(output.glob("part-*.parquet")))


def wait_for_parts(process: subprocess.Popen[str], output: Path, n: int) -> None:
    while n_parts(output) < n:
        assert process.poll() is None, process.communicate()
        time.sleep(0.002)


def finish(process: subprocess.Popen[str]) -> tuple[str, str]:
    out, err = process.communicate(timeout=120)
    assert process.returncode == 0, err
    return out, err


def check_complete(output: Path, whole) -> None:
    assert (output / "_SUCCESS").exists()
    table = pq.read_table(output)
    np.testing.assert_array_equal(table["row"], np.arange(N_ROWS))
    assert table.equals(whole)
    assert not [p for p in output.rglob("*") if p.name.startswith(".")]


def test_killed_twice_and_resumed(job, tmp_path):
    command, whole = job
    output = tmp_path / "out"
    kept = 0
    for _ in range(2):
        process = start(command, output, "--resume")
        wait_for_parts(process, output, kept + 5)
        process.send_signal(signal.SIGKILL)
        process.communicate()
        assert process.returncode == -signal.SIGKILL
        kept = n_parts(output)
        assert 0 < kept < N_SHARDS
        assert not (output / "_SUCCESS").exists()
    times = {p.name: p.stat().st_mtime_ns for p in output.glob("part-*.parquet")}
    finish(start(command, output, "--resume"))
    check_complete(output, whole)
    # At most the shard whose sidecar was not yet there is done again after each kill.
    redone = [name for name, time_ns in times.items() if (output / name).stat().st_mtime_ns != time_ns]
    assert len(redone) <= 1


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_stopped_by_a_signal_and_resumed(job, tmp_path, number):
    command, whole = job
    output = tmp_path / "out"
    process = start(command, output)
    wait_for_parts(process, output, 3)
    process.send_signal(number)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 128 + number
    assert "--resume" in err
    assert "Traceback" not in err
    assert not [p for p in output.rglob("*") if p.name.startswith(".")]
    assert not (output / "_SUCCESS").exists()
    finish(start(command, output, "--resume"))
    check_complete(output, whole)


def test_several_processes_at_once_one_of_them_killed(job, tmp_path):
    command, whole = job
    output = tmp_path / "out"
    processes = [start(command, output, "--shard", f"{i}/3") for i in range(3)]
    wait_for_parts(processes[1], output, 10)
    processes[1].send_signal(signal.SIGKILL)
    processes[1].communicate()
    finish(processes[0])
    finish(processes[2])
    assert not (output / "_SUCCESS").exists()
    finish(start(command, output, "--shard", "1/3", "--resume"))
    check_complete(output, whole)


def test_disk_full_is_worth_a_retry_and_leaves_nothing_half(job, tmp_path):
    command, whole = job
    output = tmp_path / "out"
    limited = subprocess.run(
        [*command, "--output", str(output)],
        capture_output=True,
        text=True,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (2048, 2048)),
    )
    assert limited.returncode == 1, limited.stderr
    assert "File too large" in limited.stderr
    assert "Traceback" not in limited.stderr
    assert [p.name for p in output.iterdir() if p.is_file()] == ["_plan.json"]
    finish(start(command, output, "--resume"))
    check_complete(output, whole)
