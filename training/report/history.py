"""Curves of a fit over its epochs: the bound, the floor of the std (ε), the learning rate (Fig. 2)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter

from training.report.style import ACCENT, FAINT, INK, MUTED, SECOND, new_figure, plain_axes, save, titles

History = Sequence[Mapping[str, Any]]

_OTHER = "#b3bcc6"


def plot_history(path: Path, history: History | Sequence[History], chosen: int = 0) -> Path:
    """Draw bound, ε and learning rate over the epochs of one fit, or of several restarts.

    Parameters
    ----------
    path
        PNG file to write.
    history
        One dict per epoch with ``epoch``, ``bound`` (nats per row), ``epsilon_x``, ``epsilon_z``,
        ``learning_rate`` and ``seconds``; a missing or null value leaves a gap. Or a list of such lists,
        one per restart.
    chosen
        Which restart is drawn in colour; the others are grey, and only in the panel of the bound.

    Raises
    ------
    ValueError
        If there is no restart ``chosen``.
    """
    runs = [history] if not history or isinstance(history[0], Mapping) else list(history)
    if not 0 <= chosen < len(runs):
        raise ValueError(f"there is no restart {chosen}, only 0 to {len(runs) - 1}")
    run: History = runs[chosen]  # type: ignore[assignment]
    others: list[History] = [r for i, r in enumerate(runs) if i != chosen]  # type: ignore[misc]

    figure = new_figure(8.2, 7.4)
    titles(figure, "Training history", _note(run, chosen, len(runs)))
    top, middle, bottom = figure.subplots(3, 1, sharex=True, height_ratios=[2.4, 1, 1])
    _draw_bound(top, run, others, chosen)
    for axes, name, keys in (
        (middle, "floor of the std, ε", ("epsilon_x", "epsilon_z")),
        (bottom, "learning rate", ("learning_rate",)),
    ):
        _draw_schedule(axes, run, keys)
        axes.set_ylabel(name, fontsize=10)
    for axes in (top, middle, bottom):
        plain_axes(axes)
        axes.grid(axis="y", color=FAINT, linewidth=0.6)
        axes.set_axisbelow(True)
        for stage in _stage_starts(run):
            axes.axvline(stage, color=FAINT, linewidth=0.9, linestyle=(0, (4, 3)), zorder=0)
        if not run:
            axes.text(0.5, 0.5, "no epochs", transform=axes.transAxes, ha="center", color=MUTED)
            axes.set(xticks=[], yticks=[])
    if 0 < len(run) < 3:
        bottom.set_xlim(_column(run, "epoch")[0] - 1, _column(run, "epoch")[-1] + 1)
    bottom.set_xlabel("epoch", fontsize=10)
    if run:
        bottom.xaxis.set_major_locator(MaxNLocator(integer=True))
    figure.align_ylabels()
    return save(figure, path)


def readable_range(values: np.ndarray) -> tuple[float, float] | None:
    """Limits between which a curve can be read, or ``None`` if all of it can.

    The first epochs, or a divergence, may lie orders of magnitude away from the rest and would flatten it.
    If the whole range is more than four times that of the middle 90 % of the values, the limits are those
    of the middle with a margin; the caller says what lies outside.
    """
    finite = values[np.isfinite(values)]
    if len(finite) < 5:
        return None
    low, high = np.quantile(finite, [0.05, 0.95])
    if high <= low or np.ptp(finite) <= 4 * (high - low):
        return None
    margin = 0.25 * (high - low)
    return float(max(low - margin, finite.min() - margin)), float(min(high + margin, finite.max() + margin))


def _linear_threshold(values: np.ndarray) -> float | None:
    """Where a symmetric logarithmic axis turns linear, for a fit that diverged; ``None`` for all others.

    No pair of linear limits shows a tenth of the epochs and more that lie a thousand times beyond the rest.
    """
    sizes = np.abs(values[np.isfinite(values)])
    if len(sizes) < 5:
        return None
    middle, high = np.quantile(sizes, [0.5, 0.9])
    return float(middle) if high > 1000 * middle > 0 else None


def _draw_bound(axes: Axes, run: History, others: list[History], chosen: int) -> None:
    for other in others:
        axes.plot(_column(other, "epoch"), _column(other, "bound"), color=_OTHER, linewidth=0.9, zorder=1)
    epochs, bound = _column(run, "epoch"), _column(run, "bound")
    label = "bound" if not others else f"restart {chosen}, the one chosen"
    axes.plot(
        epochs, bound, color=ACCENT, linewidth=1.8, marker=_marker(run), markersize=4, label=label, zorder=3
    )
    axes.set_ylabel("bound (nats per row)", fontsize=10)
    if others:
        axes.plot([], [], color=_OTHER, label="other restarts")
        axes.legend(fontsize=8, frameon=False, loc="lower right", labelcolor=INK)
    everything = np.concatenate([bound, *(_column(other, "bound") for other in others)])
    limits = readable_range(everything)
    if (threshold := _linear_threshold(everything)) is not None:
        axes.set_yscale("symlog", linthresh=threshold)
    elif limits is not None:
        axes.set_ylim(*limits)
        _mark_outside(axes, epochs, bound, limits)
    lost = ~np.isfinite(bound)
    if lost.any():
        # At the foot of the panel, since there is no value to place them at.
        axes.plot(
            epochs[lost],
            np.full(lost.sum(), 0.02),
            "x",
            color=SECOND,
            transform=axes.get_xaxis_transform(),
            clip_on=False,
        )
        axes.set_title(f"× no finite bound: {lost.sum()} epochs", fontsize=9, color=SECOND, loc="right")


def _mark_outside(axes: Axes, epochs: np.ndarray, bound: np.ndarray, limits: tuple[float, float]) -> None:
    """Say how many epochs the limits cut off, and how far they go."""
    for marker, outside, extreme, height in (
        ("v", bound < limits[0], np.nanmin, 0.03),
        ("^", bound > limits[1], np.nanmax, 0.97),
    ):
        if outside.any():
            foot = np.full(outside.sum(), height)
            axes.plot(
                epochs[outside],
                foot,
                marker,
                color=ACCENT,
                markersize=5,
                transform=axes.get_xaxis_transform(),
            )
            late = epochs[outside].mean() > np.mean(axes.get_xlim())
            word = "below" if marker == "v" else "above"
            axes.annotate(
                f"{outside.sum()} epochs {word} the axis, to {_number(extreme(bound[outside]))}",
                (epochs[outside][0 if late else -1], height),
                xycoords=axes.get_xaxis_transform(),
                xytext=(-8 if late else 8, 0),
                textcoords="offset points",
                ha="right" if late else "left",
                fontsize=8,
                color=MUTED,
                va="center",
            )


def _draw_schedule(axes: Axes, run: History, keys: tuple[str, ...]) -> None:
    epochs = _column(run, "epoch")
    for key, colour, line in zip(keys, (ACCENT, SECOND), ("-", (0, (3, 2))), strict=False):
        values = _column(run, key)
        values[~(values > 0)] = np.nan  # a logarithmic axis has no place for zero
        if np.isfinite(values).any():
            axes.set_yscale("log")
            name = {"epsilon_x": "ε of p(x|z)", "epsilon_z": "ε of q(z|y,x)"}.get(key, key)
            axes.plot(
                epochs,
                values,
                color=colour,
                linestyle=line,
                drawstyle="steps-post",
                marker=_marker(run),
                markersize=4,
                label=name,
            )
    _label_decades(axes)
    if run and not axes.lines:
        axes.text(0.5, 0.5, "zero throughout", transform=axes.transAxes, ha="center", color=MUTED)
        axes.set_yticks([])
    elif len(axes.lines) > 1:
        axes.legend(fontsize=8, frameon=False, loc="upper right", labelcolor=INK)


def _label_decades(axes: Axes) -> None:
    """Label a logarithmic axis in plain numbers, at 1, 2 and 5 too if it spans little more than a decade."""
    values = np.concatenate(
        [np.asarray(line.get_ydata(), np.float64) for line in axes.lines] or [np.empty(0)]
    )
    values = values[np.isfinite(values)]
    if not values.size:
        return
    low, high = values.min() / 1.5, values.max() * 1.5
    axes.set_ylim(low, high)
    axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5) if high < 60 * low else (1,)))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.yaxis.set_minor_formatter(NullFormatter())


def _number(value: float) -> str:
    return (f"{value:,.0f}" if 1 <= abs(value) < 1e6 else f"{value:.2g}").replace("-", "−")


def _column(run: History, key: str) -> np.ndarray:
    """One value per epoch as float64; NaN where it is missing, null or infinite."""
    values = np.array([np.nan if (v := epoch.get(key)) is None else float(v) for epoch in run], np.float64)
    return np.where(np.isfinite(values), values, np.nan)


def _stage_starts(run: History) -> np.ndarray:
    """Epochs at which ε changed; none if it changes so often that lines would hide the curves."""
    changes = np.zeros(max(len(run) - 1, 0), bool)
    for key in ("epsilon_x", "epsilon_z"):
        values = _column(run, key)
        changes |= (values[1:] != values[:-1]) & np.isfinite(values[1:]) & np.isfinite(values[:-1])
    starts = _column(run, "epoch")[1:][changes]
    return starts if len(starts) <= 40 else starts[:0]


def _marker(run: History) -> str:
    return "o" if len(run) < 3 else ""


def _note(run: History, chosen: int, n_runs: int) -> str:
    seconds = float(np.nansum(_column(run, "seconds")))
    hours, rest = divmod(round(seconds), 3600)
    time = f"{hours} h {rest // 60} min" if hours else f"{rest // 60} min {rest % 60} s"
    text = f"{len(run):,} epochs in {time}" if len(run) != 1 else f"1 epoch in {time}"
    text += f"; restart {chosen} chosen of {n_runs}" if n_runs > 1 else ""
    return text + ("; dashed lines: ε changes" if len(_stage_starts(run)) else "")
