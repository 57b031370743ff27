"""``nvisa-train paper``: carry out what a table still lacks, and write it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

from serving.configuration import load_settings
from serving.files import write_atomically
from training.allocator import keep_freed_memory
from training.paper.crew import carry_out_all, only_one
from training.paper.datasets import DATASETS, MissingData, find
from training.paper.order import TABLES, Order
from training.paper.plan import Table, choose, jobs
from training.paper.render import load, render
from training.paper.settings import PaperSettings, spread


class UnfinishedTable(ArithmeticError):
    """Some runs of a table failed; the message tells which and why."""


def paper(arguments: Sequence[str]) -> None:
    """Run ``nvisa-train paper``."""
    from training.progress import TerminalProgress

    settings = load_settings(PaperSettings, spread(arguments))
    keep_freed_memory()
    say = TerminalProgress().say
    if settings.what == "figures":
        from training.paper.figures import draw_figures

        for picture in draw_figures(settings, say):
            print(f"picture written to {picture}")
        return
    path = make_table(settings, say)
    print(path.read_text())
    print(f"table written to {path}")


def make_table(settings: PaperSettings, say: Callable[[str], None]) -> Path:
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
    table = TABLES[settings.what](settings.quick)
    folder = settings.output / table.name
    orders = orders_of(settings, settings.what, say)
    folder.mkdir(parents=True, exist_ok=True)
    with only_one(folder):
        failures = carry_out_all(orders, settings.jobs, say)
        path = write_table(table, settings.output)
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


def orders_of(settings: PaperSettings, name: str, say: Callable[[str], None]) -> list[Order]:
    """The runs of the table called ``name`` that were asked for, of data sets that are there."""
    table = TABLES[name](settings.quick)
    keys = choose("methods", [method.key for method in table.methods], settings.methods)
    names = choose("datasets", table.datasets, settings.datasets)
    present = []
    for dataset in names:
        try:
            find(DATASETS[dataset], settings.data)
        except MissingData as error:
            say(str(error))
        else:
            present.append(DATASETS[dataset])
    if not present:
        raise ValueError(f"--data {settings.data}: none of {', '.join(names)} is there")
    table = replace(
        table,
        seeds=table.seeds if settings.seeds is None else tuple(dict.fromkeys(settings.seeds)),
        methods=tuple(method for method in table.methods if method.key in keys),
    )
    place = {"data": settings.data, "folder": settings.output / table.name, "device": settings.device}
    return [
        Order(name, settings.quick, job.dataset.name, job.method.key, job.seed, **place)  # type: ignore[arg-type]
        for job in jobs(table, present)
    ]
