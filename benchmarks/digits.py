"""NVISA beside KMeans and GaussianMixture on scikit-learn's digits: ACC over five seeds.

``make bench-digits`` prints a table and writes ``benchmarks/results/digits.json``. All 1,797 rows are fitted
and scored (digits has no test split). Labels score the table and touch nothing else.
"""

from __future__ import annotations

import json
import platform
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path

import numpy as np
from sklearn.cluster import KMeans
from sklearn.decomposition import PCA
from sklearn.mixture import GaussianMixture
from sklearn.pipeline import make_pipeline

from training.config import TrainingConfig, load_preset
from training.data import load
from training.fit import fit
from training.inference import probabilities
from training.scores import accuracy

SEEDS = range(5)
RESULTS = Path(__file__).parent / "results" / "digits.json"


def main() -> None:
    data = load("digits", labels=True)
    assert data.labels is not None
    truth = data.labels
    flat = data.x.reshape(len(data.x), -1).astype(np.float64)
    methods: dict[str, Callable[[int], dict[str, float]]] = {
        "KMeans (10 starts)": lambda seed: {
            "acc": accuracy(truth, KMeans(10, n_init=10, random_state=seed).fit_predict(flat))
        },
        "PCA 16 + GaussianMixture (10 starts)": lambda seed: {
            "acc": accuracy(
                truth,
                make_pipeline(
                    PCA(16, random_state=seed), GaussianMixture(10, n_init=10, random_state=seed)
                ).fit_predict(flat),
            )
        },
    }
    rows: dict[str, list[float]] = {name: [] for name in [*methods, "AE+GMM (NVISA's start)", "NVISA"]}
    runs = []
    for seed in SEEDS:
        for name, method in methods.items():
            rows[name].append(method(seed)["acc"])
        began = time.perf_counter()
        config = TrainingConfig(**load_preset("default") | {"n_clusters": 10, "seed": seed})
        fitted = fit(config, data.x, data.spec, name=data.name, fingerprint=data.fingerprint)
        seconds = time.perf_counter() - began
        assert fitted.start is not None
        rows["NVISA"].append(accuracy(truth, probabilities(fitted.model, data.x).argmax(1)))
        rows["AE+GMM (NVISA's start)"].append(accuracy(truth, fitted.start.predict(fitted.model, data.x)))
        runs.append({"seed": seed, "seconds": round(seconds, 1), "warm_bound": fitted.restarts[0].score})
        print(f"seed {seed}: NVISA {rows['NVISA'][-1]:.4f}, {seconds:.0f} s", flush=True)
    result = {
        "data": "digits, all 1,797 rows",
        "score": "ACC, Hungarian",
        "preset": "default",
        "acc": rows,
        "runs": runs,
        "machine": f"{platform.machine()}, {platform.system()}",
        "versions": {name: version(name) for name in ("nvisa", "torch", "scikit-learn", "numpy")},
        "command": "make bench-digits",
    }
    RESULTS.parent.mkdir(exist_ok=True)
    RESULTS.write_text(json.dumps(result, indent=2) + "\n")
    print("\n| method | mean ± std | seeds 0 to 4 |\n|---|---|---|")
    for name, values in rows.items():
        print(
            f"| {name} | {np.mean(values):.3f} ± {np.std(values):.3f} | "
            f"{', '.join(f'{value:.3f}' for value in values)} |"
        )


if __name__ == "__main__":
    main()
