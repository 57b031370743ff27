"""Which label-free score ranks runs as accuracy does: Spearman's rank correlation over the ablation's runs.

``python benchmarks/selection.py DATA [--rows N]`` reads ``benchmarks/results/ablation-NAME.json``, which
``benchmarks/ablation.py DATA [--rows N]`` wrote, and scores the clusters of each run without labels, in
spaces that all runs share. It prints, for each score, its correlation with ACC, and the ACC of the run that
it would pick beside the mean and the best, and writes ``benchmarks/results/selection-NAME.json``.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import tables
from scipy.stats import spearmanr
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import silhouette_score
from sklearn.model_selection import cross_val_score

from training.data import load
from training.embedding import components, embed
from training.medoid import mean_agreement

RESULTS = Path(__file__).parent / "results"
ROWS = 2_000


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("data", nargs="?", default="digits")
    parser.add_argument("--rows", type=int, help="so many evenly spread rows, as in the ablation")
    options = parser.parse_args()
    source = Path(options.data).name
    name = source + (f"-{options.rows}" if options.rows else "")
    runs = [
        run
        for run in json.loads((RESULTS / f"ablation-{name}.json").read_text())["runs"]
        if "clusters" in run
    ]
    data = load(options.data)
    x = data.x[:: max(1, len(data.x) // options.rows) if options.rows else 1]
    clusterings = [np.array([int(digit) for digit in run["clusters"]]) for run in runs]
    points = components(x.reshape(len(x), -1).astype(np.float64), 0)
    chosen = slice(None, None, -(-len(x) // ROWS))
    spaces = {"principal components": points, "one UMAP embedding": embed(points, 20, 0)}

    def silhouette(space: str) -> Callable[[np.ndarray], float]:
        return lambda clusters: _silhouette(spaces[space][chosen], clusters[chosen])

    scores: dict[str, list[float]] = {
        "warm bound": [run["warm_bound"] for run in runs],
        "mean ARI with the other runs": mean_agreement(clusterings),
        "generalisation (logistic regression, 5 folds)": [
            _generalisation(points[chosen], clusters[chosen]) for clusters in clusterings
        ],
        **{
            f"silhouette, {space}": [silhouette(space)(clusters) for clusters in clusterings]
            for space in spaces
        },
    }
    acc = np.array([run["acc"] for run in runs])
    table = {}
    for score, values in scores.items():
        table[score] = {
            "spearman": float(spearmanr(values, acc).statistic),
            "acc_of_pick": float(acc[int(np.argmax(values))]),
        }
    result = {
        "runs": len(runs),
        "acc": {"mean": float(acc.mean()), "best": float(acc.max()), "least": float(acc.min())},
        "scores": table,
        "command": f"python benchmarks/selection.py {source}"
        + (f" --rows {options.rows}" if options.rows else ""),
    }
    (RESULTS / f"selection-{name}.json").write_text(json.dumps(result, indent=2) + "\n")
    print(f"{len(runs)} runs, ACC mean {acc.mean():.3f}, least {acc.min():.3f}, best {acc.max():.3f}\n")
    print(tables.selection(result))


def _silhouette(points: np.ndarray, clusters: np.ndarray) -> float:
    return float(silhouette_score(points, clusters)) if len(np.unique(clusters)) > 1 else -1.0


def _generalisation(points: np.ndarray, clusters: np.ndarray) -> float:
    """Held-out accuracy of a linear classifier of the run's own clusters (TURTLE, Gadetsky et al., 2024)."""
    kept = np.isin(clusters, np.flatnonzero(np.bincount(clusters) >= 5))  # a fold needs one of each
    if len(np.unique(clusters[kept])) < 2:
        return 0.0
    scaled = points[kept] / points[kept].std()
    return float(cross_val_score(LogisticRegression(max_iter=300), scaled, clusters[kept], cv=5).mean())


if __name__ == "__main__":
    main()
