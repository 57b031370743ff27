"""MNIST or Fashion-MNIST on two cores, end to end: fit, score, export, serve, and assign by three ways.

``python benchmarks/mnist_quick.py DATA`` fits ``--preset mnist-quick``, or another, to the training images
of the IDX folder ``DATA`` with seeds 0 to 2 (``--seeds``), scores test and training images, and assigns all
test images with the first run through the server with tritonclient and with ``nvisa-client``, and offline
with ``nvisa-label``: the answers must be those of ``evaluate``. Each run goes into
``benchmarks/results/PRESET-NAME.json`` when it is scored, and seeds that are there are not fitted again.
``--runs RUN ...`` takes runs that were fitted before. ``--contrastive-steps N`` and ``--embed-pixels`` fit
so, and write ``PRESET-NAME-contrastive-N.json`` and ``PRESET-NAME-embed-pixels.json``.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq

from training.data import load
from training.fitted import Fitted
from training.inference import probabilities

BIN = Path(sys.executable).parent
RESULTS = Path(__file__).parent / "results"
# A process of its own: its protobuf messages and ours have the same names.
TRITON = """
import sys, numpy as np, tritonclient.grpc as triton
target, rows, output = sys.argv[1:]
x = np.load(rows)
with triton.InferenceServerClient(target) as client:
    parts = []
    for start in range(0, len(x), 1000):
        part = x[start : start + 1000]
        given = triton.InferInput("x", part.shape, "UINT8")
        given.set_data_from_numpy(part)
        parts.append(client.infer("mnist", [given]).as_numpy("cluster"))
np.save(output, np.concatenate(parts))
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("data", help="folder of MNIST's IDX files")
    parser.add_argument("--preset", default="mnist-quick", help="as of nvisa-train fit")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--runs", type=Path, nargs="+", default=[], help="runs fitted before")
    parser.add_argument("--contrastive-steps", type=int, default=0, help="as of nvisa-train fit")
    parser.add_argument("--embed-pixels", action="store_true", help="as of nvisa-train fit")
    options = parser.parse_args()
    settings = ["--preset", options.preset]
    name = f"{options.preset}-{Path(options.data).name}"
    if steps := options.contrastive_steps:
        settings += ["--contrastive-steps", str(steps)]
        name += f"-contrastive-{steps}"
    if options.embed_pixels:
        settings.append("--embed-pixels")
        name += "-embed-pixels"
    result = read(name, Path(options.data).name, settings)
    there = {entry["seed"] for entry in result["runs"]}
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        seeds = [seed for seed in options.seeds if seed not in there]
        fits = (fit(work / f"run-{seed}", options.data, seed, settings) for seed in seeds)
        checked = False
        for run in options.runs or fits:
            if not checked:
                differ = check(run, work, options.data)
                checked = True
            new = entry(run, options.data)
            others = [other for other in result["runs"] if other["seed"] != new["seed"]]
            result["runs"] = sorted([*others, new], key=lambda entry: entry["seed"])
            result["rows_that_differ_from_evaluate"] = differ
            write(name, result)
            print(json.dumps(new))


def read(name: str, data: str, settings: list[str]) -> dict[str, Any]:
    """The result file of a data set and the settings of a fit, or an empty one."""
    path = RESULTS / f"{name}.json"
    runs = json.loads(path.read_text())["runs"] if path.exists() else []
    return {
        "data": f"{data}: fitted on training images, scored on test images",
        "settings": " ".join(settings),
        "runs": runs,
        "rows_that_differ_from_evaluate": {},
        "machine": f"{os.cpu_count()} cores, {platform.machine()}, {platform.system()}",
        "versions": {name: version(name) for name in ("nvisa", "torch", "onnxruntime", "tritonclient")},
        "command": " ".join(["python benchmarks/mnist_quick.py DATA", *settings]),
    }


def write(name: str, result: dict[str, Any]) -> None:
    """Write a result file, as soon as a run is scored: the next one takes a quarter of an hour."""
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / f"{name}.json").write_text(json.dumps(result, indent=2) + "\n")


def check(run: Path, work: Path, data: str) -> dict[str, int]:
    """Rows of the test images whose cluster is not that of ``evaluate``, by each other way; none, or exit."""
    bundle = work / "models" / "mnist" / "1"
    print(call("nvisa-train", "export", run, "--output", bundle), end="")
    rows = load(data, split="test").x
    np.save(work / "rows.npy", rows)
    expected = probabilities(Fitted.load(run).model, rows).argmax(1)
    found = by_server(work) | {"nvisa-label": by_job(work, bundle, data)}
    differ = {way: int((clusters != expected).sum()) for way, clusters in found.items()}
    if any(differ.values()):
        sys.exit(f"the ways of assigning do not agree: {differ}")
    return differ


def fit(run: Path, data: str, seed: int, settings: list[str]) -> Path:
    """Fit one seed into directory ``run``."""
    settings = ["--clusters", "10", "--seed", str(seed), *settings]
    subprocess.run([BIN / "nvisa-train", "fit", data, *settings, "--output", run], check=True)
    return run


def entry(run: Path, data: str) -> dict[str, Any]:
    """What a run scored on the test images, and what its start alone does."""
    scores = json.loads(call("nvisa-train", "evaluate", run, "--data", data, "--json"))
    training = json.loads(call("nvisa-train", "evaluate", run, "--data", data, "--split", "train", "--json"))
    fitted = Fitted.load(run)
    restart = fitted.restarts[fitted.chosen]
    return {
        "seed": restart.seed,
        "acc": scores["acc"],
        "nmi": scores["nmi"],
        "ari": scores["ari"],
        "acc_of_start": scores["start"]["acc"],
        "acc_train": training["acc"],
        "empty_clusters": scores["empty_clusters"],
        "warm_bound": restart.score,
        "fit_seconds": round(restart.seconds),
    }


def by_server(work: Path) -> dict[str, np.ndarray]:
    """Clusters of the rows through a running server, by two clients."""
    ports = work / "ports.json"
    serve = ["--model-repository", work / "models", "--grpc-port", "0", "--metrics-port", "0"]
    with subprocess.Popen(
        [BIN / "nvisa-serve", *serve, "--port-file", ports, "--drain-seconds", "0", "--log-level", "warning"]
    ) as server:
        try:
            wait_for(ports, server)
            target = f"127.0.0.1:{json.loads(ports.read_text())['grpc_port']}"
            call("nvisa-client", "health", "--target", target, "--wait", "60")
            triton = [sys.executable, "-c", TRITON, target, work / "rows.npy", work / "triton.npy"]
            subprocess.run(triton, check=True)
            call(
                *("nvisa-client", "assign", "--target", target, "--model", "mnist"),
                *("--input", work / "rows.npy", "--output", work / "client.parquet"),
            )
        finally:
            server.terminate()
    client = pq.read_table(work / "client.parquet")["cluster"].to_numpy()
    return {"tritonclient": np.load(work / "triton.npy"), "nvisa-client": client}


def wait_for(ports: Path, server: subprocess.Popen[bytes]) -> None:
    """Wait until the server listens and has written its ports, at most a minute."""
    deadline = time.monotonic() + 60
    while not ports.exists():
        if server.poll() is not None or time.monotonic() > deadline:
            sys.exit("the server did not start")
        time.sleep(0.1)


def by_job(work: Path, bundle: Path, data: str) -> np.ndarray:
    """Clusters of the test images by the offline job."""
    call("nvisa-label", "--model", bundle, "--input", data, "--split", "test", "--output", work / "labels")
    return np.asarray(pq.read_table(work / "labels")["cluster"].to_numpy())


def call(*command: str | Path) -> str:
    return subprocess.run(
        [BIN / command[0], *command[1:]], check=True, stdout=subprocess.PIPE, text=True
    ).stdout


if __name__ == "__main__":
    main()
