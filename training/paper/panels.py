"""Samples of several models side by side (Fig. 3)."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np

from training.report.style import INK, MUTED, new_figure, save, titles


def plot_sample_panels(path: Path, models: Mapping[str, np.ndarray | str]) -> Path:
    """Draw each model's samples as a panel: a row of tiles for each cluster.

    Parameters
    ----------
    models
        By title: uint8 images ``(n_clusters, per, height, width)``, or why there are none.
    """
    figure = new_figure(4.2 * len(models) + 0.2, 4.9)
    titles(
        figure,
        "Generated samples (Fig. 3)",
        "a row a cluster: z drawn from p(z|y), then the mean of p(x|z)",
    )
    for axes, (title, tiles) in zip(
        figure.subplots(1, len(models), squeeze=False)[0], models.items(), strict=True
    ):
        axes.set_title(title, fontsize=10, color=INK, loc="left")
        axes.spines[:].set_visible(False)
        axes.set_xticks([])
        if isinstance(tiles, str):
            axes.text(0.5, 0.5, tiles, transform=axes.transAxes, ha="center", color=MUTED)
            axes.set_yticks([])
            continue
        n_clusters, per, height, width = tiles.shape
        canvas = tiles.transpose(0, 2, 1, 3).reshape(n_clusters * height, per * width)
        axes.imshow(canvas, cmap="gray", vmin=0, vmax=255, interpolation="nearest")
        axes.set_yticks((np.arange(n_clusters) + 0.5) * height - 0.5, [str(i) for i in range(n_clusters)])
        axes.tick_params(colors=MUTED, labelsize=8, length=0)
    return save(figure, path)
