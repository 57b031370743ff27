"""Another order of a fitted model's clusters: the same model, its clusters renumbered."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import torch
from torch import Tensor

from training.fitted import Fitted
from training.initialise import Mixture, Start
from training.model import NVISAModel

# Every parameter with an axis of clusters, always the first one.
CLUSTER_PARAMETERS = ("y_head.weight", "y_head.bias", "z_from_y", "prior_mean", "prior_raw_std")


def permute_clusters(fitted: Fitted, order: Sequence[int]) -> Fitted:
    """Renumber the clusters of ``fitted``: what was cluster ``order[k]`` becomes cluster ``k``.

    Everything else the model says of a row stays as it is. ``fitted`` itself is not changed.

    Raises
    ------
    ValueError
        If ``order`` does not name every cluster once.
    """
    order = list(order)
    n_clusters = fitted.config.n_clusters
    if sorted(order) != list(range(n_clusters)):
        raise ValueError(f"order must name each of the clusters 0..{n_clusters - 1} once, got {order}")
    index = torch.as_tensor(order, dtype=torch.int64)
    model = NVISAModel(fitted.config, fitted.spec)
    model.load_state_dict(_permuted(fitted.model.state_dict(), index))
    rows, reference = fitted.rows, fitted.rows.reference
    return dataclasses.replace(
        fitted,
        model=model.to(fitted.model.shift.device).eval(),
        start=None if fitted.start is None else _permuted_start(fitted.start, index),
        rows=dataclasses.replace(
            rows,
            typical=rows.typical[order],
            reference=reference.model_copy(
                update={"cluster_shares": tuple(reference.cluster_shares[k] for k in order)}
            ),
            mean_confidence=rows.mean_confidence[order],
        ),
        names=tuple(fitted.names[k] for k in order) if fitted.names else (),
    )


def _permuted(tensors: dict[str, Tensor], index: Tensor) -> dict[str, Tensor]:
    return {
        name: value.cpu()[index] if name in CLUSTER_PARAMETERS else value for name, value in tensors.items()
    }


def _permuted_start(start: Start, index: Tensor) -> Start:
    mixture = start.mixture
    if mixture is not None:
        order = index.numpy()
        mixture = Mixture(**{name: value[order] for name, value in vars(mixture).items()})
    return Start(_permuted(start.encoder, index), mixture)
