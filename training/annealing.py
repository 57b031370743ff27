"""Schedules: the std lower bounds ε and the learning rate (paper §II-D), pure functions of the epoch.

Where stages end as their bounds converge (``stage_tolerance``), of the bounds so far too. A stage that has
converged skips the rest of its epochs: the next one trained is *scheduled* as the first of the next stage.
All that has a schedule (ε, the learning rate, anchors taken anew at each stage) goes by the scheduled epoch,
so that a learning rate halved with every stage still is. Nothing else is remembered: a run that was resumed
or rolled back has the bounds, and hence the schedule, of one that was not.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from statistics import median
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from training.config import TrainingConfig


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


def converged(bounds: Sequence[float], tolerance: float, window: int) -> bool:
    """Whether the bound of a stage has stopped rising.

    It has, when its latest gain is at most ``tolerance`` of what the stage has gained so far::

        latest <= tolerance * max(so_far, 0)
        latest = median(last window) - median(window before it)
        so_far = median(last window) - median(first window)

    A share of the stage's own gain has no unit: the bound's zero and size depend on the data's scale, the
    number of features and ε, so no number of nats means the same for two data sets. Medians of several
    epochs, because one epoch's bound is a mean over random samples and steps: an outlier moves nothing, nor
    does the dip right after ε was lowered, and a rise has to be seen above the noise of the epochs to prolong
    a stage. A bound that falls or only wobbles ends it as well: the latest gain is then negative within few
    epochs, and no level of noise need be estimated from so few numbers.

    Parameters
    ----------
    bounds
        Bounds of the stage's epochs, nats a row. Under ``2 * window`` of them say nothing yet.
    tolerance
        In [0, 1).
    window
        Epochs compared with as many before them, at least 1.
    """
    if len(bounds) < 2 * window:
        return False
    last, before = median(bounds[-window:]), median(bounds[-2 * window : -window])
    return last - before <= tolerance * max(last - median(bounds[:window]), 0.0)


def scheduled_epoch(config: TrainingConfig, bounds: Sequence[float]) -> int:
    """Place on the schedule of the epoch that follows ``bounds``, those of all epochs so far (nats a row).

    It is their number where stages have one length. With ``stage_tolerance`` a stage that has `converged` is
    followed by the schedule's next.
    """
    if config.stage_tolerance == 0:
        return len(bounds)
    longest = config.epsilon_every
    window = max(3, longest // 10)
    stage, began = 0, 0
    for done in range(1, len(bounds) + 1):
        if done - began == longest or converged(bounds[began:done], config.stage_tolerance, window):
            stage, began = stage + 1, done
    return stage * longest + len(bounds) - began


def epochs_left(config: TrainingConfig, bounds: Sequence[float]) -> int:
    """Epochs that can still follow ``bounds``; as many do, unless a stage converges before its time.

    With ``stage_tolerance`` the run ends with the stage in which ε is at its floor, and ``epochs``, if given,
    is the most there are. Without, ``epochs`` is their number, whatever ε.
    """
    left = config.total_epochs - len(bounds)
    if config.stage_tolerance > 0 and config.epsilon_factor < 1:
        left = min(left, config.scheduled_epochs - scheduled_epoch(config, bounds))
    return left


def epsilons(config: TrainingConfig, epoch: int, first_x: float) -> tuple[float, float]:
    """(ε_x, ε_z) of a scheduled epoch, ``first_x`` being ε_x of epoch 0."""
    share = halving(epoch, 1.0, config.epsilon_factor, config.epsilon_every, config.epsilon_floor)
    return first_x * share, config.epsilon_z * share


def learning_rate(config: TrainingConfig, epoch: int) -> float:
    """Adam's step size in a scheduled epoch."""
    return halving(epoch, config.learning_rate, config.learning_rate_factor, config.learning_rate_every)
