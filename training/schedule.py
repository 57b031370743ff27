"""The order of rows and the random numbers of an epoch, as functions of the seed and the epoch.

An epoch draws from a generator seeded by (seed, epoch) alone, so that a run resumed at any epoch sees
exactly what an uninterrupted one sees, and no generator state needs saving.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

MIN_STEPS = 10


def epoch_seed(seed: int, epoch: int) -> int:
    """What an epoch's generator is seeded with; negative epochs are for what happens before the first."""
    entropy = (seed, 0 if epoch >= 0 else 1, abs(epoch))
    return int(np.random.SeedSequence(entropy).generate_state(1, np.uint64)[0]) & (2**63 - 1)


def epoch_generator(seed: int, epoch: int, device: torch.device) -> torch.Generator:
    """Generator of one epoch."""
    return torch.Generator(device).manual_seed(epoch_seed(seed, epoch))


def batches(n_rows: int, batch_size: int, generator: torch.Generator) -> Iterator[Tensor]:
    """Indices of an epoch's batches in random order; the last short one is dropped.

    Data of fewer than ten batches is cut into ten smaller ones, so that an epoch is always several steps.
    """
    order = torch.randperm(n_rows, generator=generator, device=generator.device)
    size = min(batch_size, -(-n_rows // MIN_STEPS))
    for start in range(0, n_rows - size + 1, size):
        yield order[start : start + size]
