"""Small data sets and tables for the tests of ``nvisa-train paper``."""

from __future__ import annotations

import struct
from pathlib import Path

import numpy as np

from training.paper.plan import Method, Table

TINY = {
    "hidden_sizes": (16,),
    "latent_dim": 2,
    "n_clusters": 3,
    "epochs": 3,
    "batch_size": 64,
    "pretrain_epochs": 2,
    "gmm_starts": 1,
}


def write_idx(path: Path, values: np.ndarray) -> None:
    head = struct.pack(">HBB", 0, 8, values.ndim) + struct.pack(f">{values.ndim}I", *values.shape)
    path.write_bytes(head + values.astype(np.uint8).tobytes())


def write_mnist(folder: Path, *, rows: int = 300, n_clusters: int = 3, side: int = 6, seed: int = 0) -> None:
    """IDX files with MNIST's names of ``rows`` training images and 60 test images in clusters."""
    random = np.random.default_rng(seed)
    centres = random.integers(30, 225, (n_clusters, side, side))
    folder.mkdir(parents=True)
    for part, count in (("train", rows), ("t10k", 60)):
        labels = random.integers(0, n_clusters, count)
        images = np.clip(centres[labels] + random.normal(0, 8, (count, side, side)), 0, 255)
        write_idx(folder / f"{part}-images-idx3-ubyte", images)
        write_idx(folder / f"{part}-labels-idx1-ubyte", labels)


def tiny_table(name: str = "table2", *methods: Method, datasets: tuple[str, ...] = ("mnist",)) -> Table:
    """Two configurations of NVISA, or the methods given, with seeds 0 and 1."""
    own = methods or (
        Method("enum", "NVISA", lambda _: TINY | {"objective": "elbo"}, "EnumY"),
        Method("vimco-annealed", "NVISA\\*", lambda _: TINY | {"n_importance_samples": 3}, "VIMCO"),
    )
    return Table(name, "A table", "A note.", own, datasets, (0, 1))
