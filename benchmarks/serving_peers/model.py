"""The model that all systems serve, and the rows that they are asked about."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from serving.bundle import GRAPH_FILE, Bundle, read_bundle
from serving.engine import OnnxEngine

NAME = "mnist"
SHAPE = (28, 28)
# Of the largest and the second largest probability: below, rounding could move a row to another cluster.
MARGIN = 1e-3
TOLERANCE = 1e-4
_TRAINING_ROWS = 2000


class ModelError(ValueError):
    """The bundle cannot be used for this benchmark; the message says why."""


@dataclass(frozen=True)
class Rows:
    """Rows and what the engine in this process says of them.

    Attributes
    ----------
    x
        uint8 ``(n_rows, 28, 28)``.
    clusters
        int64 ``(n_rows,)``.
    probabilities
        float32 ``(n_rows, n_clusters)``.
    """

    x: np.ndarray
    clusters: np.ndarray
    probabilities: np.ndarray

    def save(self, path: Path) -> Path:
        """Write them to ``path``, an ``.npz`` file, for the load generator."""
        np.savez(path, x=self.x, clusters=self.clusters, probabilities=self.probabilities)
        return path

    @classmethod
    def load(cls, path: Path) -> Rows:
        """Read what `save` wrote."""
        with np.load(path) as file:
            return cls(file["x"], file["clusters"], file["probabilities"])


def images(n: int, seed: int = 0) -> np.ndarray:
    """``n`` images, uint8 ``(n, 28, 28)``: scikit-learn's digits, enlarged, moved about, with some noise."""
    from sklearn.datasets import load_digits

    rng = np.random.default_rng(seed)
    digits = load_digits().images
    chosen = digits[rng.integers(0, len(digits), n)]
    large = np.repeat(np.repeat(chosen, 3, axis=1), 3, axis=2) * (255 / 16)
    x = np.zeros((n, *SHAPE))
    for image, digit, (top, left) in zip(x, large, rng.integers(0, 5, (n, 2)), strict=True):
        image[top : top + 24, left : left + 24] = digit
    return np.clip(x + rng.normal(0, 8, x.shape), 0, 255).astype(np.uint8)


def make_bundle(repository: Path) -> Path:
    """Fit an MLP 784-500-500-10 for an epoch and export it to ``repository/mnist/1``; takes seconds."""
    from training import NVISA
    from training.export import export

    model = NVISA(
        10, network="mlp", initialisation="gmm", pretrain_epochs=3, gmm_starts=1, epochs=1, random_state=0
    )
    model.fit(images(_TRAINING_ROWS, seed=1).reshape(_TRAINING_ROWS, *SHAPE))
    export(model.fitted_, repository / NAME / "1")
    return repository / NAME / "1"


def link_bundle(path: Path, repository: Path) -> Path:
    """Show the bundle ``path`` under the name that all systems are asked for.

    Raises
    ------
    ModelError
        If its rows are not images of 28 x 28 bytes, or it is not named ``mnist``.
    """
    spec = read_bundle(path).manifest
    if (spec.input.dtype, spec.input.shape) != ("uint8", SHAPE):
        raise ModelError(f"{path}: rows are {spec.input.dtype} {spec.input.shape}, not uint8 {SHAPE}")
    if spec.name != NAME or spec.version != 1:
        raise ModelError(f"{path}: is {spec.name}/{spec.version}; export it as {NAME}/1")
    (repository / NAME).mkdir(parents=True)
    (repository / NAME / "1").symlink_to(path.resolve(), target_is_directory=True)
    return repository / NAME / "1"


def ask(bundle: Bundle, n: int = 4096) -> Rows:
    """``n`` rows that are far from a tie, and the engine's answers.

    Raises
    ------
    ModelError
        If the model sees too little difference between rows for a mixed-up answer to be noticed.
    """
    x = images(2 * n)
    said = OnnxEngine(bundle, "cpu").assign(x)
    ordered = np.sort(said.probabilities, axis=1)
    clear = np.flatnonzero(ordered[:, -1] - ordered[:, -2] > MARGIN)[:n]
    if len(clear) < n or np.bincount(said.clusters[clear]).max() > 0.8 * n:
        raise ModelError(f"{bundle.path / GRAPH_FILE} puts nearly all rows into one cluster, or between two")
    return Rows(x[clear], said.clusters[clear].astype(np.int64), said.probabilities[clear])
