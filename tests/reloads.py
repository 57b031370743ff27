"""How much memory a server takes over many loads and unloads of a bundle large enough to be seen."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from serving.bundle import read_bundle
from serving.engine import OnnxEngine
from serving.loading import onnx_engine
from serving.memory import keep_large_blocks_apart
from tests.bundles import make_bundle, random_rows
from tests.servers import ROOT, in_process

HIDDEN = 65_000
"""Hidden units: with 64 inputs and 10 clusters a graph of 20 MB."""


@dataclass(frozen=True)
class Sizes:
    """Resident memory in MB: while the model is loaded, and after each unload."""

    loaded: float
    unloaded: list[float]


def memory_over_reloads(folder: Path, reloads: int) -> Sizes:
    """Load, ask and unload a model ``reloads`` times beside one that stays; every answer is checked.

    In a process of its own: what other tests have left in this one's heap comes and goes by tens of MB.
    """
    done = subprocess.run(
        [sys.executable, "-m", "tests.reloads", str(folder), str(reloads)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return Sizes(**json.loads(done.stdout))


async def _reload(folder: Path, reloads: int) -> Sizes:
    make_bundle(folder, name="stays")
    bundle = make_bundle(folder, hidden=HIDDEN)
    rows = random_rows(4)
    expected = OnnxEngine(read_bundle(bundle), "cpu", intra_op_threads=1).assign(rows).clusters
    unloaded: list[float] = []
    loaded = 0.0
    async with in_process(folder, onnx_engine, model_control="explicit", max_batch_rows=8) as server:
        repository, control = server._repository, server._control
        for _ in range(reloads):
            answer = await repository.get("toy").batcher.assign(rows)
            np.testing.assert_array_equal(answer.clusters, expected)
            loaded = resident()
            await control.unload("toy")
            unloaded.append(resident())
            await control.load("toy")
    return Sizes(loaded, unloaded)


def resident() -> float:
    """This process's resident memory in MB."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1]) / 1024
    raise AssertionError("no VmRSS in /proc/self/status")


if __name__ == "__main__":
    keep_large_blocks_apart()  # as the command does
    print(json.dumps(asdict(asyncio.run(_reload(Path(sys.argv[1]), int(sys.argv[2]))))))
