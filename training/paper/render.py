"""Tables in Markdown, from the files of their runs."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from training.checkpoint import read_json
from training.paper import quoted
from training.paper.datasets import DATASETS
from training.paper.plan import Method, Table

NOTHING = "–"


def markdown(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Write a table."""
    cells = [[cell.replace("|", "\\|") for cell in line] for line in (header, *rows)]
    lines = [f"| {' | '.join(line)} |" for line in cells]
    return "\n".join([lines[0], "|---" * len(header) + "|", *lines[1:]]) + "\n"


def load(folder: Path) -> list[dict[str, Any]]:
    """Results of all runs in a table's folder.

    Raises
    ------
    ValueError
        If runs of one data set are of different rows: their numbers cannot stand side by side.
    """
    found = [read_json(path) for path in sorted(folder.glob("*/*.json")) if path.parent.name in DATASETS]
    for name in DATASETS:
        rows = {run["fingerprint"]: run for run in found if run["dataset"] == name}
        several = {run["fingerprint"] for run in rows.values()}
        if len(several) > 1:
            raise ValueError(
                f"{folder / name}: its runs are of different data; move those of one of them away"
            )
    return found


def render(table: Table, runs: Sequence[dict[str, Any]]) -> str:
    """A file of its own: the table, every score, notes, and what it was measured with."""
    parts = [f"# {table.title}\n", body(table, runs), table.note + "\n"]
    if runs:
        parts += ["## Details\n", details(table, runs), provenance(runs) + "\n"]
    return "\n".join(parts)


def section(table: Table, runs: Sequence[dict[str, Any]]) -> str:
    """A part of a page: title, table, notes, and what it was measured with."""
    return "\n".join([f"**{table.title}**\n", body(table, runs), f"{table.note} {provenance(runs)}\n"])


def body(table: Table, runs: Sequence[dict[str, Any]]) -> str:
    """The table alone, in the form that its kind has."""
    kinds = {"table1": markdown_1, "table2": markdown_2, "figure5": markdown_5}
    return kinds[table.name.removesuffix("-quick")](table, runs)


def markdown_1(table: Table, runs: Sequence[dict[str, Any]]) -> str:
    """Table I: a row a method, for each data set ACC on the test rows, on all rows, and what is quoted."""
    names = [name for name in DATASETS if any(run["dataset"] == name for run in runs)] or ["mnist"]
    header = [""]
    for name in names:
        header += [column_title(name, runs), "all", "quoted", "runs"]
    lines = []
    for method in table.methods:
        line = [method.title]
        for name in names:
            mine = [run for run in runs if (run["dataset"], run["method"]) == (name, method.key)]
            line += [acc(mine, "test"), acc(mine, "all"), _quoted(method.key, name), effort(mine)]
        lines.append(line)
    for title in ("GM-GAN", "LTVAE-GMM", "LTVAE-full"):
        line = [f"{title} (quoted)"]
        for name in names:
            line += [NOTHING, NOTHING, _quoted(title, name), NOTHING]
        lines.append(line)
    return markdown(header, lines)


def markdown_2(table: Table, runs: Sequence[dict[str, Any]]) -> str:
    """Table II: a row a configuration of NVISA."""
    lines = []
    for method in table.methods:
        mine = [run for run in runs if run["method"] == method.key]
        line = [method.group, method.title, acc(mine, "test"), quoted.TABLE_2.get(method.key, NOTHING)]
        samples = f"{_samples(mine[0])}" if mine and method.baseline is None else NOTHING
        steps = f"{_steps(mine[0]):,}" if mine and method.baseline is None else NOTHING
        lines.append([*line, samples, steps, effort(mine)])
    return markdown(["inference", "method", "MNIST", "quoted", "M", "steps", "runs"], lines)


def markdown_5(table: Table, runs: Sequence[dict[str, Any]]) -> str:
    """Fig. 5(b) as numbers: a row a setting of the annealing."""
    lines = []
    for method in table.methods:
        mine = [run for run in runs if run["method"] == method.key]
        lines.append([method.title, acc(mine, "test"), effort(mine)])
    return markdown(["setting", "MNIST", "runs"], lines)


def details(table: Table, runs: Sequence[dict[str, Any]]) -> str:
    """Every score of every row, over its seeds."""
    lines = []
    for name in dict.fromkeys(run["dataset"] for run in runs):
        for method in table.methods:
            mine = [run for run in runs if (run["dataset"], run["method"]) == (name, method.key)]
            if not mine:
                continue
            kept = [run for run in mine if "scores" in run]
            line = [DATASETS[name].title, _full_title(method), ", ".join(str(run["seed"]) for run in mine)]
            line += [f"{mine[0]['rows']['train']:,}"]
            for part in ("test", "all"):
                for key in ("acc", "nmi", "ari"):
                    line.append(mean([100 * run["scores"][part][key] for run in kept], NOTHING))
            line.append(_reasons(mine) or NOTHING)
            lines.append(line)
    header = ["data", "method", "seeds", "rows fitted", "ACC test", "NMI test", "ARI test"]
    return markdown([*header, "ACC all", "NMI all", "ARI all", "diverged"], lines)


def acc(runs: Sequence[dict[str, Any]], part: str) -> str:
    """ACC of a row's runs in per cent, or N/A with the step at which they diverged."""
    kept = [100 * run["scores"][part]["acc"] for run in runs if "scores" in run]
    lost = len(runs) - len(kept)
    if runs and not kept:
        return f"N/A ({_reasons(runs)})" if part == "test" else "N/A"
    shown = mean(kept, NOTHING)
    return f"{shown} ({lost} of {len(runs)} N/A)" if lost else shown


def mean(values: Sequence[float], nothing: str) -> str:
    """Mean and, of several values, their standard deviation."""
    if not values:
        return nothing
    return f"{np.mean(values):.2f}" + (f" ± {np.std(values):.2f}" if len(values) > 1 else "")


def effort(runs: Sequence[dict[str, Any]]) -> str:
    """Number of runs and their mean time."""
    if not runs:
        return NOTHING
    return f"{len(runs)} × {duration(float(np.mean([run['seconds'] for run in runs])))}"


def duration(seconds: float) -> str:
    """A time for a person."""
    if seconds < 60:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.1f} min" if seconds < 3600 else f"{seconds / 3600:.1f} h"


def provenance(runs: Sequence[dict[str, Any]]) -> str:
    """Machines, threads and versions of the runs."""

    def several(tell: Callable[[dict[str, Any]], str]) -> str:
        return "; ".join(dict.fromkeys(tell(run) for run in runs))

    machines = several(lambda run: f"{run['machine']}, {run['threads']} of its threads a run")
    versions = several(lambda run: ", ".join(f"{name} {number}" for name, number in run["versions"].items()))
    return f"Machine: {machines}. Versions: {versions}."


def column_title(name: str, runs: Sequence[dict[str, Any]]) -> str:
    """Name of a data set, and the backbone whose features were clustered, or that it was the pixels."""
    sources = dict.fromkeys(run["source"] for run in runs if run["dataset"] == name)
    if DATASETS[name].pixels or not sources:
        return DATASETS[name].title
    return f"{DATASETS[name].title} ({', '.join(sources)})"


def _quoted(key: str, dataset: str) -> str:
    values = quoted.TABLE_1.get(key)
    return values[quoted.COLUMNS.index(dataset)] if values else NOTHING


def _reasons(runs: Sequence[dict[str, Any]]) -> str:
    """When runs diverged: the step at the end of the epoch."""
    found = [
        f"step {(run['diverged']['epoch'] + 1) * run['steps_per_epoch']:,}"
        for run in runs
        if "diverged" in run
    ]
    return ", ".join(dict.fromkeys(found))


def _full_title(method: Method) -> str:
    return (
        f"{method.group}: {method.title}" if method.group not in ("", "NVISA", "Baseline") else method.title
    )


def _samples(run: dict[str, Any]) -> int:
    from training.config import TrainingConfig

    return TrainingConfig.model_validate(run["config"]).n_samples


def _steps(run: dict[str, Any]) -> int:
    epochs = len(run["history"]["bound"]) + ("diverged" in run)
    return epochs * int(run["steps_per_epoch"])
