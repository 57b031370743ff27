"""Fits of data that the process may not hold: as processes of their own, with a limit that they would hit."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from training.checkpoint import load_tensors
from training.cli import main

CLI = [sys.executable, "-m", "training.cli"]

# Runs several commands, after everything is imported, one after the other. The limit is on memory that is the
# process's own; mapped files can be dropped at any time and do not count.
LIMITED = """
import json, resource, sys
import torch, training.cli, training.data, training.evaluation, training.fit, training.report
torch.ones(2, 2) @ torch.ones(2, 2)
status = open("/proc/self/status").read()
own = int(status.split("VmData:")[1].split()[0]) * 1024
resource.setrlimit(resource.RLIMIT_DATA, (own + {room}, own + {room}))
for arguments in json.loads(sys.argv[1]):
    print(arguments[0], training.cli.main(arguments))
"""
# Narrow rows: a step and the warm bound work on [samples, rows, features], whatever the size of the data.
ROWS, FEATURES = 1_000_000, 128
# A fit takes 200 to 270 MiB of it, as its threads happen to meet.
ROOM = 448 * 2**20


@pytest.fixture(scope="module")
def large(tmp_path_factory) -> Path:
    """A sparse file of 489 MiB: only its first rows take room on the disk."""
    path = tmp_path_factory.mktemp("large") / "x.npy"
    x = np.lib.format.open_memmap(path, "w+", np.float32, (ROWS, FEATURES))
    x[:5000] = np.random.default_rng(0).normal(size=(5000, FEATURES))
    x.flush()
    return path


def test_a_file_larger_than_the_memory_is_fitted_and_scored(large, tmp_path):
    assert large.stat().st_size > ROOM
    fit = [
        "fit", str(large), "--clusters", "2", "--initialisation", "random", "--epochs", "1", "--hidden-sizes", "4",
        "--latent-dim", "2", "--n-importance-samples", "2", "--batch-size", "4000", "--output",
    ]  # fmt: skip
    commands = [
        [*fit, str(tmp_path / "whole"), "--memory", "resident"],
        [*fit, str(tmp_path / "run"), "--memory", "mapped"],
        ["evaluate", str(tmp_path / "run"), "--data", str(large)],
    ]
    done = subprocess.run(
        [sys.executable, "-c", LIMITED.format(room=ROOM), json.dumps(commands)],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert "fit 1\n" in done.stdout, "the limit must be one that matters"
    assert "out of memory" in done.stderr
    assert "rows need not be in memory: --memory mapped" in done.stderr
    assert "fit 0\n" in done.stdout, done.stderr
    assert "evaluate 0\n" in done.stdout, done.stderr
    assert "rows              1,000,000" in done.stdout


@pytest.fixture(scope="module")
def tables(tmp_path_factory) -> Path:
    """The same rows, sorted by class, as NPY and as Parquet of many row groups."""
    random = np.random.default_rng(0)
    x = (6 * random.standard_normal((3, 1, 4)) + random.standard_normal((3, 100, 4))).reshape(-1, 4)
    folder = tmp_path_factory.mktemp("tables")
    np.save(folder / "x.npy", x.astype(np.float32))
    columns = {f"c{j}": x[:, j].astype(np.float32) for j in range(4)}
    pq.write_table(pa.table(columns), folder / "x.parquet", row_group_size=11)
    labelled = columns | {"label": np.repeat([0, 1, 2], 100)}
    pq.write_table(pa.table(labelled), folder / "labelled.parquet", row_group_size=11)
    return folder


def test_killed_and_resumed_from_parquet_on_disk_equals_rows_in_memory(tables, tmp_path, capsys):
    settings = [
        "--clusters", "3", "--epochs", "60", "--hidden-sizes", "16", "--latent-dim", "2", "--pretrain-epochs", "2",
        "--gmm-starts", "1", "--checkpoint-seconds", "0", "--output",
    ]  # fmt: skip
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    assert main(["fit", str(tables / "x.npy"), *settings, str(whole)]) == 0

    arguments = ["fit", str(tables / "x.parquet"), *settings, str(broken), "--memory", "mapped"]
    process = subprocess.Popen([*CLI, *arguments], stderr=subprocess.PIPE, text=True)
    history = broken / "restart-0" / "history.jsonl"
    while not (history.exists() and history.read_text().count("\n") >= 5):
        assert process.poll() is None, process.communicate()
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    process.communicate(timeout=60)
    assert not (broken / "fit.json").exists(), "it was to be stopped before its end"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["broken", "whole"], "no rows are left behind"

    capsys.readouterr()
    assert main([*arguments, "--resume"]) == 0
    said = capsys.readouterr().err
    assert f"of rows to a temporary file in {broken}" in said
    assert "resumed at epoch" in said
    expected, _ = load_tensors(whole / "model.safetensors")
    found, _ = load_tensors(broken / "model.safetensors")
    assert expected.keys() == found.keys()
    for name in expected:
        np.testing.assert_array_equal(found[name].numpy(), expected[name].numpy(), err_msg=name)

    scoring = ["evaluate", str(broken), "--data", str(tables / "labelled.parquet"), "--label-column", "label"]
    assert main(scoring) == 0
    assert "rows              300" in capsys.readouterr().out
