"""Random numbers of one run, or of several side by side, each run's from a generator of its own.

In a stack of runs every tensor of a batch has the axis of the runs just before that of the rows, so that a
function of ``(..., rows, features)`` need not know of it; only what draws must, and draws here.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

# One run's generator, or one for each run of a stack.
Source = torch.Generator | tuple[torch.Generator, ...]


def draw(
    kind: Literal["normal", "uniform", "exponential"],
    shape: tuple[int, ...],
    source: Source,
    device: torch.device,
    *,
    run_axis: int = -3,
) -> Tensor:
    """Standard noise of ``shape``, float32.

    Parameters
    ----------
    source
        Of a stack: as many generators as ``shape[run_axis]``; each run gets the very numbers that it would
        get alone, and its part of the result lies in one piece of memory.
    """
    if isinstance(source, torch.Generator):
        return _fill(kind, torch.empty(shape, device=device), source)
    own = list(shape)
    own.pop(run_axis)
    parts = torch.empty((len(source), *own), device=device)
    for part, generator in zip(parts, source, strict=True):
        _fill(kind, part, generator)
    return parts.movedim(0, run_axis)


def _fill(kind: str, values: Tensor, generator: torch.Generator) -> Tensor:
    filled: Tensor = getattr(values, f"{kind}_")(generator=generator)
    return filled
