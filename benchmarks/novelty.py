"""Does novelty tell rows like the training data from others? AUROC, through the server.

``python benchmarks/novelty.py DATA`` fits ``--preset mnist-quick`` to the training images of ``DATA/mnist``,
exports the run with novelty, serves it, and sends MNIST's test images, those of ``DATA/fashion-mnist``,
uniform noise, inverted test images, and blank images of every grey level. It prints how well novelty, as the
server gives it, and the other scores one could rank by tell each kind from the test images (1: entirely, 0.5:
not at all), and writes ``benchmarks/results/novelty.json``. ``--run RUN`` takes a run fitted before;
``--known fashion-mnist`` swaps the two data sets, which is the harder way round.

Only `novelty` and the confidence come from the server; the candidates need what no graph has.
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
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from sklearn.metrics import roc_auc_score

from serving.bundle import Bundle, read_bundle
from serving.client import ClusterClient
from serving.engine import OnnxEngine
from training.data import load
from training.densities import bounded_std, normal_log_density
from training.fitted import Fitted
from training.inference import BATCH, parts
from training.novelty import calibrate, terms
from training.scores import accuracy

BIN = Path(sys.executable).parent
RESULTS = Path(__file__).parent / "results"
KNOWN = ("mnist", "fashion-mnist")
TIMED_ROWS, TIMED_RUNS = 256, 200


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("data", type=Path, help="folder with mnist/ and fashion-mnist/, IDX files in each")
    parser.add_argument("--run", type=Path, help="run fitted before, on the training images of --known")
    parser.add_argument("--known", choices=KNOWN, default="mnist", help="what the model is fitted on")
    options = parser.parse_args()
    (other,) = set(KNOWN) - {options.known}
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        run = options.run or fit(work / "run", options.data / options.known)
        for number, flags in ((1, ["--with-novelty"]), (2, [])):
            export = [BIN / "nvisa-train", "export", run, "--output", work / "models" / "known" / str(number)]
            subprocess.run([*export, *flags], check=True)
        known = load(str(options.data / options.known), split="test", labels=True)
        rows = {"test": known.x, other: load(str(options.data / other), split="test").x} | made_up(known.x)
        with server(work) as target, ClusterClient(target) as client:
            served = {
                kind: client.assign(x, model="known", version=1, novelty=True, timeout=600)
                for kind, x in rows.items()
            }
        bundles = [read_bundle(work / "models" / "known" / number) for number in ("1", "2")]
    fitted = Fitted.load(run)
    training = energies(fitted, load(str(options.data / options.known)).x)
    found: dict[str, dict[str, np.ndarray]] = {}
    for kind, x in rows.items():
        answer = served[kind]
        assert answer.novelty is not None
        found[kind] = {
            "1 - confidence": 1 - answer.confidences,
            **candidates(fitted, x, training),
            "novelty, two-sided": np.abs(answer.novelty - 0.5),
            "novelty": answer.novelty,
        }
    kinds = [kind for kind in rows if kind != "test"]
    auroc = {
        score: {kind: separation(found["test"][score], found[kind][score]) for kind in kinds}
        for score in found["test"]
    }
    manifest = bundles[0].manifest
    assert manifest.novelty is not None
    result: dict[str, Any] = {
        "data": f"{options.known}: the training images fitted, the test images told from other images",
        "run": "given" if options.run else "--preset mnist-quick",
        "config": fitted.config.model_dump(mode="json"),
        "acc": None if known.labels is None else accuracy(known.labels, served["test"].clusters),
        "auroc": auroc,
        "share of rows above": {
            kind: {str(level): float((found[kind]["novelty"] > level).mean()) for level in (0.5, 0.95, 0.99)}
            for kind in rows
        },
        "mean confidence": {kind: float(answer.confidences.mean()) for kind, answer in served.items()},
        "novelty": manifest.novelty.model_dump(),
        "seconds_for_256_rows": dict(zip(("with", "without"), map(seconds, bundles), strict=True)),
        "machine": f"{os.cpu_count()} cores, {platform.machine()}, {platform.system()}",
        "versions": {name: version(name) for name in ("nvisa", "torch", "onnxruntime", "scikit-learn")},
        "command": "python benchmarks/novelty.py DATA"
        + (" --run RUN" if options.run else "")
        + (f" --known {options.known}" if options.known != KNOWN[0] else ""),
    }
    path = RESULTS / ("novelty.json" if options.known == KNOWN[0] else f"novelty-{options.known}.json")
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(result, indent=2) + "\n")
    show(result, kinds)


def fit(run: Path, data: Path) -> Path:
    """Fit the quick preset into directory ``run``."""
    settings = ["--clusters", "10", "--preset", "mnist-quick", "--output", run]
    subprocess.run([BIN / "nvisa-train", "fit", data, *settings], check=True)
    return run


def made_up(test: np.ndarray) -> dict[str, np.ndarray]:
    """Images that nobody drew, in the shape of ``test``."""
    levels = np.arange(256, dtype=np.uint8)[:, None, None]
    return {
        "noise": np.random.default_rng(0).integers(0, 256, test.shape, dtype=np.uint8),
        "inverted": 255 - test,
        "blank": np.broadcast_to(levels, (256, *test.shape[1:])).copy(),
    }


@torch.no_grad()
def candidates(
    fitted: Fitted, x: np.ndarray, training: tuple[np.ndarray, np.ndarray]
) -> dict[str, np.ndarray]:
    """What could be ranked instead, ``(n,)`` each, the larger the more novel."""
    model = fitted.model
    ranks = fitted.rows.ranks or calibrate(model, fitted.rows.sample)
    scores: dict[str, list[torch.Tensor]] = {}
    for part in parts(model, x, BATCH):
        rows = model.preprocess(part)
        of_rows = terms(model, rows)
        z = model.q_z(model.encode(rows).hidden, of_rows.cluster)[0]
        hidden = model.decoder(z)
        now = {
            "bound at the mean of z, last ε": -(model.log_p_x(rows, z[None])[0] + of_rows.log_ratio),
            "squared error": of_rows.squared_error,
            "-log p(z|y) at the mean of z": -normal_log_density(z, *model.p_z(of_rows.cluster)),
            "bound at the mean of z, one σ (novelty's score)": of_rows.energy(ranks.sigma),
        }
        if model.x_raw_std is not None:
            std = bounded_std(model.x_raw_std(hidden), model.first_epsilon_x)
            warm = normal_log_density(rows, model.x_mean(hidden), std)
            now["bound at the mean of z, first ε"] = -(warm + of_rows.log_ratio)
        for name, values in now.items():
            scores.setdefault(name, []).append(values.cpu())
    found = {name: torch.cat(values).numpy() for name, values in scores.items()}
    found["the same, ranked within the cluster"] = within_cluster(training, energies(fitted, x))
    return found


@torch.no_grad()
def energies(fitted: Fitted, x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Novelty's score before ranking, and the cluster, ``(n,)`` each."""
    model = fitted.model
    ranks = fitted.rows.ranks or calibrate(model, fitted.rows.sample)
    found = [terms(model, model.preprocess(part)) for part in parts(model, x, BATCH)]
    energy = torch.cat([part.energy(ranks.sigma).cpu() for part in found]).numpy()
    return energy, torch.cat([part.cluster.cpu() for part in found]).numpy()


def within_cluster(
    training: tuple[np.ndarray, np.ndarray], rows: tuple[np.ndarray, np.ndarray]
) -> np.ndarray:
    """Rank of each row's energy among the training rows of its cluster; all of them if it has under 100."""
    ranked = np.empty(len(rows[0]))
    for cluster in np.unique(rows[1]):
        own = training[0][training[1] == cluster]
        among = np.sort(own if len(own) >= 100 else training[0])
        mine = rows[1] == cluster
        ranked[mine] = np.searchsorted(among, rows[0][mine]) / len(among)
    return ranked


def separation(known: np.ndarray, other: np.ndarray) -> float:
    """AUROC of telling ``other`` from ``known`` by the score."""
    truth = np.concatenate([np.zeros(len(known)), np.ones(len(other))])
    return float(roc_auc_score(truth, np.concatenate([known, other])))


def seconds(bundle: Bundle) -> float:
    """Median time of a run of the graph on 256 rows, by one thread."""
    engine = OnnxEngine(bundle, "cpu", intra_op_threads=1)
    x = np.zeros((TIMED_ROWS, *bundle.manifest.input.shape), bundle.manifest.input.numpy_dtype)
    times = []
    for _ in range(TIMED_RUNS):
        began = time.perf_counter()
        engine.assign(x)
        times.append(time.perf_counter() - began)
    return float(np.median(times))


@contextmanager
def server(work: Path) -> Iterator[str]:
    """Serve the models of ``work``; gives the target."""
    ports = work / "ports.json"
    serve = [BIN / "nvisa-serve", "--model-repository", work / "models", "--grpc-port", "0"]
    serve += ["--metrics-port", "0", "--port-file", ports, "--drain-seconds", "0", "--log-level", "warning"]
    with subprocess.Popen(serve) as process:
        try:
            deadline = time.monotonic() + 60
            while not ports.exists():
                wait(process, deadline)
            target = f"127.0.0.1:{json.loads(ports.read_text())['grpc_port']}"
            with ClusterClient(target) as client:
                while not client.health().ready:
                    wait(process, deadline)
            yield target
        finally:
            process.terminate()


def wait(process: subprocess.Popen[bytes], deadline: float) -> None:
    """Wait a moment for the server's start."""
    if process.poll() is not None or time.monotonic() > deadline:
        sys.exit("the server did not become ready")
    time.sleep(0.1)


def show(result: dict[str, Any], kinds: list[str]) -> None:
    """Print the result as a table."""
    print(f"| AUROC | {' | '.join(kinds)} |\n|---|{'---|' * len(kinds)}")
    for score, values in result["auroc"].items():
        print(f"| {score} | {' | '.join(f'{values[kind]:.4f}' for kind in kinds)} |")
    print("\n| rows | above 0.95 | above 0.99 | mean confidence |\n|---|---|---|---|")
    for kind, shares in result["share of rows above"].items():
        confidence = result["mean confidence"][kind]
        print(f"| {kind} | {shares['0.95']:.3f} | {shares['0.99']:.3f} | {confidence:.3f} |")
    times = result["seconds_for_256_rows"]
    print(
        f"\nACC {result['acc']:.4f}; multiply-accumulates x {result['novelty']['cost_ratio']:.2f}, "
        f"time of {TIMED_ROWS} rows x {times['with'] / times['without']:.2f}"
    )


if __name__ == "__main__":
    main()
