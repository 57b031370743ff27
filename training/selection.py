"""Choosing one of several runs without labels.

The final bound is not the score: at a small ε it is dominated by pixels that say nothing about clusters.
At the first, warmest ε only the leading structure of the data is worth modelling, so there the bound
compares what runs made of it.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from sklearn.metrics import adjusted_rand_score

from training.config import TrainingConfig
from training.model import NVISAModel
from training.rows import Rows
from training.schedule import epoch_generator
from training.step import row_bounds, rows_at_once

SCORE_ROWS = 2_000
SCORE_SAMPLES = 8
SCORE_EPOCH = -(10**6)


@torch.no_grad()
def warm_bound(model: NVISAModel, rows: Rows, config: TrainingConfig) -> float:
    """Mean bound of log p(x) in nats a row, at the model's present ε, on evenly spread training rows.

    Taken once, at the end of the first annealing stage (or of the run, if that is shorter). Every run uses
    the same rows and the same noise, so that only the models differ.
    """
    chosen = rows[:: -(-len(rows) // SCORE_ROWS)]
    total = 0.0
    for part in chosen.split(rows_at_once(model, SCORE_SAMPLES)):
        generator = epoch_generator(0, SCORE_EPOCH, rows.device)
        total += row_bounds(model, model.preprocess(part), SCORE_SAMPLES, generator).sum().item()
    return total / len(chosen)


def mean_agreement(clusterings: Sequence[np.ndarray]) -> list[float]:
    """Mean adjusted Rand index of each clustering ``(n,)`` with the others; the highest is their medoid."""
    pairs = np.array([[adjusted_rand_score(one, other) for other in clusterings] for one in clusterings])
    others = max(1, len(clusterings) - 1)
    return [float(total) for total in (pairs.sum(1) - 1) / others]


def choose(scores: list[float]) -> int:
    """Index of the run with the highest score; runs that diverged score ``-inf``."""
    return max(range(len(scores)), key=scores.__getitem__)
