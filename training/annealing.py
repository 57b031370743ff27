"""Schedules as pure functions of the epoch: the std lower bounds ε and the learning rate (paper §II-D)."""

from __future__ import annotations

import math


def halving(epoch: int, initial: float, factor: float, every: int, floor: float = 0.0) -> float:
    """Step-wise geometric decay: ``max(floor, initial * factor ** (epoch // every))``.

    The paper anneals ε from 1 by 0.5 every 100 epochs to 1e-4, and the learning rate from 1e-3 by 0.5
    every 300 epochs.

    Parameters
    ----------
    epoch
        Epoch, counted from 0.
    initial, factor, floor
        First value, factor per stage in (0, 1], and least value.
    every
        Length of a stage in epochs, at least 1.
    """
    return max(floor, initial * factor ** (epoch // every))


def epochs_to_floor(initial: float, factor: float, every: int, floor: float) -> int:
    """Epochs until `halving` first returns ``floor``; 0 if it starts there.

    Raises
    ------
    ValueError
        If the floor is never reached.
    """
    if initial <= floor:
        return 0
    if factor >= 1 or floor <= 0:
        raise ValueError(f"a schedule from {initial} by {factor} never reaches {floor}")
    # The small term keeps exact powers, such as 1 -> 0.5**4, from rounding up by a stage.
    return every * math.ceil(math.log(floor / initial) / math.log(factor) - 1e-9)
