"""What there is to do for a table: methods, and the jobs they make with data sets and seeds."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from training.config import TrainingConfig
from training.paper.datasets import DataSet

Configure = Callable[[DataSet], dict[str, Any]]


@dataclass(frozen=True)
class Method:
    """A row of a table.

    Attributes
    ----------
    key
        Its name on the command line and in file names.
    group, title
        As the table has them.
    configure
        From a data set to the hyper-parameters that differ from `TrainingConfig`'s defaults.
    baseline
        Which of `training.baselines.BASELINES` it is; ``None`` for NVISA.
    max_rows
        Training rows to take at most.
    """

    key: str
    title: str
    configure: Configure
    group: str = ""
    baseline: str | None = None
    max_rows: int | None = None


@dataclass(frozen=True)
class Table:
    """A table to be made.

    Attributes
    ----------
    name
        Of the folder its runs are kept in.
    title, note
        Above and below it; the note says what the reader must know of how its runs were made.
    """

    name: str
    title: str
    note: str
    methods: tuple[Method, ...]
    datasets: tuple[str, ...]
    seeds: tuple[int, ...]


@dataclass(frozen=True)
class Job:
    """One run."""

    dataset: DataSet
    method: Method
    seed: int

    @property
    def config(self) -> TrainingConfig:
        """Its hyper-parameters."""
        known = {
            "n_clusters": self.dataset.n_clusters,
            "latent_dim": self.dataset.latent_dim,
            "seed": self.seed,
        }
        return TrainingConfig.model_validate(known | self.method.configure(self.dataset))

    @property
    def name(self) -> str:
        """Unique in its table, and a file's name."""
        return f"{self.dataset.name}/{self.method.key}-{self.seed}"


def jobs(table: Table, datasets: Iterable[DataSet]) -> list[Job]:
    """All runs of a table: seed after seed, so that what a killed command leaves is a whole table."""
    found = list(datasets)
    return [
        Job(dataset, method, seed) for seed in table.seeds for dataset in found for method in table.methods
    ]


def choose(kind: str, known: Mapping[str, Any] | Sequence[str], asked: Sequence[str] | None) -> list[str]:
    """The names asked for, or all.

    Raises
    ------
    ValueError
        If there is no such name; the message lists those there are.
    """
    names = list(known)
    if unknown := [name for name in asked or () if name not in names]:
        raise ValueError(
            f"--{kind}: there is no {', '.join(map(repr, unknown))}; there are {', '.join(names)}"
        )
    return names if asked is None else [name for name in names if name in asked]
