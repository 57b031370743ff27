"""The loop that all baselines share: Adam on a loss, epoch by epoch, in NVISA's order of rows."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator

import torch
from torch import Tensor

from training.baselines.begin import Say
from training.config import TrainingConfig
from training.divergence import DivergedError
from training.precision import matrix_products
from training.rows import Rows, fetch
from training.schedule import batches, epoch_generator

# From a batch's indices, its raw rows and the epoch's generator to the mean loss of its rows.
Loss = Callable[[Tensor, Tensor, torch.Generator], Tensor]


def epochs(
    name: str,
    loss: Loss,
    parameters: Iterable[Tensor],
    rows: Rows,
    config: TrainingConfig,
    n_epochs: int,
    say: Say,
    *,
    first: int = 0,
    falling: bool = True,
) -> Iterator[float]:
    """Minimise a loss; after each epoch give its mean, so that the caller can look and stop.

    Parameters
    ----------
    name
        What is trained, for messages.
    loss
        Mean loss of a batch, run with matrix products in ``config.precision``.
    parameters
        What to train, with Adam at ``config.learning_rate``.
    first
        Number of the first epoch, which its random numbers depend on; negative before the joint phase.
    falling
        Let the learning rate fall to zero, linearly over all epochs.

    Raises
    ------
    DivergedError
        If the loss is not finite.
    """
    trained = list(parameters)
    optimiser = torch.optim.Adam(trained, lr=config.learning_rate, fused=True)
    for epoch in range(n_epochs):
        generator = epoch_generator(config.seed, first + epoch, rows.device)
        order = list(batches(len(rows), config.batch_size, generator))
        total = torch.zeros((), device=rows.device)
        for step, (index, raw) in enumerate(fetch(rows, order)):
            if falling:
                for group in optimiser.param_groups:
                    group["lr"] = config.learning_rate * (1 - (epoch + step / len(order)) / n_epochs)
            with matrix_products(rows.device, config.precision):
                value = loss(index, raw, generator)
            optimiser.zero_grad()
            value.backward()
            optimiser.step()
            total += value.detach()
        mean = total.item() / len(order)
        if not (math.isfinite(mean) and all(bool(p.isfinite().all()) for p in trained)):
            raise DivergedError(f"{name} diverged in epoch {epoch + 1}: lower learning_rate")
        if epoch == n_epochs - 1 or (epoch + 1) % max(1, n_epochs // 5) == 0:
            say(f"{name} epoch {epoch + 1}/{n_epochs}: loss {mean:.3f} a row")
        yield mean
    for parameter in trained:
        parameter.grad = None


def run(training: Iterator[float]) -> None:
    """Train to the last epoch."""
    for _ in training:
        pass
