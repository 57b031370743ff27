"""Restarts stacked in batched matrix products beside one after the other, on scikit-learn's digits.

``python benchmarks/restarts.py [--device cuda]`` prints a table and writes
``benchmarks/results/restarts-DEVICE.json``. Processor seconds are those of all threads together, and mean
something on a busy machine too; wall-clock seconds do not. A first epoch of each form is not counted.
"""

from __future__ import annotations

import argparse
import json
import platform
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path

import torch

from training.config import TrainingConfig
from training.data import load
from training.loop import train
from training.stacked_loop import train_stacked

RESULTS = Path(__file__).parent / "results"
NETWORKS = [(32,), (128, 128), (500, 500)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2], help="torch's, on a CPU")
    parser.add_argument("--restarts", type=int, default=4)
    parser.add_argument("--epochs", type=int, default=3)
    options = parser.parse_args()
    device = torch.device(options.device)
    data = load("digits")
    rows = torch.from_numpy(data.x).to(device)
    found = []
    print("| threads | hidden | one after the other, s an epoch (cpu) | stacked (cpu) | ratio (cpu) |")
    print("|---|---|---|---|---|", flush=True)
    for threads in options.threads if options.device == "cpu" else [torch.get_num_threads()]:
        torch.set_num_threads(threads)
        for hidden in NETWORKS:
            configs = [
                TrainingConfig(hidden_sizes=hidden, epochs=options.epochs, seed=seed, precision="float32")
                for seed in range(options.restarts)
            ]
            short = [config.model_copy(update={"epochs": 1}) for config in configs]

            def one_by_one(each: list[TrainingConfig]) -> None:
                for config in each:
                    train(config, rows, data.spec)

            def stacked(each: list[TrainingConfig]) -> None:
                train_stacked(each, rows, data.spec, directories=[None] * len(each))

            row: dict[str, object] = {"threads": threads, "hidden": hidden}
            for name, form in (("sequential", one_by_one), ("stacked", stacked)):
                form(short)  # whatever is done once only is done here
                before, after = seconds(form, short), seconds(form, configs)
                row[name] = [(b - a) / (options.epochs - 1) for a, b in zip(before, after, strict=True)]
            found.append(row)
            (wall, cpu), (stacked_wall, stacked_cpu) = row["sequential"], row["stacked"]  # type: ignore[misc]
            print(
                f"| {threads} | {hidden} | {wall:.3f} ({cpu:.3f}) | {stacked_wall:.3f} ({stacked_cpu:.3f}) "
                f"| {wall / stacked_wall:.2f} ({cpu / stacked_cpu:.2f}) |",
                flush=True,
            )
    result = {
        "data": "digits, all 1,797 rows, batches of 128, 15 samples, float32",
        "restarts": options.restarts,
        "epochs": options.epochs,
        "seconds an epoch of all restarts: wall clock, processor": found,
        "machine": torch.cuda.get_device_name() if options.device == "cuda" else platform.processor(),
        "versions": {name: version(name) for name in ("nvisa", "torch")},
        "command": f"python benchmarks/restarts.py --device {options.device}",
    }
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / f"restarts-{options.device}.json").write_text(json.dumps(result, indent=2) + "\n")


def seconds(
    form: Callable[[list[TrainingConfig]], None], configs: list[TrainingConfig]
) -> tuple[float, float]:
    """Wall-clock and processor seconds of training ``configs``."""
    wall, cpu = time.perf_counter(), time.process_time()
    form(configs)
    return time.perf_counter() - wall, time.process_time() - cpu


if __name__ == "__main__":
    main()
