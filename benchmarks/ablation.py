"""What each part of the default recipe is worth: test of one change at a time, five seeds a row.

``python benchmarks/ablation.py [DATA] [--rows N]`` fits the ``default`` preset, and the preset with one
option changed, to ``DATA`` (digits by default; N evenly spread rows of a larger one) with seeds 0 to 4, and
scores the rows that were fitted. It writes ``benchmarks/results/ablation-NAME.json`` after every run, skips
the runs already there, and prints a table. Labels score the table and touch nothing else.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shlex
import sys
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import tables
import torch
from sklearn.cluster import KMeans
from sklearn.decomposition import PCA
from sklearn.mixture import GaussianMixture
from sklearn.pipeline import make_pipeline

from serving.manifest import InputSpec
from training import initialise
from training.config import TrainingConfig, load_preset
from training.data import load
from training.embedding import responsibilities
from training.fit import fit
from training.inference import probabilities
from training.model import NVISAModel
from training.scores import accuracy

# What differs from the preset in each row; the first is the preset itself.
ROWS: dict[str, dict[str, Any]] = {
    "default preset": {},
    "one embedding": {"embeddings": 1},
    "random start": {"initialisation": "random"},
    "gmm start (AE+GMM)": {"initialisation": "gmm"},
    "gmm start, no anchor, as the paper": {"initialisation": "gmm", "anchor": 0.0},
    "no anchor": {"anchor": 0.0},
    "anchor 1": {"anchor": 1.0},
    "augmentation, though 8 pixels wide": {"augment": True},
    "score function for z": {"pathwise_z": False},
    "entropy guard": {"balance": 1.0},
    "ε to 1/16": {"epsilon_floor": 0.0625},
    "random start, stages of 40 epochs": {"initialisation": "random", "epsilon_every": 40},
    "the same until converged": {
        "initialisation": "random",
        "epsilon_every": 40,
        "stage_tolerance": 0.1,
    },
    "contrastive features beside the values": {"contrastive_steps": 936},
    "clusters of like sizes": {"gmm_choice": "even"},
    "no joint training": {"epochs": 0},
    "enumerated ELBO": {"objective": "elbo"},
    "mean-field q": {"mean_field": True},
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("data", nargs="?", default="digits")
    parser.add_argument("--rows", type=int, help="so many evenly spread rows")
    parser.add_argument("--only", nargs="+", help="rows of the table, by name")
    parser.add_argument("--seeds", type=int, nargs="+", default=range(5), help="default: 0 to 4")
    parser.add_argument("--mlp", action="store_true", help="mlp in place of convolutions, no augmentation")
    options = parser.parse_args()
    data = load(options.data, labels=True)
    assert data.labels is not None
    base = {"network": "mlp", "augment": False} if options.mlp else {}
    step = max(1, len(data.x) // options.rows) if options.rows else 1
    x, truth = np.ascontiguousarray(data.x[::step]), data.labels[::step]
    source = Path(options.data).name
    name = source + (f"-{options.rows}" if options.rows else "")
    path = Path(__file__).parent / "results" / f"ablation-{name}.json"
    result = json.loads(path.read_text()) if path.exists() else {"runs": []}
    result |= {
        "data": f"{name}, {len(x)} rows, fitted and scored",
        "score": "ACC, Hungarian",
        "machine": f"{os.cpu_count()} cores, {platform.machine()}, {platform.system()}",
        "versions": {n: version(n) for n in ("nvisa", "torch", "scikit-learn", "umap-learn")},
        "command": "python benchmarks/ablation.py " + shlex.join(sys.argv[1:]).replace(options.data, source),
    }
    wanted = options.only or [*ROWS, *PEERS]
    initialise.responsibilities = remembered(responsibilities)
    done = {(run["row"], run["seed"]) for run in result["runs"]}
    for seed in options.seeds:
        for row, changes in ROWS.items():
            if (row, seed) in done or row not in wanted:
                continue
            config = TrainingConfig(
                **load_preset("default") | base | {"n_clusters": 10, "seed": seed} | changes
            )
            began = time.perf_counter()
            fitted = fit(config, x, data.spec)
            run = {"row": row, "seed": seed, "seconds": round(time.perf_counter() - began, 1)}
            clusters = probabilities(fitted.model, x).argmax(1)
            run |= {"acc": accuracy(truth, clusters), "warm_bound": fitted.restarts[0].score}
            run["epochs"] = fitted.restarts[0].epochs
            run["clusters"] = "".join(map(str, clusters))  # a digit each: benchmarks/selection.py reads them
            if fitted.start is not None:
                run["acc_of_start"] = accuracy(truth, fitted.start.predict(fitted.model, x))
            record(result, path, run)
        for row, clusters in PEERS.items():
            if (row, seed) not in done and row in wanted:
                acc = accuracy(truth, clusters(x, data.spec, seed))
                record(result, path, {"row": row, "seed": seed, "acc": acc})
    print("\n" + tables.ablation(result))


def record(result: dict[str, Any], path: Path, run: dict[str, Any]) -> None:
    """Keep a run on disk at once: an ablation takes long."""
    result["runs"].append(run)
    path.write_text(json.dumps(result, indent=2) + "\n")
    print({key: value for key, value in run.items() if key != "clusters"}, flush=True)


def remembered(cluster: Callable[..., np.ndarray]) -> Callable[..., np.ndarray]:
    """``cluster`` of one data set, computed once for what it depends on: it is the same in most rows."""
    known: dict[tuple[int, int, int], np.ndarray] = {}

    def recall(
        x: np.ndarray, config: TrainingConfig, say: Callable[[str], None], features: np.ndarray | None = None
    ) -> np.ndarray:
        key = config.seed, config.embeddings, config.contrastive_steps
        if key not in known:
            known[key] = cluster(x, config, say, features)
        return known[key]

    return recall


def by_kmeans(x: np.ndarray, spec: InputSpec, seed: int) -> np.ndarray:
    return np.asarray(KMeans(10, n_init=10, random_state=seed).fit_predict(x.reshape(len(x), -1)))


def by_mixture(x: np.ndarray, spec: InputSpec, seed: int) -> np.ndarray:
    steps = PCA(16, random_state=seed), GaussianMixture(10, n_init=10, random_state=seed)
    return np.asarray(make_pipeline(*steps).fit_predict(x.reshape(len(x), -1).astype(np.float64)))


def by_umap(x: np.ndarray, spec: InputSpec, seed: int) -> np.ndarray:
    """The start alone, as a user would make it: one embedding, by the code the fit uses."""
    config = TrainingConfig(**load_preset("default") | {"n_clusters": 10, "seed": seed, "embeddings": 1})
    rows = NVISAModel(config, spec).preprocess(torch.from_numpy(x)).numpy()
    return responsibilities(rows, config, lambda _: None).argmax(1)


PEERS = {
    "KMeans (10 starts)": by_kmeans,
    "PCA 16 + GaussianMixture (10 starts)": by_mixture,
    "PCA + UMAP + GMM (10 starts)": by_umap,
}


if __name__ == "__main__":
    main()
