"""The paper's Figures 2 to 5(b), from the runs of Table II and of Fig. 5(b), which are made if they lack."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from training import inference
from training.checkpoint import read_json
from training.fitted import FIT_FILE, Fitted
from training.paper.annealing_settings import Setting
from training.paper.annealing_settings import settings as all_settings
from training.paper.command import UnfinishedTable, orders_of, write_table
from training.paper.crew import carry_out_all, only_one
from training.paper.curves import plot_losses, plot_settings
from training.paper.datasets import DATASETS, Rows, read
from training.paper.order import TABLES, Order
from training.paper.panels import plot_sample_panels
from training.paper.settings import PaperSettings
from training.precision import resolve_device
from training.report import plot_latent

# Rows of Table II in the panels' order in the paper.
SAMPLED = ("enum", "vimco-1000", "enum-annealed", "vimco-annealed")
EMBEDDED = ("vimco-annealed", "vimco-mean-field-annealed", "enum", "enum-annealed")
PER_CLUSTER = 10
# Points of Fig. 4, encoded rows and samples together; t-SNE of the paper's 20,000 takes many minutes.
POINTS, QUICK_POINTS = 20_000, 3_000

Say = Callable[[str], None]


def draw_figures(settings: PaperSettings, say: Say) -> list[Path]:
    """Draw the figures into ``settings.output / "figures"`` (``figures-quick``); returns the pictures.

    Figures 2 to 4 are of the first seed's runs of Table II, Fig. 5(b) of all seeds of its own runs. Runs that
    are not there yet are carried out first.

    Raises
    ------
    ValueError
        If methods or other data sets than MNIST are asked for, or as for `training.paper.command.make_table`.
    UnfinishedTable
        If runs failed.
    """
    if settings.methods is not None or settings.datasets not in (None, ["mnist"]):
        raise ValueError("figures are of MNIST and of fixed methods: leave --methods and --datasets away")
    second = orders_of(settings, "table2", say)
    first = second[0].seed
    second = [order for order in second if order.seed == first and order.job.method.baseline is None]
    fifth = orders_of(settings, "figure5", say)
    failures = []
    for orders in (second, fifth):
        orders[0].folder.mkdir(parents=True, exist_ok=True)
        with only_one(orders[0].folder):
            failures += carry_out_all(orders, settings.jobs, say)
            write_table(TABLES[orders[0].table](settings.quick), settings.output)
    if failures:
        raise UnfinishedTable(f"runs failed, and are tried again next time: {'; '.join(failures)}")
    folder = settings.output / ("figures-quick" if settings.quick else "figures")
    by_key = {order.method: order for order in second}
    rows = read(DATASETS["mnist"], settings.data)
    return [
        _figure_2(folder / "figure-2-loss.png", second),
        _figure_3(folder / "figure-3-samples.png", by_key),
        *_figure_4(folder, by_key, rows, QUICK_POINTS if settings.quick else POINTS, say),
        _figure_5(folder / "figure-5b-annealing.png", settings.quick, fifth),
    ]


def _figure_2(path: Path, orders: list[Order]) -> Path:
    runs = {_title(order): read_json(order.result) for order in orders}
    return plot_losses(path, runs)


def _figure_3(path: Path, orders: dict[str, Order]) -> Path:
    panels: dict[str, np.ndarray | str] = {}
    for letter, key in zip("abcd", SAMPLED, strict=True):
        fitted = _model(orders[key])
        name = f"({letter}) {_title(orders[key])}"
        if isinstance(fitted, str):
            panels[name] = fitted
            continue
        y = np.repeat(np.arange(fitted.config.n_clusters), PER_CLUSTER)
        z = inference.sample_prior(fitted.model, y, orders[key].seed)
        tiles = inference.decode(fitted.model, z)
        panels[name] = tiles.reshape(-1, PER_CLUSTER, *fitted.spec.shape)
    return plot_sample_panels(path, panels)


def _figure_4(folder: Path, orders: dict[str, Order], rows: Rows, points: int, say: Say) -> list[Path]:
    pictures = []
    for letter, key in zip("abcd", EMBEDDED, strict=True):
        order = orders[key]
        fitted = _model(order)
        if isinstance(fitted, str):
            say(f"figure 4 ({letter}), {_title(order)}: left out, {fitted}")
            continue
        model, n_clusters = fitted.model, fitted.config.n_clusters
        clusters = inference.probabilities(model, rows.test).argmax(1)
        y = np.random.default_rng(order.seed).integers(n_clusters, size=len(rows.test))
        say(f"figure 4 ({letter}): t-SNE of {points:,} points")
        pictures.append(
            plot_latent(
                folder / f"figure-4{letter}-{key}.png",
                inference.sample_aggregate(model, rows.test, order.seed),
                clusters,
                inference.sample_prior(model, y, order.seed),
                y,
                acc=_acc(read_json(order.result)),
                seed=order.seed,
                n_clusters=n_clusters,
                max_points=points,
                title=f"Fig. 4 ({letter}): {_title(order)}",
            )
        )
    return pictures


def _figure_5(path: Path, quick: bool, orders: list[Order]) -> Path:
    found: dict[str, list[float]] = {}
    for order in orders:
        value = _acc(read_json(order.result))
        found.setdefault(order.method, []).extend([] if value is None else [value])
    firsts, everies = all_settings(quick)

    def panel(chosen: list[Setting], value: Callable[[Setting], float]) -> dict[float, list[float]]:
        return {value(setting): found.get(setting.key, []) for setting in chosen}

    usual = next(setting for setting in firsts if setting in everies)
    first, every = "first ε", "epochs between halvings of ε"
    return plot_settings(
        path,
        {first: panel(firsts, lambda s: s.first), every: panel(everies, lambda s: s.every)},
        {first: usual.first, every: usual.every},
    )


def _model(order: Order) -> Fitted | str:
    """The fitted model of a run, or why there is none."""
    if "diverged" in read_json(order.result):
        return "N/A: diverged"
    if not (order.model / FIT_FILE).exists():
        return f"no model in {order.model}: move {order.result} away to fit it again"
    return Fitted.load(order.model, resolve_device(order.device))


def _acc(run: dict[str, Any]) -> float | None:
    return float(run["scores"]["test"]["acc"]) if "scores" in run else None


def _title(order: Order) -> str:
    method = order.job.method
    return f"{method.group}, {method.title}".replace("\\", "")
