"""The latent space in the plane by t-SNE: encoded rows beside samples from the prior (Fig. 4)."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.patheffects import withStroke

from training.report.style import FAINT, INK, MUTED, cluster_style, new_figure, save, titles


def plot_latent(
    path: Path,
    latent: np.ndarray,
    clusters: np.ndarray,
    prior: np.ndarray | None = None,
    prior_clusters: np.ndarray | None = None,
    acc: float | None = None,
    seed: int = 0,
    *,
    n_clusters: int | None = None,
    max_points: int = 2000,
    title: str = "Latent space by t-SNE",
) -> Path:
    """Draw encoded z, coloured by assigned cluster, beside z drawn from the prior, coloured by component.

    Both are reduced together, so that their places can be compared.

    Parameters
    ----------
    path
        PNG file to write.
    latent, clusters
        Encoded z ``(n, n_latent)`` and the assigned clusters ``(n,)``.
    prior, prior_clusters
        z ~ p(z|y) ``(m, n_latent)`` and their y ``(m,)``; both or neither.
    acc
        Accuracy in [0, 1] for the title, where labels are known.
    seed
        Of the subsample and of t-SNE; the picture is a function of the arrays and the seed.
    n_clusters
        Number of clusters, so that colours stay the same when the last ones are empty; by default the
        largest id plus one.
    max_points
        Rows reduced at most, both kinds together; t-SNE of 2,000 takes seconds, of 20,000 minutes. If there
        are more, a random part of each is taken.
    title
        Above the picture.

    Raises
    ------
    ValueError
        If only one of ``prior`` and ``prior_clusters`` is given, or shapes do not fit each other.
    """
    if (prior is None) != (prior_clusters is None):
        raise ValueError("prior and prior_clusters go together: pass both or neither")
    generator = np.random.default_rng(seed)
    sides = [("Encoded rows, z ~ q(z|y,x)", *_checked("latent", latent, clusters))]
    if prior is not None and prior_clusters is not None:
        sides.append(("Samples from the prior, z ~ p(z|y)", *_checked("prior", prior, prior_clusters)))
        if sides[0][1].shape[1] != sides[1][1].shape[1]:
            raise ValueError(f"latent and prior differ in width: {latent.shape} and {prior.shape}")
    share = max_points // len(sides)
    chosen = [_subsample(z, ids, share, generator) for _, z, ids in sides]
    plane = reduce_to_plane(np.concatenate([z for z, _ in chosen]), seed)
    ids = np.concatenate([ids for _, ids in chosen])
    n_clusters = n_clusters or int(ids.max(initial=-1)) + 1

    figure = new_figure(5.6 * len(sides) + 0.4, 5.9)
    notes = [] if acc is None else [f"accuracy {100 * acc:.2f} %"]
    dropped = sum(int((~np.isfinite(z).all(1)).sum()) for _, z, _ in sides)
    notes += [f"{dropped:,} rows with values that are not finite left out"] if dropped else []
    notes.append("numbers: cluster ids, at the median of their rows; t-SNE axes have no unit")
    titles(figure, title, "; ".join(notes))
    panels = figure.subplots(1, len(sides), squeeze=False, sharex=True, sharey=True)[0]
    start = 0
    for axes, (name, every, _), (z, side_ids) in zip(panels, sides, chosen, strict=True):
        _scatter(axes, plane[start : start + len(z)], side_ids, n_clusters)
        count = f"{len(z):,} of {len(every):,}" if len(z) < len(every) else f"{len(z):,}"
        axes.set_title(f"{name}  ({count})", fontsize=10, color=INK, loc="left")
        start += len(z)
    return save(figure, path)


def reduce_to_plane(z: np.ndarray, seed: int) -> np.ndarray:
    """Reduce ``(n, n_latent)`` to ``(n, 2)`` by t-SNE, started from the principal components.

    With fewer than five rows, or rows that are all equal, there is nothing to embed: the first two columns
    are returned as they are.
    """
    from sklearn.manifold import TSNE
    from threadpoolctl import threadpool_limits  # type: ignore[import-untyped]

    z = np.asarray(z, np.float64)
    if len(z) < 5 or not np.ptp(z, axis=0).any():
        padded = np.zeros((len(z), 2))
        padded[:, : min(2, z.shape[1])] = z[:, :2]
        return padded
    perplexity = min(30.0, (len(z) - 1) / 3)
    # One latent dimension has no second principal component.
    start = "pca" if z.shape[1] > 1 else "random"
    tsne = TSNE(perplexity=perplexity, init=start, random_state=seed, max_iter=750)
    # With a core taken by someone else, t-SNE's threads wait for one another: one thread is several times
    # as fast then, and little slower otherwise.
    with threadpool_limits(1, user_api="openmp"):
        return np.asarray(tsne.fit_transform(z), np.float64)


def _checked(name: str, z: np.ndarray, clusters: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    z, clusters = np.asarray(z), np.asarray(clusters)
    if z.ndim != 2 or clusters.shape != z.shape[:1]:
        raise ValueError(
            f"{name} has shape {z.shape}, its clusters {clusters.shape}; expected (n, L) and (n,)"
        )
    return z, clusters.astype(np.int64)


def _subsample(
    z: np.ndarray, clusters: np.ndarray, count: int, generator: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """Take at most ``count`` finite rows at random, in their order."""
    rows = np.flatnonzero(np.isfinite(z).all(axis=1))
    if len(rows) > count:
        rows = np.sort(generator.choice(rows, count, replace=False))
    return z[rows], clusters[rows]


def _scatter(axes: Axes, points: np.ndarray, clusters: np.ndarray, n_clusters: int) -> None:
    size = float(np.clip(9000 / max(len(points), 1), 8, 30))
    font = 11 if n_clusters <= 20 else 6.5
    for index in np.unique(clusters):
        colour, marker = cluster_style(int(index), n_clusters)
        mine = points[clusters == index]
        axes.scatter(mine[:, 0], mine[:, 1], s=size, color=colour, marker=marker, alpha=0.75, linewidths=0)
    # Written last, so that no later cluster covers a number.
    for index in np.unique(clusters):
        x, y = np.median(points[clusters == index], axis=0)
        axes.text(
            x,
            y,
            str(index),
            fontsize=font,
            fontweight="bold",
            color=INK,
            ha="center",
            va="center",
            path_effects=[withStroke(linewidth=font / 4, foreground="white")],
        )
    if not len(points):
        axes.text(0.5, 0.5, "no finite rows", transform=axes.transAxes, ha="center", color=MUTED)
    axes.set_xticks([])
    axes.set_yticks([])
    axes.spines[:].set_color(FAINT)
    axes.set_xlabel("t-SNE 1", fontsize=9, color=MUTED)
    axes.set_ylabel("t-SNE 2", fontsize=9, color=MUTED)
