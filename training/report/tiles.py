"""Rows of tiles: what each cluster looks like, as the model draws it and as the data has it (Fig. 3)."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import to_rgb

from training.report.profiles import plot_profiles
from training.report.style import EMPTY, FAINT, INK, MUTED, new_figure, save, titles

MAX_CLUSTERS = 100
_TILE_INCHES = 0.52


def typical_rows(
    clusters: np.ndarray,
    confidences: np.ndarray,
    typicality: np.ndarray,
    per: int,
    n_clusters: int | None = None,
) -> np.ndarray:
    """Pick the most typical rows of each cluster.

    Parameters
    ----------
    clusters
        Assigned cluster of each row ``(n,)``, integers from 0.
    confidences
        Probability of the assigned cluster ``(n,)``; breaks ties of ``typicality``.
    typicality
        How typical a row is ``(n,)``, higher is more, in any unit: log p(x) or the bound, say. A row whose
        value is not finite is taken last.
    per
        Number of rows wanted per cluster.
    n_clusters
        Number of clusters; by default the largest id plus one, which leaves out empty clusters at the end.

    Returns
    -------
    ndarray
        int64 ``(n_clusters, per)``: indices into the rows, most typical first, -1 where a cluster has no
        more.
    """
    clusters = np.asarray(clusters)
    if n_clusters is None:
        n_clusters = int(clusters.max()) + 1 if len(clusters) else 0
    typicality = np.where(np.isfinite(typicality), typicality, -np.inf)
    order = np.lexsort((-np.asarray(confidences), -typicality, clusters))
    edges = np.searchsorted(clusters[order], np.arange(n_clusters + 1))
    picked = np.full((n_clusters, per), -1, np.int64)
    for index, (start, stop) in enumerate(itertools.pairwise(edges)):
        best = order[start:stop][:per]
        picked[index, : len(best)] = best
    return picked


def plot_samples(path: Path, samples: np.ndarray, image: bool, names: Sequence[str] = ()) -> Path:
    """Draw rows the model generates for each cluster by ancestral sampling, z ~ p(z|y), x ~ p(x|z).

    Parameters
    ----------
    path
        PNG file to write.
    samples
        ``(n_clusters, per, *row_shape)``. Images are ``(height, width)`` or ``(height, width, channels)``
        with 1 or 3 channels; uint8, or floats of any range.
    image
        Tiles if true, one row per cluster; else a heat map of each cluster's mean profile.
    names
        Names of the features, for the heat map.

    Raises
    ------
    ValueError
        If the array has another shape than this.
    """
    samples = np.asarray(samples)
    title = "Generated samples per cluster"
    if not image:
        return plot_profiles(path, samples, None, title, names)
    return _plot_tiles(path, samples, None, title, "z drawn from p(z|y), then the mean of p(x|z)")


def plot_typical(
    path: Path, rows: np.ndarray, image: bool, sizes: np.ndarray, names: Sequence[str] = ()
) -> Path:
    """Draw the most typical training rows of each cluster.

    Parameters
    ----------
    path
        PNG file to write.
    rows
        ``(n_clusters, per, *row_shape)``, most typical first, as `typical_rows` picks them; where a cluster
        has fewer than ``per`` rows the rest is not drawn, whatever it holds.
    image
        Tiles if true; else a heat map of the mean of these rows.
    sizes
        Number of training rows in each cluster ``(n_clusters,)``.
    names
        Names of the features, for the heat map.

    Raises
    ------
    ValueError
        If ``rows`` has another shape than this.
    """
    rows, sizes = np.asarray(rows), np.asarray(sizes)
    title = "Most typical training rows per cluster"
    if not image:
        return plot_profiles(path, rows, sizes, title, names)
    return _plot_tiles(path, rows, sizes, title, "most typical first; in brackets the rows in the cluster")


def _plot_tiles(path: Path, tiles: np.ndarray, sizes: np.ndarray | None, title: str, note: str) -> Path:
    if tiles.ndim not in (4, 5) or 0 in tiles.shape or tiles.shape[4:] not in ((), (1,), (3,)):
        raise ValueError(
            "image tiles must have shape (clusters, per, height, width) or (..., 1 or 3 channels), "
            f"got {tiles.shape}"
        )
    n_clusters, per = tiles.shape[:2]
    shown = min(n_clusters, MAX_CLUSTERS)
    if shown < n_clusters:
        note += f"; clusters 0 to {shown - 1} of {n_clusters}"
    n_blocks = int(np.searchsorted((12, 30, 60), shown)) + 1
    # More blocks side by side leave room for fewer tiles in each.
    per = min(per, (14, 10, 8, 7)[n_blocks - 1])
    filled = np.full(shown, per) if sizes is None else np.minimum(sizes[:shown], per)
    pixels = _to_rgb(tiles[:shown, :per], filled)

    rows_per_block = -(-shown // n_blocks)
    aspect = float(np.clip(tiles.shape[3] / tiles.shape[2], 0.25, 4))
    block_width = per * _TILE_INCHES * aspect + (1.15 if sizes is not None else 0.85)
    width = max(n_blocks * block_width + 0.3, 6.4)
    figure = new_figure(width, rows_per_block * _TILE_INCHES + 0.85)
    titles(figure, title, note)
    blocks = figure.subplots(1, n_blocks, squeeze=False)[0]
    for block, axes in enumerate(blocks):
        ids = np.arange(block * rows_per_block, min((block + 1) * rows_per_block, shown))
        _draw_block(axes, pixels, filled, ids, rows_per_block, aspect)
        labels = [f"{i}" if sizes is None else f"{i}  ({sizes[i]:,})" for i in ids]
        axes.set_yticks(np.arange(len(ids)) + 0.5, labels)
    blocks[0].set_ylabel("cluster", fontsize=10, color=INK)
    return save(figure, path)


def _draw_block(
    axes: Axes, pixels: np.ndarray, filled: np.ndarray, ids: np.ndarray, n_rows: int, aspect: float
) -> None:
    """Lay the tiles of clusters ``ids`` on one canvas: a tile is one unit high, ``aspect`` units wide."""
    per, height, width = pixels.shape[1:4]
    gap = max(1, round(height * 0.06))
    canvas = np.ones((n_rows * (height + gap), per * (width + gap), 3), np.float32)
    for row, index in enumerate(ids):
        for column in range(per):
            top, left = row * (height + gap), column * (width + gap)
            canvas[top : top + height, left : left + width] = (
                pixels[index, column] if column < filled[index] else to_rgb(EMPTY)
            )
        if filled[index] == 0:
            middle = aspect * width / (width + gap) / 2
            axes.text(middle, row + 0.47, "empty", fontsize=7, color=MUTED, ha="center", va="center")
    axes.imshow(canvas, extent=(0, per * aspect, n_rows, 0), interpolation="nearest", aspect="equal")
    axes.set_anchor("W")
    axes.set_xticks([])
    axes.spines[:].set_visible(False)
    axes.tick_params(length=0, labelsize=9, colors=INK)


def _to_rgb(tiles: np.ndarray, filled: np.ndarray) -> np.ndarray:
    """Bring tiles to float32 RGB in [0, 1], on one scale for the whole picture.

    Colour bytes are taken as they are. Anything else is stretched from its smallest (bytes: 0) to its
    largest value among the tiles that are drawn, so that data in 0..16 or in [0, 1] shows as well; what is
    not finite turns to the colour of nothing.
    """
    drawn = tiles[np.arange(tiles.shape[1]) < filled[:, None]]
    colour = tiles.ndim == 5 and tiles.shape[-1] == 3
    is_bytes = tiles.dtype == np.uint8
    finite = drawn[np.isfinite(drawn)]
    low = 0.0 if is_bytes or not finite.size else float(finite.min())
    high = 255.0 if is_bytes and colour else float(finite.max()) if finite.size else 1.0
    scaled = (tiles.astype(np.float32) - low) / max(high - low, 1e-12)
    if tiles.ndim == 4:
        scaled = scaled[..., None]
    pixels = np.broadcast_to(scaled, (*scaled.shape[:4], 3))
    return np.where(np.isfinite(pixels), np.clip(pixels, 0, 1), np.asarray(to_rgb(FAINT), np.float32))
