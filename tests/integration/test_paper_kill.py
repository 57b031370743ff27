"""A table whose command is killed, with two runs on their way, and then given again."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.papers import write_mnist

METHODS = ["nvil", "gumbel-annealed", "vimco-mean-field-annealed", "vimco-annealed"]


def command(folder: Path, *more: str) -> list[str]:
    return [
        *(sys.executable, "-m", "training.cli", "paper", "table2", "--quick", "--device", "cpu"),
        *("--data", str(folder / "data"), "--output", str(folder / "out"), "--methods", *METHODS, *more),
    ]


def children(pid: int) -> list[int]:
    found = []
    for path in Path(f"/proc/{pid}/task").glob("*/children"):
        found += [int(word) for word in path.read_text().split()]
    return found


def alive(pid: int) -> bool:
    try:
        return "State:\tZ" not in Path(f"/proc/{pid}/status").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return False


def wait_for(condition, what: str, seconds: float = 120) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, what
        time.sleep(0.02)


@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="finds child processes in Linux's /proc")
def test_a_killed_table_leaves_no_process_and_is_gone_on_with(tmp_path):
    write_mnist(tmp_path / "data" / "mnist", rows=100, n_clusters=10, side=4)
    results = tmp_path / "out" / "table2-quick" / "mnist"
    models = tmp_path / "out" / "table2-quick" / "models" / "mnist"
    process = subprocess.Popen(command(tmp_path, "--jobs", "2"), stderr=subprocess.DEVNULL)
    try:
        wait_for(
            lambda: (
                process.poll() is not None
                or (list(results.glob("*.json")) and list(models.glob("vimco-*/restart-0/*")))
            ),
            "no run finished with another on its way",
        )
        assert process.poll() is None, "it was to be killed before its end"
        workers = children(process.pid)
        assert len(workers) >= 2
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()
    wait_for(lambda: not any(map(alive, workers)), "its processes are still there")
    kept = {path: path.read_bytes() for path in results.glob("*.json")}
    assert 1 <= len(kept) < len(METHODS)

    done = subprocess.run(command(tmp_path), capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stderr
    assert f"{len(METHODS)} runs, {len(kept)} of them there already" in done.stderr
    assert {path.stem for path in results.glob("*.json")} == {f"{method}-0" for method in METHODS}
    assert all(path.read_bytes() == content for path, content in kept.items())
    assert "N/A | N/A" not in done.stdout
    assert not list(results.glob(".*")), "what the killed process left is removed"


def test_what_cannot_be_done_is_said_in_a_line(tmp_path):
    done = subprocess.run(command(tmp_path), capture_output=True, text=True, timeout=200)
    assert done.returncode == 2
    assert "MNIST: no IDX files in" in done.stderr
    assert done.stderr.endswith(f"nvisa-train paper: --data {tmp_path / 'data'}: none of mnist is there\n")
