"""Three criteria of the number of clusters over K, beside those of a Gaussian cloud."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator

from training.report.style import ACCENT, FAINT, INK, MUTED, SECOND, new_figure, plain_axes, save, titles

_PANELS = (
    ("bic", "BIC above its least,\nper row", "lower is better"),
    ("silhouette", "silhouette", "higher is better"),
    (
        "stability",
        "stability (ARI between\nhalves of the rows)",
        "higher is better; the last K before it falls",
    ),
)


def plot_cluster_count(
    path: Path, measures: Mapping[str, Sequence[float]], chosen: Mapping[str, int], n_rows: int, title: str
) -> Path:
    """Draw BIC, silhouette and stability over K.

    Parameters
    ----------
    path
        PNG file to write.
    measures
        Columns of equal length: ``k``, ``bic``, ``silhouette``, ``stability``, ``stability_std``,
        ``cloud_silhouette``, ``cloud_stability``; NaN leaves a gap.
    chosen
        The K that each criterion chooses, which is circled; empty if none is worth it.
    n_rows
        Rows that were measured.
    title
        Title of the picture.
    """
    columns = {name: np.asarray(values, np.float64) for name, values in measures.items()}
    columns["bic"] = (columns["bic"] - np.nanmin(columns["bic"])) / n_rows
    figure = new_figure(7.6, 8.0)
    titles(figure, title, f"{n_rows:,} rows" + ("; circled: the K each criterion chooses" if chosen else ""))
    for axes, (name, label, hint) in zip(figure.subplots(3, 1, sharex=True), _PANELS, strict=True):
        _draw(axes, columns, name, chosen.get(name))
        plain_axes(axes)
        axes.grid(axis="y", color=FAINT, linewidth=0.6)
        axes.set_axisbelow(True)
        axes.set_ylabel(label, fontsize=10)
        axes.set_title(hint, fontsize=8, color=MUTED, loc="right")
    axes.set_xlabel("number of clusters K", fontsize=10)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    if len(columns["k"]) == 1:
        axes.set_xlim(columns["k"][0] - 1, columns["k"][0] + 1)
    figure.align_ylabels()
    return save(figure, path)


def _draw(axes: Axes, columns: Mapping[str, np.ndarray], name: str, chosen: int | None) -> None:
    k, values = columns["k"], columns[name]
    axes.plot(k, values, color=ACCENT, linewidth=1.8, marker="o", markersize=4, label="these rows", zorder=3)
    if name == "stability":
        std = columns["stability_std"]
        low, high = np.clip((values - std, values + std), -1, 1)
        axes.fill_between(k, low, high, color=ACCENT, alpha=0.15, linewidth=0, zorder=2)
    cloud = columns.get(f"cloud_{name}")
    if cloud is not None:
        axes.plot(
            k, cloud, color=MUTED, linewidth=1.2, linestyle=(0, (4, 3)), label="a single Gaussian cloud"
        )
    if name == "silhouette":
        axes.legend(fontsize=8, frameon=False, labelcolor=INK)
    axes.margins(y=0.22)
    if chosen is None:
        return
    at = int(np.flatnonzero(k == chosen)[0])
    axes.plot(
        k[at],
        values[at],
        marker="o",
        markersize=12,
        color="none",
        markeredgecolor=SECOND,
        markeredgewidth=1.8,
    )
    axes.annotate(
        f"K = {chosen}",
        (k[at], values[at]),
        xytext=(0, -20 if name == "bic" else 11),
        textcoords="offset points",
        ha="center",
        fontsize=9,
        color=SECOND,
    )
