"""Bringing the nets and the prior to agree on given clusters, before the first joint step.

Without it the first joint steps undo a good start: the decoder and the prior know nothing of the clusters,
so the bound asks q(y|x) for others.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from training.augment import affine, augments
from training.config import TrainingConfig
from training.densities import normal_log_density, sample_normal
from training.divergence import DivergedError
from training.model import Encoding, NVISAModel
from training.noise import Source
from training.precision import matrix_products
from training.rows import Rows, fetch
from training.schedule import batches, epoch_generator

WEIGHT = 10.0


def anchor_loss(
    model: NVISAModel,
    encoding: Encoding,
    x: Tensor,
    clusters: Tensor,
    config: TrainingConfig,
    generator: Source,
    *,
    changed_only: bool = False,
) -> Tensor:
    """``-log q(y|x)`` at given clusters, nats a row; with ``augment``, its mean with that of ``x`` changed.

    Parameters
    ----------
    encoding
        Of ``x (..., B, D)``.
    clusters
        int64 ``(..., B)``.
    changed_only
        With ``augment``, leave the rows as they are out. While clusters are learned, that keeps their errors
        from being learned by heart. Not while the bound pulls at q(y|x): a network can tell a row from its
        changed self, and would keep the clusters of the latter alone.
    """
    if not augments(config.augment, model.spec):
        return _surprise(encoding, clusters)
    loss = _surprise(model.encode(affine(x, model.spec, generator)), clusters)
    return loss if changed_only else (loss + _surprise(encoding, clusters)) / 2


def _surprise(encoding: Encoding, clusters: Tensor) -> Tensor:
    return -encoding.log_q_y.gather(-1, clusters.unsqueeze(-1)).squeeze(-1)


def agree(
    model: NVISAModel,
    rows: Rows,
    clusters: Tensor,
    config: TrainingConfig,
    say: Callable[[str], None],
) -> None:
    """Train everything with y given: the bound of log p(x, y), and cross-entropy of q(y|x) to y.

    z is reparameterised, one sample a row; the learning rate falls to zero.

    Parameters
    ----------
    rows
        ``(n, *shape)`` as they came.
    clusters
        int64 ``(n,)``, on the same device.

    Raises
    ------
    DivergedError
        If the loss is not finite.
    """
    epochs = config.pretrain_epochs
    optimiser = torch.optim.Adam(model.parameters(), lr=config.learning_rate, fused=True)
    for epoch in range(epochs):
        generator = epoch_generator(config.seed, epoch - epochs, rows.device)
        order = list(batches(len(rows), config.batch_size, generator))
        total = torch.zeros((), device=rows.device)
        for step, (index, raw) in enumerate(fetch(rows, order)):
            for group in optimiser.param_groups:
                group["lr"] = config.learning_rate * (1 - (epoch + step / len(order)) / epochs)
            x, y = model.preprocess(raw, generator), clusters[index]
            with matrix_products(rows.device, config.precision):
                encoding = model.encode(x)
                mean, std = model.q_z(encoding.hidden, y.unsqueeze(0))
                z = sample_normal(mean, std, generator)
                bound = model.log_joint(x, y.unsqueeze(0), z) - normal_log_density(z, mean, std)
                anchor = anchor_loss(model, encoding, x, y, config, generator, changed_only=True)
                loss = (WEIGHT * anchor - bound.squeeze(0)).mean()
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
            total += anchor.detach().mean()
        mean_anchor = total.item() / len(order)
        if not mean_anchor < float("inf"):
            raise DivergedError("agreement with the start diverged: lower learning_rate")
        say(f"agreement epoch {epoch + 1}/{epochs}: {mean_anchor:.3f} nats a row from the start's clusters")
    model.zero_grad(set_to_none=True)
