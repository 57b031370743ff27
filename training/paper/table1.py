"""Table I: NVISA beside what a user would take instead, on the same rows, networks and seeds."""

from __future__ import annotations

from typing import Any

from training.config import load_preset
from training.paper.datasets import DATASETS, DataSet
from training.paper.plan import Configure, Method, Table

SEEDS = tuple(range(10))

# The quick table, with every data set cut to so many training rows and one seed.
QUICK_ROWS = 10_000
QUICK_SEEDS = (0,)
QUICK_PRETRAIN_EPOCHS = 30
# Joint epochs of the baselines, and of NVISA in five stages of ε from 1 to 1/16.
QUICK_EPOCHS = 30
QUICK_RANDOM = {"epsilon_every": 5, "epsilon_floor": 1 / 16}
QUICK_GMM = QUICK_RANDOM | {"pretrain_epochs": QUICK_PRETRAIN_EPOCHS, "epsilon_every": 4}
# With a sixth of the rows of `mnist-quick`, twice its epochs before the joint ones.
QUICK_UMAP = {"pretrain_epochs": 12}
# A network's features are compared by cosine, and the scale that ε starts at is found from them.
FEATURES = {"embedding_metric": "cosine", "epsilon_x": "auto"}
# Pixels are embedded beside what so many steps of contrastive learning tell the encoder of them.
CONTRASTIVE = {"contrastive_steps": 936}
QUICK_CONTRASTIVE = {"contrastive_steps": 400}

PROTOCOL = (
    "ACC in per cent, mean ± standard deviation over the seeds: fitted on the training rows; *test*: on the "
    "test rows; *all*: on training and test rows together, as DEC, VaDE and N2D publish it. *Quoted* is the "
    "paper's Table I: test rows, and ten runs of NVISA. The paper's networks for pixels are convolutional; "
    "here all are fully connected but those of NVISA with the UMAP start. It embeds pixels beside what its "
    "encoder learned of them by contrast, which no other row does, and features by cosine, as PCA+UMAP+GMM."
)


def _paper(preset: str, **changes: Any) -> Configure:
    def configure(dataset: DataSet) -> dict[str, Any]:
        return load_preset(preset) | {"n_importance_samples": dataset.n_samples} | changes

    return configure


def _own(quick: bool) -> Configure:
    def configure(dataset: DataSet) -> dict[str, Any]:
        if not quick:
            return load_preset("default") | (CONTRASTIVE if dataset.pixels else FEATURES)
        return load_preset("mnist-quick") | QUICK_UMAP | (QUICK_CONTRASTIVE if dataset.pixels else FEATURES)

    return configure


def _theirs(key: str, short: dict[str, Any]) -> Configure:
    def configure(dataset: DataSet) -> dict[str, Any]:
        # What NVISA starts from; the others are as published.
        cosine = key == "pca-umap-gmm" and not dataset.pixels
        return short | ({"embedding_metric": FEATURES["embedding_metric"]} if cosine else {})

    return configure


def table_1(quick: bool) -> Table:
    """Rows of the table, the paper's schedules or short ones."""
    from training.baselines import BASELINES

    random: dict[str, Any] = QUICK_RANDOM if quick else {}
    gmm: dict[str, Any] = QUICK_GMM if quick else {}
    short = {"pretrain_epochs": QUICK_PRETRAIN_EPOCHS, "epochs": QUICK_EPOCHS} if quick else {}
    most = QUICK_ROWS if quick else None
    methods = [
        Method("nvisa", "NVISA, UMAP start (ours)", _own(quick), "NVISA", max_rows=most),
        Method("nvisa-gmm", "NVISA, AE+GMM start", _paper("paper-gmm", **gmm), "NVISA", max_rows=most),
        Method("nvisa-random", "NVISA, random start", _paper("paper", **random), "NVISA", max_rows=most),
    ]
    methods += [
        Method(key, baseline.title, _theirs(key, short), "Baseline", baseline=key, max_rows=most)
        for key, baseline in BASELINES.items()
    ]
    note = PROTOCOL
    if quick:
        note = (
            f"**Quick**: {QUICK_ROWS:,} training rows, all test rows, {len(QUICK_SEEDS)} seed, shortened "
            f"schedules (`training/paper/table1.py`). {note}"
        )
    return Table(
        "table1-quick" if quick else "table1",
        "Table I: unsupervised clustering accuracy",
        note,
        tuple(methods),
        tuple(DATASETS),
        QUICK_SEEDS if quick else SEEDS,
    )
