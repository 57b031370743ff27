"""A fit as a process of its own: killed without warning, then resumed to the very same model."""

from __future__ import annotations

import os
import resource
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from functools import cache
from pathlib import Path

import numpy as np
import pytest

from training.checkpoint import load_tensors, read_json

FIT = [sys.executable, "-m", "training.cli", "fit"]
SETTINGS = [
    "--clusters", "3", "--epochs", "40", "--hidden-sizes", "16", "--latent-dim", "2",
    "--pretrain-epochs", "2", "--gmm-starts", "1", "--checkpoint-seconds", "0", "--restarts", "2",
]  # fmt: skip

# Each restart ends its stages by itself, and with the last of them its epochs.
OWN_STAGES = ["--epochs", "80", "--stage-tolerance", "0.3", "--epsilon-every", "40"]


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    random = np.random.default_rng(0)
    x = 6 * random.standard_normal((3, 1, 4)) + random.standard_normal((3, 40, 4))
    path = tmp_path_factory.mktemp("data") / "x.npy"
    np.save(path, x.reshape(-1, 4).astype(np.float32))
    return path


def run(*arguments: str) -> str:
    done = subprocess.run([*FIT, *arguments], capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stderr
    return done.stderr


def wait_for(condition, process: subprocess.Popen) -> None:
    while not condition():
        assert process.poll() is None, process.communicate()
        time.sleep(0.005)


@pytest.fixture(scope="module")
def undisturbed(data, tmp_path_factory) -> Callable[..., Path]:
    """Fits with more settings, which nothing disturbs; each but once."""

    @cache
    def fitted(*more: str) -> Path:
        output = tmp_path_factory.mktemp("undisturbed") / "run"
        run(str(data), *SETTINGS, *more, "--output", str(output))
        return output

    return fitted


@pytest.mark.parametrize(
    ("sign", "more"),
    [(signal.SIGKILL, []), (signal.SIGINT, []), (signal.SIGKILL, OWN_STAGES)],
    ids=["SIGKILL", "SIGINT", "SIGKILL, stages until converged"],
)
def test_killed_and_resumed_equals_uninterrupted(data, undisturbed, tmp_path, sign, more):
    whole, broken = undisturbed(*more), tmp_path / "broken"
    settings = [*SETTINGS, *more]
    epochs = [restart["epochs"] for restart in read_json(whole / "fit.json")["restarts"]]
    assert max(epochs) < 80 if more else epochs == [40, 40]

    process = subprocess.Popen(
        [*FIT, str(data), *settings, "--output", str(broken)],
        stderr=subprocess.PIPE,
        text=True,
        # A shell that runs the tests in the background has SIGINT ignored, and children inherit that.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    history = broken / "restart-1" / "history.jsonl"
    # In the second restart, some epochs in: the first must be kept, the second gone on with.
    wait_for(lambda: history.exists() and history.read_text().count("\n") >= 5, process)
    process.send_signal(sign)
    _, error = process.communicate(timeout=60)
    assert not (broken / "fit.json").exists(), "it was to be stopped before its end"
    if sign == signal.SIGINT:
        assert process.returncode == 130
        assert "go on with --resume" in error

    said = run(str(data), *settings, "--output", str(broken), "--resume")
    assert f"restart 1/2: resumed at epoch {epochs[0]}\n" in said
    assert "restart 2/2: resumed at epoch" in said
    expected, _ = load_tensors(whole / "model.safetensors")
    found, _ = load_tensors(broken / "model.safetensors")
    assert expected.keys() == found.keys()
    for name in expected:
        np.testing.assert_array_equal(found[name].numpy(), expected[name].numpy(), err_msg=name)
    assert not list(broken.rglob(".*")), "what the killed process left is removed"


def test_a_full_disk_leaves_the_last_checkpoint_and_says_what_to_do(data, tmp_path):
    arguments = [str(data), *SETTINGS, "--restarts", "1", "--output", str(tmp_path / "run")]
    run(*arguments, "--epochs", "3")
    kept = tmp_path / "run" / "restart-0" / "checkpoint.safetensors"
    before, room = kept.read_bytes(), kept.stat().st_size // 2
    process = subprocess.run(
        [*FIT, *arguments, "--epochs", "6", "--resume"],
        capture_output=True,
        text=True,
        timeout=200,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (room, room)),
    )
    assert process.returncode == 2
    assert process.stderr.endswith(f"File too large: {kept}; make room and go on with --resume\n")
    assert kept.read_bytes() == before
    assert "resumed at epoch 3" in run(*arguments, "--epochs", "6", "--resume")


SLOW_START = """
import numpy as np, torch
from training import embedding
from training.config import TrainingConfig
torch.set_num_threads(2)
embedding.PARALLEL_ROWS = 0
config = TrainingConfig(n_clusters=10, initialisation="umap", embeddings=2, gmm_starts=100_000)
embedding.responsibilities(np.random.default_rng(0).random((2_000, 4)), config, print)
"""


def children(pid: int) -> list[int]:
    found = subprocess.run(
        ["pgrep", "-f", "-P", str(pid), "LokyProcess"], stdout=subprocess.PIPE, check=False
    )
    return [int(child) for child in found.stdout.split()]


def runs(pid: int) -> bool:
    """Whether it is there, and no mere zombie that nobody has asked for."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except (FileNotFoundError, ProcessLookupError):
        return False


def await_that(holds: Callable[[], bool], otherwise: str) -> None:
    deadline = time.monotonic() + 60
    while not holds():
        assert time.monotonic() < deadline, otherwise
        time.sleep(0.2)


@pytest.mark.skipif(
    sys.platform != "linux" or shutil.which("pgrep") is None, reason="needs Linux's /proc, and pgrep"
)
def test_processes_that_embed_end_with_a_fit_that_is_killed():
    with subprocess.Popen([sys.executable, "-c", SLOW_START]) as start:
        try:
            await_that(lambda: len(children(start.pid)) == 2, "no two processes")
            workers = children(start.pid)
            time.sleep(5)  # in which they begin
        finally:
            start.kill()
    try:
        await_that(lambda: not any(runs(pid) for pid in workers), "they were left behind")
    finally:
        for pid in filter(runs, workers):
            os.kill(pid, signal.SIGKILL)
