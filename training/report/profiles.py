"""A heat map of clusters by features: how each cluster's mean differs from the others'."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from training.report.style import EMPTY, INK, MUTED, new_figure, plain_axes, save, titles

_LIMIT = 3.0


def plot_profiles(
    path: Path, rows: np.ndarray, sizes: np.ndarray | None, title: str, names: Sequence[str] = ()
) -> Path:
    """Draw the mean profile of each cluster, feature by feature, in standard deviations of the rows shown.

    Parameters
    ----------
    path
        PNG file to write.
    rows
        ``(n_clusters, per, *row_shape)``; further axes are laid out in a line.
    sizes
        Rows that count in each cluster ``(n_clusters,)``; the rest of the ``per`` is left out, and a cluster
        without any is marked as empty. ``None``: all count.
    title
        Title of the picture.
    names
        Names of the features, if they have any; shown if there is room, up to 40.

    Raises
    ------
    ValueError
        If ``rows`` has fewer than three axes or one of them is empty.
    """
    if rows.ndim < 3 or 0 in rows.shape:
        raise ValueError(f"feature rows must have shape (clusters, per, features), got {rows.shape}")
    n_clusters, per = rows.shape[:2]
    profiles = relative_profiles(rows, sizes)
    n_features = profiles.shape[1]

    width = float(np.clip(2.2 + 0.3 * n_features, 6.4, 12))
    figure = new_figure(width, float(np.clip(1.7 + 0.3 * n_clusters, 2.8, 14)))
    count = per if sizes is None else f"up to {per}"
    titles(
        figure, title, f"mean of {count} rows per cluster, beside the mean over all clusters; grey: no value"
    )
    axes = figure.add_subplot()
    axes.set_facecolor(EMPTY)
    picture = axes.imshow(
        profiles, cmap="RdBu_r", vmin=-_LIMIT, vmax=_LIMIT, aspect="auto", interpolation="nearest"
    )
    plain_axes(axes)
    axes.spines[:].set_visible(False)
    axes.set_xlabel("feature (column of the data)", fontsize=10)
    axes.set_ylabel("cluster", fontsize=10)
    step = next(step for step in (1, 2, 5, 10, 10**9) if n_clusters <= 40 * step)
    axes.set_yticks(np.arange(0, n_clusters, step))
    if n_features <= 40:
        axes.set_xticks(np.arange(n_features))
        if names:
            short = [name if len(name) <= 24 else f"{name[:23]}…" for name in names]
            axes.set_xticklabels(short, rotation=45, ha="right", rotation_mode="anchor", parse_math=False)
            axes.set_xlabel("")
    for index in np.flatnonzero(np.isnan(profiles).all(axis=1)):
        label = "empty" if sizes is not None and sizes[index] == 0 else "no finite value"
        axes.text(0, float(index), label, fontsize=8, color=MUTED, va="center", style="italic")
    bar = figure.colorbar(
        picture, ax=axes, extend="both", pad=0.02, fraction=0.05, aspect=20 if n_clusters <= 30 else 40
    )
    bar.set_label("difference from the mean\n(standard deviations)", fontsize=9, color=INK)
    bar.ax.tick_params(labelsize=8, colors=MUTED)
    bar.outline.set_visible(False)
    return save(figure, path)


def relative_profiles(rows: np.ndarray, sizes: np.ndarray | None) -> np.ndarray:
    """Mean of each cluster less the mean over clusters, over the standard deviation of all rows that count.

    Parameters
    ----------
    rows
        ``(n_clusters, per, *row_shape)``.
    sizes
        Rows that count in each cluster ``(n_clusters,)``, or ``None`` for all.

    Returns
    -------
    ndarray
        float64 ``(n_clusters, n_features)``; NaN where a cluster has no finite value, 0 where a feature
        does not vary.
    """
    n_clusters, per = rows.shape[:2]
    flat = rows.reshape(n_clusters, per, -1).astype(np.float64)
    counts = np.isfinite(flat)
    if sizes is not None:
        counts &= (np.arange(per) < np.asarray(sizes)[:, None])[..., None]
    values = np.where(counts, flat, 0.0)
    with np.errstate(invalid="ignore", divide="ignore"):
        means = values.sum(1) / counts.sum(1)
        overall = np.nansum(means, 0) / np.isfinite(means).sum(0)
        grand = values.sum((0, 1)) / counts.sum((0, 1))
        spread = np.sqrt((np.where(counts, flat - grand, 0.0) ** 2).sum((0, 1)) / counts.sum((0, 1)))
        relative = (means - overall) / spread
    flat_feature = ~(spread > 1e-12 * np.maximum(1, np.abs(grand)))
    return np.where(np.isfinite(means) & flat_feature, 0.0, relative)
