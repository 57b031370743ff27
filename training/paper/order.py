"""An order for one run, in words that travel to another process."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from training.paper.annealing_settings import figure_5
from training.paper.datasets import DATASETS
from training.paper.plan import Job, Table
from training.paper.table1 import table_1
from training.paper.table2 import table_2

TABLES: dict[str, Callable[[bool], Table]] = {
    "table1": table_1,
    "table2": table_2,
    "figure5": figure_5,
}


def folder_name(kind: str, quick: bool) -> str:
    """Name of the folder of a table's runs."""
    return f"{kind}-quick" if quick else kind


@dataclass(frozen=True)
class Order:
    """One run of a table.

    Attributes
    ----------
    table, quick, dataset, method, seed
        Which run, by names.
    data, folder
        Where the data sets are, and where the table's runs go.
    device
        As `TrainingConfig.device`.
    """

    table: str
    quick: bool
    dataset: str
    method: str
    seed: int
    data: Path
    folder: Path
    device: Literal["auto", "cpu", "cuda"] = "auto"

    @property
    def job(self) -> Job:
        """The run that the names mean."""
        method = next(m for m in TABLES[self.table](self.quick).methods if m.key == self.method)
        return Job(DATASETS[self.dataset], method, self.seed)

    @property
    def result(self) -> Path:
        """The JSON file of the run."""
        return self.folder / f"{self.job.name}.json"

    @property
    def model(self) -> Path:
        """The directory of the fit, and of its checkpoints while it runs."""
        return self.folder / "models" / self.job.name
