"""README's tables, from the committed results: ``python benchmarks/tables.py`` writes them into README.md.

A table stands between ``<!-- table: NAME -->`` and ``<!-- end -->``, NAME being a result file's name without
its ending. ``paper`` stands for what ``nvisa-train paper --output benchmarks/results/paper`` has made, and
``starts`` for all that ``starts.py`` has. A test checks that README is up to date.
"""

from __future__ import annotations

import itertools
import json
import re
import sys
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent))  # for tests, which load this file by its path

import serving_table

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benchmarks" / "results"
README = ROOT / "README.md"
_PLACE = re.compile(r"(<!-- table: (\S+) -->\n).*?(<!-- end -->)", re.DOTALL)


def markdown(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Write a table."""
    cells = [[cell.replace("|", "\\|") for cell in line] for line in (header, *rows)]
    lines = [f"| {' | '.join(line)} |" for line in cells]
    return "\n".join([lines[0], "|---" * len(header) + "|", *lines[1:]]) + "\n"


def ablation(result: dict[str, Any]) -> str:
    """ACC of each row of an ablation."""
    rows = []
    for name in dict.fromkeys(run["row"] for run in result["runs"]):
        runs = sorted((run for run in result["runs"] if run["row"] == name), key=lambda run: run["seed"])
        values = [run["acc"] for run in runs]
        shown = ", ".join(f"{value:.3f}" for value in values)
        rows.append([name, f"{np.mean(values):.3f} ± {np.std(values):.3f}", f"{min(values):.3f}", shown])
    return markdown(["", "ACC, mean ± std", "least", "seeds 0, 1, …"], rows)


def quick(result: dict[str, Any]) -> str:
    """ACC of the quick preset's runs and of their starts, on test and on training images."""
    rows = []
    for name, key in (
        ("NVISA, test images", "acc"),
        ("its start alone, test images", "acc_of_start"),
        ("NVISA, training images", "acc_train"),
    ):
        values = [run[key] for run in result["runs"]]
        each = ", ".join(f"{value:.4f}" for value in values)
        rows.append([name, f"{np.mean(values):.4f} ± {np.std(values):.4f}", each])
    return markdown(
        ["", "ACC, mean ± std", "seeds " + ", ".join(str(r["seed"]) for r in result["runs"])], rows
    )


def selection(result: dict[str, Any]) -> str:
    """How well each label-free score ranks runs."""
    rows = [
        [name, f"{entry['spearman']:.2f}", f"{entry['acc_of_pick']:.3f}"]
        for name, entry in result["scores"].items()
    ]
    acc = result["acc"]
    rows.append([f"(all {result['runs']} runs)", "", f"mean {acc['mean']:.3f}, best {acc['best']:.3f}"])
    return markdown(["score", "Spearman with ACC", "ACC of the run it picks"], rows)


def novelty(result: dict[str, Any]) -> str:
    """AUROC of each score against each kind of strange rows."""
    kinds = list(result["auroc"]["novelty"])
    rows = [[name, *(f"{values[kind]:.3f}" for kind in kinds)] for name, values in result["auroc"].items()]
    return markdown(["AUROC", *kinds], rows)


def training(result: dict[str, Any]) -> str:
    """Time of a step beside its floor and its peers."""
    rows = []
    for name, device in result["devices"].items():
        for entry in device["cases"]:
            peers = "; ".join(f"{peer} {values['times_nvisa']}×" for peer, values in entry["peers"].items())
            step = f"{entry['step_ms']} ms, {entry['times_the_floor']}× its floor"
            rows.append([name, entry["case"], f"{entry['epsilon']}", step, peers])
    return markdown(["device", "step", "ε", "NVISA", "peers, time over NVISA's"], rows)


def restarts(result: dict[str, Any]) -> str:
    """Wall-clock time of restarts, one after the other and stacked."""
    rows = []
    for entry in result["seconds an epoch of all restarts: wall clock, processor"]:
        one_by_one, stacked = entry["sequential"][0], entry["stacked"][0]
        hidden = ", ".join(map(str, entry["hidden"]))
        ratio = f"{one_by_one / stacked:.2f} ×"
        rows.append([str(entry["threads"]), hidden, f"{one_by_one:.2f}", f"{stacked:.2f}", ratio])
    return markdown(["threads", "hidden layers", "one after the other, s", "stacked, s", "ratio"], rows)


def serving(result: dict[str, Any]) -> str:
    """Servers beside each other, and ours beside what it should be."""
    return serving_table.render(result, markdown)


KINDS: dict[str, Callable[[dict[str, Any]], str]] = {
    "ablation": ablation,
    "mnist-quick": quick,
    "contrastive-quick": quick,
    "selection": selection,
    "novelty": novelty,
    "training": training,
    "restarts": restarts,
    "serving": serving,
}


def paper() -> str:
    """The paper's tables, each of which is a folder of runs."""
    from training.paper.order import TABLES, folder_name
    from training.paper.render import load, section

    found = []
    for kind, quick in itertools.product(TABLES, (True, False)):
        if (folder := RESULTS / "paper" / folder_name(kind, quick)).is_dir():
            found.append(section(TABLES[kind](quick), load(folder)))
    return "\n".join(found) or "No runs are committed yet.\n"


def starts() -> str:
    """ACC of the mixture that each choice takes, over the embeddings of each kind."""
    rows: list[list[str]] = []
    choices: list[str] = []
    for path in sorted((RESULTS / "starts").glob("*.json")):
        result = json.loads(path.read_text())
        found = result["embeddings"]
        choices = [name for name in found[0] if name not in {"encoder", "embedding"}]
        name, *contrast = path.stem.split("-contrastive-")
        embedded = "pixels" if not contrast else "features" if "no-pixels" in contrast[0] else "both"
        cells = []
        for choice in choices:
            values = [each[choice] for each in found]
            cells.append(f"{np.mean(values):.3f} ± {np.std(values):.3f} ({min(values):.3f})")
        rows.append([name, embedded, f"{len(found)} × {result['starts']}", *cells])
    return markdown(["training images", "embedded", "embeddings × mixtures", *choices], rows)


def table(name: str) -> str:
    """Table of result file ``name``, or of all that a folder's name stands for."""
    if name in FOLDERS:
        return FOLDERS[name]()
    kind = next(kind for kind in KINDS if name.startswith(kind))
    return KINDS[kind](json.loads((RESULTS / f"{name}.json").read_text()))


FOLDERS: dict[str, Callable[[], str]] = {"paper": paper, "starts": starts}


def with_tables(readme: str) -> str:
    """Write each table into its place."""
    return _PLACE.sub(lambda found: f"{found[1]}{table(found[2])}{found[3]}", readme)


if __name__ == "__main__":
    README.write_text(with_tables(README.read_text()))
