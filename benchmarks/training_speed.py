"""How fast NVISA trains: time a step, its share of the floor, and two peers in the same run.

``make bench-training`` prints tables for the CPU, and for a GPU where there is one, and writes
``benchmarks/results/training.json``. Peers: the straightforward PyTorch loop (`plain_loop`) on the same
network, from the same weights, in float32 and under bfloat16 autocast; and ClustPy's VaDE in a virtual
environment of its own (``--peer-venv``, made on demand). All take turns, a few steps each; ratios are medians
over the turns.

ClustPy's VaDE decodes each row once, NVISA each of M samples of it. The epoch of equal work is therefore
NVISA's with one sample (NVIL, M = 1), on the same rows, batches and layers; beside it stands the time for one
decoded sample with the paper's M = 15.

With ``--data MNIST --acc 0.9`` it also fits the `mnist-quick` preset until the test images reach that
accuracy. Labels score that and touch nothing else.

(Not named training.py: scripts in this folder import the package `training`, which that would hide.)
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from floor import count, measure, wait
from plain_loop import PlainLoop, PlainNVISA

from serving.manifest import InputSpec
from training.config import TrainingConfig, load_preset
from training.data import load
from training.initialise import assign_rows
from training.loop import _build, train
from training.schedule import batches
from training.scores import accuracy
from training.update import Updates

HERE = Path(__file__).parent
RESULTS = HERE / "results" / "training.json"
PEER = ("clustpy==0.0.3", "torch==2.13.0")
BATCH = 128
CASES: dict[str, dict[str, Any]] = {
    "paper: VIMCO, M = 15": {},
    "mnist-quick: VIMCO on y, M = 5": {"n_importance_samples": 5, "pathwise_z": True},
    "one sample a row: NVIL, M = 1": {"objective": "nvil", "n_importance_samples": 1},
}
EPSILONS = (1.0, 1 / 16)  # the first and the last stage of the short presets
Steps = Callable[[int], object]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--data", help="MNIST's IDX files; synthetic images of its shape without")
    parser.add_argument("--acc", type=float, help="also measure the seconds to this test accuracy")
    parser.add_argument("--peer-venv", type=Path, help="virtual environment for ClustPy, made if missing")
    parser.add_argument("--rounds", type=int, default=5, help="turns of each contender")
    parser.add_argument("--steps", type=int, default=4, help="steps a turn")
    parser.add_argument("--warm-up", type=int, default=25, help="steps at each ε on the way to the last")
    options = parser.parse_args()
    if options.acc is not None and options.data is None:
        parser.error("--acc needs --data")
    data = load(options.data) if options.data else None
    rows = torch.from_numpy(data.x) if data is not None else synthetic()
    devices = [torch.device("cpu")] + [torch.device("cuda")] * torch.cuda.is_available()
    result: dict[str, Any] = {
        "data": f"MNIST, {len(rows)} rows" if data is not None else f"synthetic, {len(rows)} rows of 28 x 28",
        "batch": BATCH,
        "devices": {},
        "machine": f"{os.cpu_count()} cores, {platform.machine()}, {platform.system()}",
        "load": [round(value, 1) for value in os.getloadavg()],
        "threads": torch.get_num_threads(),
        "versions": {name: version(name) for name in ("nvisa", "torch", "numpy")},
        "command": "python benchmarks/training_speed.py " + " ".join(sys.argv[1:]),
    }
    for device in devices:
        with peer(options.peer_venv, rows) as vade:
            result["devices"][device_name(device)] = on_device(device, rows, vade, options)
    if options.acc is not None:
        result["time_to_accuracy"] = time_to_accuracy(options.data, options.acc)
    RESULTS.parent.mkdir(exist_ok=True)
    RESULTS.write_text(json.dumps(result, indent=2) + "\n")
    show(result)


def device_name(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else "CPU"


def synthetic(n_rows: int = 10_240) -> torch.Tensor:
    """Ten kinds of blurred random images with noise, mostly dark as MNIST's are: uint8 ``(n, 28, 28)``."""
    random = np.random.default_rng(0)
    coarse = np.kron(random.random((10, 7, 7)) > 0.7, np.ones((4, 4)))
    images = coarse[random.integers(10, size=n_rows)] * random.normal(200, 30, (n_rows, 1, 1))
    images += np.where(images > 0, random.normal(0, 25, images.shape), 0)
    return torch.from_numpy(np.clip(images, 0, 255).astype(np.uint8))


def on_device(
    device: torch.device, rows: torch.Tensor, vade: Steps | None, options: argparse.Namespace
) -> dict[str, Any]:
    """All cases on one device."""
    machine = measure(device)
    here = rows.to(device)
    entries = []
    for name, changes in CASES.items():
        config = TrainingConfig(batch_size=BATCH, **changes)
        ours = Ours(config, here)
        for epsilon in EPSILONS:
            ours.anneal(epsilon, options.warm_up)
            contenders: dict[str, Steps] = {"nvisa": ours.take}
            if config.objective == "vimco":
                for label, low in (("plain float32", False), ("plain bfloat16", True)):
                    contenders[label] = plain(ours, rows, epsilon, low)
            elif vade is not None:
                contenders["clustpy vade"] = vade
            seconds = take_turns(contenders, device, options.rounds, options.steps)
            floor = count(ours.run.model, config, BATCH).seconds(machine)
            step = statistics.median(seconds["nvisa"])
            entries.append(
                {
                    "case": name,
                    "epsilon": epsilon,
                    "step_ms": round(1e3 * step, 2),
                    "floor_ms": round(1e3 * floor, 2),
                    "times_the_floor": round(step / floor, 2),
                    "rows_per_second": round(BATCH / step),
                    "decoded_sample_us": round(1e6 * step / (BATCH * config.n_samples), 1),
                    "peers": {
                        label: {
                            "step_ms": round(1e3 * statistics.median(values), 2),
                            "times_nvisa": round(
                                statistics.median(
                                    other / own for other, own in zip(values, seconds["nvisa"], strict=True)
                                ),
                                2,
                            ),
                        }
                        for label, values in seconds.items()
                        if label != "nvisa"
                    },
                }
            )
    return {
        "float32_gflops": round(machine.float32 / 1e9),
        "bfloat16_gflops": round(machine.bfloat16 / 1e9),
        "memory_gb_per_s": round(machine.memory / 1e9, 1),
        "cases": entries,
    }


class Ours:
    """NVISA's own steps, as the training loop takes them."""

    def __init__(self, config: TrainingConfig, rows: torch.Tensor) -> None:
        spec = InputSpec(dtype="uint8", shape=tuple(rows.shape[1:]), meaning="image")
        self.config, self.rows, self.epsilon = config, rows, 1.0
        self.run = _build(config, rows, spec)
        self.updates = Updates(self.run, config)
        self.updates.begin(0)
        self.batches = iter(batches(len(rows), BATCH, self.updates.generator))

    def anneal(self, epsilon: float, steps: int) -> None:
        """Train a little at each ε down to ``epsilon``, so that weights are as uneven as in a real run."""
        while True:
            self.run.model.epsilon_x.fill_(self.epsilon)
            self.run.model.epsilon_z.fill_(self.epsilon)
            self.take(steps)
            if self.epsilon <= epsilon:
                return
            self.epsilon /= 2

    def take(self, count: int) -> None:
        """Take ``count`` steps."""
        for _ in range(count):
            index = next(self.batches, None)
            if index is None:
                self.batches = iter(batches(len(self.rows), BATCH, self.updates.generator))
                index = next(self.batches)
            self.updates.take([(self.rows[index], None)])


def plain(ours: Ours, rows: torch.Tensor, epsilon: float, low: bool) -> Steps:
    config = ours.config
    model = PlainNVISA(ours.run.model.spec.row_size)
    model.copy_from(ours.run.model)
    loop = PlainLoop(
        model,
        rows.flatten(1),
        n_samples=config.n_samples,
        pathwise=config.pathwise_z,
        batch_size=BATCH,
        bfloat16=low,
        device=ours.rows.device,
    )
    return lambda count: loop.steps(count, epsilon)


def take_turns(
    contenders: dict[str, Steps], device: torch.device, rounds: int, steps: int
) -> dict[str, list[float]]:
    """Seconds a step of each contender in each of the rounds after a first, uncounted one."""
    seconds: dict[str, list[float]] = {name: [] for name in contenders}
    for index in range(rounds + 1):
        for name, take in contenders.items():
            wait(device)
            began = time.perf_counter()
            own = take(steps)
            wait(device)
            # A peer in another process says itself how long a step took.
            taken = own if name == "clustpy vade" else (time.perf_counter() - began) / steps
            if index:
                seconds[name].append(taken)
    return seconds


@contextmanager
def peer(folder: Path | None, rows: torch.Tensor) -> Iterator[Steps | None]:
    """ClustPy's VaDE as a contender: one epoch over 2,560 rows for each turn."""
    if folder is None:
        yield None
        return
    python = folder / "bin" / "python"
    if not python.exists():
        subprocess.run([sys.executable, "-m", "venv", folder], check=True)
    if subprocess.run([python, "-c", "import clustpy"], capture_output=True).returncode:
        subprocess.run([python, "-m", "pip", "install", "--quiet", *PEER], check=True)
    with tempfile.TemporaryDirectory() as work:
        path = Path(work) / "x.npy"
        chosen = rows[: 20 * BATCH].flatten(1).float() / 255
        np.save(path, chosen.numpy())
        command = [python, HERE / "clustpy_vade.py", path, str(BATCH)]
        environment = os.environ | {"BENCH_THREADS": str(torch.get_num_threads()), "PYTHONPATH": ""}
        with subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            env=environment,
        ) as process:
            assert process.stdin is not None
            assert process.stdout is not None
            stdin, stdout = process.stdin, process.stdout

            def epoch(_: int) -> float:
                print(1, file=stdin, flush=True)
                answer = stdout.readline()
                if not answer:
                    raise RuntimeError(f"{' '.join(map(str, command))} ended: run it by hand to see why")
                return float(answer) / 20

            yield epoch
            stdin.close()


def time_to_accuracy(path: str, target: float) -> dict[str, Any]:
    """Fit `mnist-quick` in pieces of two epochs until the test images are assigned well enough."""
    data, test = load(path), load(path, split="test", labels=True)
    assert test.labels is not None
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    config = TrainingConfig(**load_preset("mnist-quick") | {"n_clusters": 10})
    rows, score = torch.from_numpy(data.x).to(device), 0.0
    unseen = torch.from_numpy(test.x).to(device)
    with tempfile.TemporaryDirectory() as work:
        for epochs in range(0, config.total_epochs + 1, 2):
            piece = config.model_copy(update={"epochs": epochs})
            run = train(piece, rows, data.spec, directory=Path(work), resume=True)
            score = accuracy(test.labels, assign_rows(run.model, unseen).cpu().numpy())
            if score >= target:
                break
    return {
        "device": device_name(device),
        "preset": "mnist-quick",
        "target": target,
        "reached": round(score, 4),
        "epochs": run.epoch,
        "seconds": round(run.seconds, 1),
    }


def show(result: dict[str, Any]) -> None:
    """Print the tables."""
    print(f"{result['machine']}, {result['threads']} threads, load {result['load']}, {result['data']}")
    for name, found in result["devices"].items():
        print(
            f"\n{name}: {found['float32_gflops']} GFLOP/s float32, {found['bfloat16_gflops']} bfloat16, "
            f"{found['memory_gb_per_s']} GB/s"
        )
        print("| case | ε | step ms | x floor | rows/s | decoded sample us | peers: step ms (x NVISA) |")
        print("|---|---|---|---|---|---|---|")
        for entry in found["cases"]:
            peers = ", ".join(
                f"{label} {values['step_ms']} ({values['times_nvisa']}x)"
                for label, values in entry["peers"].items()
            )
            print(
                f"| {entry['case']} | {entry['epsilon']} | {entry['step_ms']} | {entry['times_the_floor']} | "
                f"{entry['rows_per_second']} | {entry['decoded_sample_us']} | {peers} |"
            )
    if "time_to_accuracy" in result:
        print(f"\n{json.dumps(result['time_to_accuracy'])}")


if __name__ == "__main__":
    main()
