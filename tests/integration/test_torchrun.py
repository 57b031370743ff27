"""Restarts over two processes that torchrun starts: the files of one process, and no process left behind."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

FIT = ["-m", "training.cli", "fit"]
TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
SETTINGS = [
    "--clusters", "3", "--epochs", "4", "--hidden-sizes", "8", "--latent-dim", "2", "--pretrain-epochs", "2",
    "--gmm-starts", "1", "--checkpoint-seconds", "0", "--restarts", "3", "--device", "cpu",
]  # fmt: skip
OWN_STAGES = ["--epochs", "90", "--stage-tolerance", "0.3", "--epsilon-every", "40"]
ENVIRONMENT = os.environ | {"OMP_NUM_THREADS": "1"}


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    random = np.random.default_rng(0)
    x = 6 * random.standard_normal((3, 1, 4)) + random.standard_normal((3, 40, 4))
    path = tmp_path_factory.mktemp("data") / "x.npy"
    np.save(path, x.reshape(-1, 4).astype(np.float32))
    return path


@pytest.fixture(scope="module")
def spread(data, tmp_path_factory) -> Path:
    """A finished fit of three restarts over two ranks."""
    output = tmp_path_factory.mktemp("spread") / "run"
    done = run([*TORCHRUN, *FIT, str(data), *SETTINGS, "--output", str(output)])
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("run written to") == 1, "rank 0 alone speaks"
    assert done.stderr.count("settings: ") == 1
    return output


def run(command: list[str]) -> subprocess.CompletedProcess:
    return subprocess.run(command, capture_output=True, text=True, timeout=250, env=ENVIRONMENT)


def without_time(value):
    if isinstance(value, dict):
        return {name: without_time(each) for name, each in value.items() if name != "seconds"}
    return [without_time(each) for each in value] if isinstance(value, list) else value


def test_two_ranks_write_what_one_process_writes(data, spread, tmp_path):
    alone = tmp_path / "run"
    done = run([sys.executable, *FIT, str(data), *SETTINGS, "--output", str(alone)])
    assert done.returncode == 0, done.stderr
    files, ours = ({p.relative_to(d) for d in [top] for p in d.rglob("*")} for top in (alone, spread))
    assert files == ours
    for name in ("model.safetensors", "rows.safetensors", "run.json"):
        assert (spread / name).read_bytes() == (alone / name).read_bytes(), name
    ours, theirs = (json.loads((top / "fit.json").read_text()) for top in (spread, alone))
    assert without_time(ours) == without_time(theirs)
    assert [restart["seed"] for restart in ours["restarts"]] == [0, 1, 2]


def test_ranks_end_their_stages_as_one_process_does(data, tmp_path):
    found = {}
    for name, launcher in (("spread", TORCHRUN), ("alone", [sys.executable])):
        output = ["--output", str(tmp_path / name)]
        done = run([*launcher, *FIT, str(data), *SETTINGS, *OWN_STAGES, *output])
        assert done.returncode == 0, done.stderr
        found[name] = without_time(json.loads((tmp_path / name / "fit.json").read_text()))
    assert found["spread"] == found["alone"]
    epochs = [restart["epochs"] for restart in found["alone"]["restarts"]]
    assert max(epochs) < 90
    assert len(set(epochs)) > 1, "each restart has stages of its own"


def test_what_rank_0_alone_finds_wrong_ends_both_and_is_said_once(data, spread):
    done = run([*TORCHRUN, *FIT, str(data), *SETTINGS, "--output", str(spread)])
    assert done.returncode != 0
    assert done.stderr.count("exists already: pass --resume") == 1


def test_a_rank_that_fails_ends_all_with_its_message(data, spread, tmp_path):
    output = tmp_path / "run"
    shutil.copytree(spread, output)
    damaged = output / "restart-1" / "checkpoint.safetensors"
    damaged.write_bytes(damaged.read_bytes()[:1000])
    command = [
        *TORCHRUN,
        *FIT,
        str(data),
        *SETTINGS,
        "--epochs",
        "1000000",
        "--resume",
        "--output",
        str(output),
    ]
    done = run(command)  # rank 0 would go on for days
    assert done.returncode != 0
    assert f"rank 1: nvisa-train fit: cannot read {damaged}" in done.stderr


def test_ctrl_c_leaves_nothing_behind(data, tmp_path):
    output = tmp_path / "run"
    process = subprocess.Popen(
        [*TORCHRUN, *FIT, str(data), *SETTINGS, "--epochs", "1000000", "--output", str(output)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=ENVIRONMENT,
    )
    histories = [output / f"restart-{index}" / "history.jsonl" for index in range(2)]
    deadline = time.monotonic() + 200
    while not all(path.exists() and path.read_text() for path in histories):
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.05)
    workers = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    process.send_signal(signal.SIGINT)
    _, error = process.communicate(timeout=60)
    assert process.returncode != 0
    assert error.count("interrupted; go on with --resume") == 1
    assert len(workers) == 2
    assert not [pid for pid in workers if Path(f"/proc/{pid}").exists()]
    assert not list(output.rglob(".*")), "no temporary file"
