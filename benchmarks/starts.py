"""Which of many Gaussian mixtures on an embedding to start from: each label-free choice, and its accuracy.

``python benchmarks/starts.py DATA --contrastive-steps 936 --work WORK`` trains an encoder for each of
``--seeds``, embeds the training images of the IDX folder ``DATA`` by pixels and features ``--embeddings``
times, fits ``--starts`` mixtures to each embedding, and writes ``benchmarks/results/starts/NAME.json``.
Without contrastive steps pixels alone are embedded, with ``--no-pixels`` features alone. In ``WORK`` features
and embeddings are kept for the next time. Labels score the training rows and touch nothing else.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shlex
import sys
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path

import numpy as np
import torch
from scipy.special import entr
from sklearn.mixture import GaussianMixture

from training.config import TrainingConfig, load_preset
from training.contrastive import contrast, contrastive_features
from training.data import Data, load
from training.embedding import components, embed, side_by_side
from training.medoid import mean_agreement
from training.mixture import even_score, fit_mixture
from training.model import NVISAModel
from training.scores import accuracy

RESULTS = Path(__file__).parent / "results" / "starts"
AGREEMENT_ROWS = 8_000  # the first so many, for the medoid


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("data", help="folder of IDX files")
    parser.add_argument("--contrastive-steps", type=int, default=0)
    parser.add_argument("--no-pixels", action="store_true", help="embed features alone")
    parser.add_argument("--seeds", type=int, nargs="+", default=list(range(20, 26)), help="of encoders")
    parser.add_argument("--embeddings", type=int, default=2, help="of each encoder's features")
    parser.add_argument("--starts", type=int, default=40, help="mixtures of each embedding")
    parser.add_argument("--work", type=Path, required=True, help="where features and embeddings are kept")
    options = parser.parse_args()
    steps = options.contrastive_steps
    if options.no_pixels and not steps:
        parser.error("without contrastive steps there are pixels alone: leave out --no-pixels")
    data = load(options.data, labels=True)
    encoders = Path(options.data).name + (f"-contrastive-{steps}" if steps else "")
    name = encoders + ("-no-pixels" if options.no_pixels else "")
    options.work.mkdir(parents=True, exist_ok=True)
    pixels = components(data.x.reshape(len(data.x), -1).astype(np.float32) / 255, 0)
    found = []
    for seed in options.seeds if steps else [0]:
        parts = [] if options.no_pixels else [pixels]
        if steps:
            parts.append(learned(options.work / f"{encoders}-{seed}.npz", data, seed, steps))
        for turn in range(options.embeddings):
            points = embedding(options.work / f"{name}-{seed}-{turn}.npy", parts, turn)
            found.append({"encoder": seed, "embedding": turn, **choices(points, data, options.starts, turn)})
            print(json.dumps(found[-1]), flush=True)
    result = {
        "data": f"{name}, {len(data.x)} rows, embedded and scored",
        "starts": options.starts,
        "embeddings": found,
        "machine": f"{os.cpu_count()} cores, {platform.machine()}, {platform.system()}",
        "versions": {n: version(n) for n in ("nvisa", "torch", "scikit-learn", "umap-learn")},
        "command": "python benchmarks/starts.py "
        + shlex.join(sys.argv[1:]).replace(options.data, "DATA").replace(str(options.work), "WORK"),
    }
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / f"{name}.json").write_text(json.dumps(result, indent=2) + "\n")


def embedding(path: Path, parts: list[np.ndarray], turn: int) -> np.ndarray:
    """Embedding ``(n, 10)`` number ``turn`` of points ``(n, D_i)`` side by side, kept at ``path``."""
    if not path.exists():
        np.save(path, embed(side_by_side(*parts), 20, turn).astype(np.float32))
    return np.asarray(np.load(path), np.float64)


def learned(path: Path, data: Data, seed: int, steps: int) -> np.ndarray:
    """Principal components ``(n, 50)`` of encoder ``seed``'s features, which are kept at ``path``."""
    if not path.exists():
        np.savez(path, f=features(data, seed, steps).astype(np.float16))
    return components(np.load(path)["f"].astype(np.float32), 0)


def features(data: Data, seed: int, steps: int) -> np.ndarray:
    """What an encoder learns of the images by contrast: ``(n, H)``."""
    settings = {"n_clusters": 10, "contrastive_steps": steps, "seed": seed}
    config = TrainingConfig(**load_preset("contrastive-quick") | settings)
    torch.manual_seed(seed)
    model, rows = NVISAModel(config, data.spec), torch.as_tensor(data.x)
    contrast(model, rows, config, print)
    return contrastive_features(model, rows).numpy()


def choices(points: np.ndarray, data: Data, starts: int, turn: int) -> dict[str, float]:
    """Accuracy of the mixture that each choice takes, and of all, on the mean and at best."""
    assert data.labels is not None
    seeds = np.random.SeedSequence(7 + turn).generate_state(starts) >> 1
    mixtures = [fit_mixture(points, 10, 1, int(seed)) for seed in seeds]
    clusters = [mixture.predict(points) for mixture in mixtures]
    accuracies = [accuracy(data.labels, each) for each in clusters]
    agreements = mean_agreement([each[:AGREEMENT_ROWS] for each in clusters])

    def taken(score: Callable[[GaussianMixture], float]) -> float:
        return accuracies[int(np.argmax([score(mixture) for mixture in mixtures]))]

    return {
        "likelihood": taken(lambda mixture: float(mixture.lower_bound_)),
        "even": taken(even_score),
        "sizes alone": taken(lambda mixture: float(entr(mixture.weights_).sum())),
        "medoid of the starts": accuracies[int(np.argmax(agreements))],
        "mean of the starts": float(np.mean(accuracies)),
        "best of the starts": max(accuracies),
    }


if __name__ == "__main__":
    main()
