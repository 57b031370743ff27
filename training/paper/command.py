"""``nvisa-train paper``: carry out what a table still lacks, and write it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from serving.files import write_atomically
from training.paper.crew import carry_out_all, only_one
from training.paper.datasets import DATASETS, MissingData, find
from training.paper.order import TABLES, Order
from training.paper.plan import Table, choose, jobs
from training.paper.render import load, render


class UnfinishedTable(ArithmeticError):
    """Some runs of a table failed; the message tells which and why."""


@dataclass(frozen=True)
class Choice:
    """What was asked for on the command line; ``None``: all there is."""

    table: str
    quick: bool
    data: Path
    output: Path
    datasets: Sequence[str] | None = None
    methods: Sequence[str] | None = None
    seeds: Sequence[int] | None = None
    n_jobs: int = 1
    device: Literal["auto", "cpu", "cuda"] = "auto"


def make_table(choice: Choice, say: Callable[[str], None]) -> Path:
    """Carry out the runs of a table that are not there yet, and write all that are as Markdown.

    Returns
    -------
    Path
        The Markdown file; the runs are in the folder of the same name beside it.

    Raises
    ------
    ValueError
        If a name is unknown, none of the data is there, or a result is of other hyper-parameters.
    UnfinishedTable
        If runs failed; the table is written without them.
    """
    table = TABLES[choice.table](choice.quick)
    folder = choice.output / table.name
    orders = orders_of(choice, say)
    folder.mkdir(parents=True, exist_ok=True)
    with only_one(folder):
        failures = carry_out_all(orders, choice.n_jobs, say)
        path = write_table(table, choice.output)
    if failures:
        raise UnfinishedTable(
            f"{len(failures)} runs failed, and are tried again next time: {'; '.join(failures)}"
        )
    return path


def write_table(table: Table, output: Path) -> Path:
    """Write all runs of a table that are in ``output`` as Markdown."""
    path = output / f"{table.name}.md"
    write_atomically(path, render(table, load(output / table.name)).encode())
    return path


def orders_of(choice: Choice, say: Callable[[str], None]) -> list[Order]:
    """The runs that were asked for, of data sets that are there."""
    table = TABLES[choice.table](choice.quick)
    keys = choose("methods", [method.key for method in table.methods], choice.methods)
    names = choose("datasets", table.datasets, choice.datasets)
    present = []
    for name in names:
        try:
            find(DATASETS[name], choice.data)
        except MissingData as error:
            say(str(error))
        else:
            present.append(DATASETS[name])
    if not present:
        raise ValueError(f"--data {choice.data}: none of {', '.join(names)} is there")
    table = replace(
        table,
        seeds=table.seeds if choice.seeds is None else tuple(dict.fromkeys(choice.seeds)),
        methods=tuple(method for method in table.methods if method.key in keys),
    )
    place = {"data": choice.data, "folder": choice.output / table.name, "device": choice.device}
    return [
        Order(choice.table, choice.quick, job.dataset.name, job.method.key, job.seed, **place)  # type: ignore[arg-type]
        for job in jobs(table, present)
    ]
