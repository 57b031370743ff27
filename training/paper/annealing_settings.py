"""The runs of Fig. 5(b): NVISA on MNIST with other first values of ε, and other lengths of its stages."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from training.config import load_preset
from training.paper.datasets import DataSet
from training.paper.plan import Configure, Method, Table
from training.paper.table2 import LAST_EPSILON, QUICK, QUICK_ROWS

SEEDS = tuple(range(5))
QUICK_SEEDS = (0, 1)

FIRST, EVERY = 1.0, 100
FIRSTS = (0.25, 0.5, 1.0, 2.0, 4.0)
EVERIES = (25, 50, 100, 200)

QUICK_EVERY = QUICK["epsilon_every"]
QUICK_LAST = QUICK["epsilon_floor"]
QUICK_FIRSTS = (0.25, 1.0, 4.0)
QUICK_EVERIES = (2, 5, 10)


@dataclass(frozen=True)
class Setting:
    """A first ε, of both stds, and the length of a stage in epochs."""

    first: float
    every: int

    @property
    def key(self) -> str:
        """Of its method."""
        return f"epsilon-{self.first:g}-every-{self.every}"


def settings(quick: bool) -> tuple[list[Setting], list[Setting]]:
    """Settings that differ in the first ε, and those that differ in the length; one is in both."""
    first, every = FIRST, int(QUICK_EVERY) if quick else EVERY
    firsts, everies = (QUICK_FIRSTS, QUICK_EVERIES) if quick else (FIRSTS, EVERIES)
    return [Setting(value, every) for value in firsts], [Setting(first, value) for value in everies]


def _configure(setting: Setting, last: float) -> Configure:
    def configure(_: DataSet) -> dict[str, Any]:
        return load_preset("paper") | {
            "epsilon_x": setting.first,
            "epsilon_z": setting.first,
            "epsilon_every": setting.every,
            # A share of the first, so that all end at the same ε.
            "epsilon_floor": last / setting.first,
        }

    return configure


def figure_5(quick: bool) -> Table:
    """The settings as rows of a table."""
    last = float(QUICK_LAST) if quick else LAST_EPSILON
    firsts, everies = settings(quick)
    return Table(
        "figure5-quick" if quick else "figure5",
        "Figure 5(b): annealing settings on MNIST",
        f"All end at ε = {last:g}, so that what begins higher, or has longer stages, trains longer.",
        tuple(
            Method(
                setting.key,
                f"ε from {setting.first:g}, halved every {setting.every} epochs",
                _configure(setting, last),
                max_rows=QUICK_ROWS if quick else None,
            )
            for setting in dict.fromkeys([*firsts, *everies])
        ),
        ("mnist",),
        QUICK_SEEDS if quick else SEEDS,
    )
