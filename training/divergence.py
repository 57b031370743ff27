"""When a run has gone wrong: a loss that is not finite, or a bound that fell through the floor."""

from __future__ import annotations

import math

from training.history import History


class DivergedError(ArithmeticError):
    """A run cannot go on: not from its start, or not after all the rollbacks it is allowed."""


def trouble(bound: float, history: History) -> str | None:
    """What is wrong with an epoch's bound (nats a row; NaN if anything was not finite), if anything.

    The bound rises with the epochs and with every halving of ε. One far below all before it is a run that
    has lost its clusters to one bad step, and does not find them again.
    """
    if not math.isfinite(bound):
        return "the loss was not finite"
    lowest = min((record["bound"] for record in history), default=-math.inf)
    if bound < lowest - max(10.0, abs(lowest) / 2):
        return f"the bound fell to {bound:.1f}, far below all before it ({lowest:.1f} at the least),"
    return None
