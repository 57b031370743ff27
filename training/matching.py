"""Old and new clusters matched by the rows they share."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from pydantic import BaseModel, ConfigDict
from scipy.optimize import linear_sum_assignment

# A cluster that kept less than this share of its rows is the old one by name only.
WEAK = 0.5


class AlignedCluster(BaseModel):
    """One cluster of the aligned run.

    Attributes
    ----------
    id, name
        In the aligned run.
    run_id
        Its id before, in the run that was aligned.
    old_id
        The old cluster it was matched with, or ``None``: none was left, or they share no row.
    old_rows, rows, shared_rows
        Reference rows of that old cluster, of this one, and of both.
    """

    model_config = ConfigDict(frozen=True)

    id: int
    name: str
    run_id: int
    old_id: int | None
    old_rows: int
    rows: int
    shared_rows: int


class OldCluster(BaseModel):
    """One cluster of the old model, and the share of its reference rows that have another id now.

    ``new_id`` is what its match is called now, ``None`` if it has none: the old cluster has disappeared.
    ``moved`` is ``None`` if it had no rows.
    """

    model_config = ConfigDict(frozen=True)

    id: int
    name: str
    rows: int
    new_id: int | None
    moved: float | None


class Alignment(BaseModel):
    """What became of the old clusters; the document of ``align --json``.

    Attributes
    ----------
    rows
        Reference rows.
    moved, moved_before
        Share of them whose id differs from the old model's, with the run's clusters renumbered and as they
        were.
    order
        The run's own id of each cluster of the aligned run.
    clusters, old_clusters
        The new clusters and the old, by id.
    """

    model_config = ConfigDict(frozen=True)

    rows: int
    moved: float
    moved_before: float
    order: tuple[int, ...]
    clusters: tuple[AlignedCluster, ...]
    old_clusters: tuple[OldCluster, ...]

    @property
    def lost_ids(self) -> list[OldCluster]:
        """Old clusters that are gone, or are found under another id."""
        return [old for old in self.old_clusters if old.new_id != old.id]

    def __str__(self) -> str:
        """Render as a table of text and a few sentences."""
        return _render(self)


class _Matching(NamedTuple):
    order: list[int]  # the run's id of each new id
    old_of: list[int | None]  # the old id of each new id, matched or not


def compare(old_ids: np.ndarray, run_ids: np.ndarray, names: tuple[str, ...], n_clusters: int) -> Alignment:
    """Match a run's clusters with old ones by the rows they share.

    Parameters
    ----------
    old_ids, run_ids
        Clusters of the same rows by the two models, int64 ``(n,)``.
    names
        Of the old clusters, by id.
    n_clusters
        Of the run.
    """
    n_old = len(names)
    counts = np.bincount(old_ids * n_clusters + run_ids, minlength=n_old * n_clusters)
    counts = counts.reshape(n_old, n_clusters)
    order, matched = _match(counts)
    new_id = np.argsort(order)
    moved = new_id[run_ids] != old_ids
    taken = set(names)
    clusters = []
    for k, (run_id, old) in enumerate(zip(order, matched, strict=True)):
        shared = 0 if old is None else int(counts[old, run_id])
        name = names[old] if old is not None and shared else _free_name(k, taken)
        taken.add(name)
        clusters.append(
            AlignedCluster(
                id=k,
                name=name,
                run_id=run_id,
                old_id=old if shared else None,
                old_rows=0 if old is None or not shared else int(counts[old].sum()),
                rows=int(counts[:, run_id].sum()),
                shared_rows=shared,
            )
        )
    found = {cluster.old_id: cluster.id for cluster in clusters if cluster.old_id is not None}
    sizes = counts.sum(1)
    return Alignment(
        rows=len(old_ids),
        moved=float(moved.mean()),
        moved_before=float((run_ids != old_ids).mean()),
        order=tuple(order),
        clusters=tuple(clusters),
        old_clusters=tuple(
            OldCluster(
                id=k,
                name=name,
                rows=int(sizes[k]),
                new_id=found.get(k),
                moved=float(moved[old_ids == k].mean()) if sizes[k] else None,
            )
            for k, name in enumerate(names)
        ),
    )


def _match(counts: np.ndarray) -> _Matching:
    """Match old and new clusters by their shared rows ``(K_old, K_new)``, and number the new ones densely."""
    n_old, n_new = counts.shape
    # Among equally good matchings, the one that keeps most of the run's own ids.
    worth = counts * (n_new + 1) + np.eye(n_old, n_new, dtype=np.int64)
    matched = dict(zip(*(ids.tolist() for ids in linear_sum_assignment(worth, maximize=True)), strict=True))
    order: dict[int, int] = {old: run for old, run in matched.items() if old < n_new}
    old_of: dict[int, int] = {old: old for old in order}
    free = iter([k for k in range(n_new) if k not in order])
    for old in sorted(set(matched) - set(order)):
        k = next(free)
        order[k], old_of[k] = matched[old], old
    for run in sorted(set(range(n_new)) - set(matched.values())):
        order[next(free)] = run
    return _Matching([order[k] for k in range(n_new)], [old_of.get(k) for k in range(n_new)])


def _free_name(index: int, taken: set[str]) -> str:
    name = f"cluster-{index}"
    while name in taken:
        name += "-new"
    return name


def _render(alignment: Alignment) -> str:
    moved = {old.id: old.moved for old in alignment.old_clusters}
    header = ("id", "name", "run id", "old id", "old rows", "new rows", "shared", "moved away")
    lines = [header]
    for cluster in alignment.clusters:
        old = cluster.old_id
        share = None if old is None else moved[old]
        lines.append(
            (
                str(cluster.id),
                cluster.name,
                str(cluster.run_id),
                "new" if old is None else str(old),
                "" if old is None else f"{cluster.old_rows:,}",
                f"{cluster.rows:,}",
                f"{cluster.shared_rows:,}",
                "" if share is None else f"{share:.1%}",
            )
        )
    widths = [max(len(line[i]) for line in lines) for i in range(len(header))]
    table = ["  ".join(c.ljust(w) for c, w in zip(line, widths, strict=True)).rstrip() for line in lines]
    return "\n".join([*table, "", *_sentences(alignment)])


def _sentences(alignment: Alignment) -> list[str]:
    said = [
        f"{alignment.moved:.2%} of {alignment.rows:,} reference rows have another id than in the old model "
        f"({alignment.moved_before:.2%} without renumbering)"
    ]
    for old in alignment.lost_ids:
        if not old.rows:
            said.append(
                f"no reference row is in old cluster {old.id} '{old.name}': what became of it is not known, "
                "and its name is not carried over"
            )
            continue
        if old.new_id is not None:
            said.append(f"old cluster {old.id} '{old.name}' has id {old.new_id} now")
            continue
        again = f"; id {old.id} means another cluster now" if old.id < len(alignment.clusters) else ""
        said.append(f"old cluster {old.id} '{old.name}' ({old.rows:,} rows) has disappeared{again}")
    for cluster in alignment.clusters:
        if cluster.old_id is not None and cluster.shared_rows < WEAK * cluster.old_rows:
            said.append(
                f"cluster {cluster.id} '{cluster.name}' kept {cluster.shared_rows / cluster.old_rows:.0%} of "
                "its rows: look at it before you trust its name"
            )
    return said
