"""What a baseline leaves behind: rows become points, and points clusters."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from sklearn import config_context

from training.initialise import encode_rows
from training.model import NVISAModel
from training.rows import MappedRows, Rows, part_rows


class Clusterer(Protocol):
    """A fitted baseline."""

    def predict(self, x: np.ndarray) -> np.ndarray:
        """Cluster of each raw row: uint8 images or float32 features ``(n, *shape)`` -> int64 ``(n,)``."""


class Assigner(Protocol):
    """What tells a point's cluster, such as a fitted scikit-learn mixture."""

    def predict(self, points: np.ndarray, /) -> Any:
        """Cluster of each point: ``(n, L) -> (n,)``."""


@dataclass(frozen=True)
class PointClusterer:
    """Rows as points of a fitted space, each with its cluster there.

    Attributes
    ----------
    model
        Holds the preprocessing and, where there are any, the nets.
    points
        From the model and raw rows to points ``(n, L)``: `flat_rows`, or the codes of the model's encoder.
    assigner
        Clusters of points.
    """

    model: NVISAModel
    points: Callable[[NVISAModel, Rows], np.ndarray]
    assigner: Assigner

    def predict(self, x: np.ndarray) -> np.ndarray:
        """See `Clusterer`."""
        rows = MappedRows(x, self.model.spec.dtype, self.model.shift.device)
        points = self.points(self.model, rows)
        # The caller may have scikit-learn's array API switched on, which not all of these know.
        with config_context(array_api_dispatch=False):
            return np.asarray(self.assigner.predict(points), np.int64)


def on_codes(model: NVISAModel, assigner: Assigner) -> PointClusterer:
    """Clusters of the model's codes, `training.initialise.latent_code`."""
    return PointClusterer(model.eval(), encode_rows, assigner)


@torch.no_grad()
def flat_rows(model: NVISAModel, rows: Rows) -> np.ndarray:
    """Preprocessed rows, flattened: float32 ``(n, D)``."""
    parts = [model.preprocess(part).cpu() for part in rows.split(part_rows(rows.shape))]
    return torch.cat(parts).numpy()
