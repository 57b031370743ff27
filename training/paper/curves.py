"""Pictures of numbers: the loss of Table II's runs (Fig. 2), and ACC by annealing settings (Fig. 5b)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import FixedLocator, NullLocator

from training.report.style import (
    ACCENT,
    FAINT,
    INK,
    MUTED,
    SECOND,
    cluster_style,
    new_figure,
    plain_axes,
    save,
    titles,
)

Runs = Mapping[str, Mapping[str, Any]]


def plot_losses(path: Path, runs: Runs) -> Path:
    """Draw the training loss, minus the bound in nats a row, over the steps (Fig. 2).

    Above are the runs that ended well: those of a Gaussian p(x|z) on the left axis, of a Bernoulli on the
    right. Below are those that diverged, up to where they did.

    Parameters
    ----------
    runs
        Results by their titles, as `training.paper.runs` writes them.
    """
    lost = any("diverged" in run for run in runs.values())
    figure = new_figure(9.4, 7.6 if lost else 5.6)
    note = "" if lost else "; no run diverged"
    titles(
        figure, "Training loss (Fig. 2)", f"minus the bound, mean of an epoch; *: with std annealing{note}"
    )
    panels = figure.subplots(2 if lost else 1, 1, squeeze=False, height_ratios=[2, 1] if lost else [1])[:, 0]
    well, ill = panels[0], panels[-1]
    right = well.twinx()
    drawn: dict[Axes, list[np.ndarray]] = {axes: [] for axes in (*panels, right)}
    for index, (title, run) in enumerate(runs.items()):
        loss = -np.asarray(run["history"]["bound"], np.float64)
        steps = run["steps_per_epoch"] * np.arange(1, len(loss) + 1)
        bernoulli = run["config"]["likelihood"] == "bernoulli"
        diverged = "diverged" in run
        axes = ill if diverged else right if bernoulli else well
        colour, _ = cluster_style(index, len(runs))
        line = (0, (4, 2)) if bernoulli else "-"
        axes.plot(steps, loss, color=colour, linestyle=line, linewidth=1.5, label=title)
        drawn[axes].append(loss)
        if diverged:
            end = (run["diverged"]["epoch"] + 1) * run["steps_per_epoch"]
            axes.axvline(end, color=colour, linewidth=1, linestyle=(0, (1, 2)))
    for axes, losses in drawn.items():
        plain_axes(axes)
        axes.grid(axis="y", color=FAINT, linewidth=0.6)
        _fit_limits(axes, losses)
    right.grid(False)
    right.spines["right"].set_visible(True)
    right.spines["right"].set_color(FAINT)
    right.set_visible(bool(drawn[right]))
    well.set_ylabel("loss, Gaussian p(x|z) (nats a row)", fontsize=10)
    right.set_ylabel("loss, Bernoulli p(x|z), dashed", fontsize=10)
    ill.set_xlabel("step", fontsize=10)
    lines = [line for axes in (well, right) for line in axes.get_lines()]
    if lines:
        well.legend(handles=lines, fontsize=8, frameon=False, labelcolor=INK, ncols=2, loc="upper right")
    if lost:
        ill.set_ylabel("loss of diverged runs", fontsize=10)
        ill.legend(fontsize=8, frameon=False, labelcolor=INK, title="dotted: diverged", title_fontsize=8)
    return save(figure, path)


def _fit_limits(axes: Axes, losses: Sequence[np.ndarray]) -> None:
    """Leave the first, steep part of the curves out of sight, and losses of thousands readable."""
    if not losses:
        return
    values = np.concatenate([loss[np.isfinite(loss)] for loss in losses])
    if not values.size:
        return
    last = np.concatenate([loss[np.isfinite(loss)][len(loss) // 10 :] for loss in losses])
    low, high = (last if last.size else values).min(), (last if last.size else values).max()
    room = 0.05 * (high - low) or 1.0
    if high - low > 20_000:
        axes.set_yscale("symlog", linthresh=1_000)
        # The scale's own ticks lie on one another in its linear part.
        axes.yaxis.set_major_locator(FixedLocator([-1e5, -1e4, -1e3, 0, 1e3, 1e4, 1e5]))
        axes.yaxis.set_minor_locator(NullLocator())
    else:
        axes.set_ylim(low - room, high + room)


def plot_settings(
    path: Path, panels: Mapping[str, Mapping[float, Sequence[float]]], usual: Mapping[str, float]
) -> Path:
    """Draw ACC against settings of the annealing (Fig. 5b): each run a dot, mean and standard deviation.

    Parameters
    ----------
    panels
        For each axis's label: from the setting's value to the ACC in [0, 1] of its runs.
    usual
        For each axis's label the value that the paper uses.
    """
    figure = new_figure(4.6 * len(panels) + 0.4, 4.6)
    counts = {len(values) for panel in panels.values() for values in panel.values()}
    n_runs = f"{min(counts)} to {max(counts)}" if len(counts) > 1 else f"{max(counts, default=0)}"
    titles(
        figure,
        "ACC by annealing settings (Fig. 5b)",
        f"{n_runs} runs a setting, test images; bars: mean ± standard deviation; blue: the usual setting",
    )
    every = [100 * value for panel in panels.values() for values in panel.values() for value in values]
    for axes, (label, panel) in zip(
        figure.subplots(1, len(panels), squeeze=False, sharey=True)[0], panels.items(), strict=True
    ):
        for place, (setting, values) in enumerate(sorted(panel.items())):
            percent = 100 * np.asarray(values)
            colour = ACCENT if setting == usual[label] else SECOND
            if percent.size:
                axes.errorbar(
                    place, percent.mean(), percent.std(), color=colour, marker="_", markersize=22, capsize=6
                )
                axes.plot(np.full(len(percent), place), percent, "o", color=colour, alpha=0.5, markersize=5)
            else:
                axes.text(place, 0.5, "N/A", transform=axes.get_xaxis_transform(), ha="center", color=MUTED)
        axes.set_xticks(range(len(panel)), [f"{setting:g}" for setting in sorted(panel)])
        axes.set_xlim(-0.6, len(panel) - 0.4)
        axes.set_xlabel(label, fontsize=10)
        plain_axes(axes)
        axes.grid(axis="y", color=FAINT, linewidth=0.6)
        if every:
            axes.set_ylim(max(0, min(every) - 5), min(100, max(every) + 5))
    figure.axes[0].set_ylabel("ACC (%)", fontsize=10)
    return save(figure, path)
