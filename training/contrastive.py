"""Contrastive learning of the encoder: two views of an image lie together, apart from all others (SimCLR).

Chen et al., 2020, "A Simple Framework for Contrastive Learning of Visual Representations". What is learned
is which images are alike once place, size and tone do not count; with that beside the pixels a UMAP embedding
shows clusters that pixels alone do not.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from training.augment import view
from training.config import TrainingConfig
from training.divergence import DivergedError
from training.model import NVISAModel
from training.networks import dense
from training.precision import matrix_products
from training.rows import Rows, fetch, part_rows
from training.schedule import batches, epoch_generator

BATCH_SIZE = 512
LEARNING_RATE = 2e-3
WARM_UP_STEPS = 100
WEIGHT_DECAY = 1e-4
PROJECTED = 64
TEMPERATURE = 0.2
# Epochs have numbers that nothing else draws by: see `training.schedule.epoch_seed`.
_BEFORE_ALL = 1_000_000


def contrast(model: NVISAModel, rows: Rows, config: TrainingConfig, say: Callable[[str], None]) -> None:
    """Train ``model.encoder`` for ``config.contrastive_steps``; a projection on top of it is thrown away.

    Parameters
    ----------
    model
        Changed in place.
    rows
        Images ``(n, *shape)`` as they came, on the model's device.

    Raises
    ------
    DivergedError
        If the loss is not finite.
    """
    width, steps = model.encoder.out_features, config.contrastive_steps
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        projection = nn.Sequential(dense(width, width), nn.ReLU(), dense(width, PROJECTED)).to(rows.device)
    parameters = [*model.encoder.parameters(), *projection.parameters()]
    optimiser = torch.optim.AdamW(parameters, lr=LEARNING_RATE, weight_decay=WEIGHT_DECAY, fused=True)
    done = epoch = told = 0
    while done < steps:
        generator = epoch_generator(config.seed, epoch - _BEFORE_ALL, rows.device)
        order = list(batches(len(rows), BATCH_SIZE, generator))[: steps - done]
        total = torch.zeros((), device=rows.device)
        for _, raw in fetch(rows, order):
            for group in optimiser.param_groups:
                group["lr"] = _rate(done, steps)
            x = model.preprocess(raw)
            views = torch.cat([view(x, model.spec, generator), view(x, model.spec, generator)])
            with matrix_products(rows.device, config.precision):
                projected = projection(model.encoder(views))
            loss = nt_xent(projected.float())
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
            total += loss.detach()
            done += 1
        epoch += 1
        if not (mean := total.item() / len(order)) < math.inf:
            raise DivergedError(
                "contrastive learning diverged: try precision float32, or contrastive_steps 0"
            )
        if (tenth := 10 * done // steps) > told:
            told = tenth
            say(f"contrastive step {done}/{steps}: loss {mean:.3f} a view")
    model.zero_grad(set_to_none=True)


def nt_xent(projected: Tensor) -> Tensor:
    """Normalised temperature-scaled cross-entropy (Chen et al., 2020, eq. 1), mean in nats a view.

    Parameters
    ----------
    projected
        ``(2 B, P)``, float32: one view of each image, then in the same order the other.
    """
    directions = F.normalize(projected, dim=1)
    similarity = directions @ directions.T / TEMPERATURE
    n_views = len(projected)
    itself = torch.eye(n_views, dtype=torch.bool, device=projected.device)
    other = torch.arange(n_views, device=projected.device).roll(n_views // 2)
    return F.cross_entropy(similarity.masked_fill(itself, -math.inf), other)


@torch.no_grad()
def contrastive_features(model: NVISAModel, rows: Rows) -> Tensor:
    """The encoder's features of rows, of length 1: ``(n, *shape) -> (n, H)``, float32 on the CPU."""
    parts = rows.split(part_rows(rows.shape, most=1024))
    return torch.cat([F.normalize(model.encoder(model.preprocess(part)), dim=1).cpu() for part in parts])


def _rate(step: int, steps: int) -> float:
    """Linear to `LEARNING_RATE` in the first steps, and down to 0 as a cosine."""
    return LEARNING_RATE * min(1.0, (step + 1) / WARM_UP_STEPS) * (1 + math.cos(math.pi * step / steps)) / 2
