"""Choosing one of several runs without labels: the medoid, whose clusters agree best with the other runs'.

Clusters that several seeds find are no accident of one. Over the runs of `benchmarks/selection.py` that ranks
runs as accuracy does; the bound of log p(x) does not, not even at the first, warmest ε, where only the
leading structure of the data is worth modelling. That *warm bound* is kept beside it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch

from training.config import TrainingConfig
from training.model import NVISAModel
from training.rows import Rows
from training.schedule import epoch_generator
from training.step import row_bounds, rows_at_once

if TYPE_CHECKING:
    from training.fitted import RestartSummary

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


def choose(restarts: Sequence[RestartSummary]) -> int:
    """Index of the run with the highest agreement, of equals the first; never one that diverged.

    Two runs agree with each other alike: it takes three for one to be the odd one out.
    """

    def rank(index: int) -> tuple[bool, float]:
        restart = restarts[index]
        return restart.error is None, restart.agreement or 0.0

    return max(range(len(restarts)), key=rank)
