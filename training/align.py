"""New clusters numbered like the old ones, so that consumers of cluster ids survive a new version."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np

from serving.bundle import Bundle
from serving.manifest import CLUSTER, INPUT_NAME
from serving.runtime import import_onnxruntime
from training.checkpoint import write_json
from training.fitted import Fitted
from training.inference import probabilities
from training.matching import Alignment, compare
from training.renumber import permute_clusters
from training.run import check_rows, write_run

BATCH = 4096
ALIGNMENT_FILE = "alignment.json"


def align(fitted: Fitted, bundle: Bundle, x: np.ndarray) -> tuple[Fitted, Alignment]:
    """Renumber and name the clusters of ``fitted`` like those of ``bundle``, by how both assign ``x``.

    The one-to-one matching of clusters that leaves most rows with their id; a name goes with its cluster
    unless the two share no row. Clusters without an old one get the ids after the old ones. Where the new
    model has fewer clusters, its ids are 0 to K - 1 all the same: old clusters disappear, and a match of one
    whose id is K or more takes a free id.

    Parameters
    ----------
    x
        Reference rows ``(n, *shape)``, raw.

    Raises
    ------
    ValueError
        If the two models do not take the same rows.
    """
    check_rows(bundle.manifest.input, fitted.spec, "the new run")
    old_ids = bundle_clusters(bundle, x)
    run_ids = probabilities(fitted.model, x).argmax(1)
    old_names = tuple(cluster.name for cluster in bundle.manifest.clusters)
    alignment = compare(old_ids, run_ids, old_names, fitted.config.n_clusters)
    aligned = permute_clusters(fitted, alignment.order)
    return dataclasses.replace(aligned, names=tuple(c.name for c in alignment.clusters)), alignment


def bundle_clusters(bundle: Bundle, x: np.ndarray) -> np.ndarray:
    """Clusters of rows ``x (n, *shape)`` by a bundle's graph, on the CPU: int64 ``(n,)``."""
    session = import_onnxruntime().InferenceSession(bundle.graph, providers=["CPUExecutionProvider"])
    parts = [
        session.run([CLUSTER], {INPUT_NAME: np.ascontiguousarray(x[start : start + BATCH])})[0]
        for start in range(0, len(x), BATCH)
    ]
    return np.concatenate(parts)


def write_aligned(aligned: Fitted, alignment: Alignment, directory: Path, *, allow_fewer: bool) -> None:
    """Write the aligned run to a new ``directory``, with the alignment as ``alignment.json`` beside it.

    Raises
    ------
    ValueError
        If the run has fewer clusters than the old model and ``allow_fewer`` is not set: no numbering keeps
        the promise to consumers of ids.
    CheckpointError
        If the directory is there already.
    """
    gone = [f"{old.id} '{old.name}'" for old in alignment.lost_ids]
    if len(alignment.clusters) < len(alignment.old_clusters) and not allow_fewer:
        raise ValueError(
            f"the run has {len(alignment.clusters)} clusters, the old model {len(alignment.old_clusters)}: "
            f"{', '.join(gone)} would disappear or change their id; fit as many clusters, "
            "or pass --allow-fewer"
        )
    write_run(
        aligned,
        directory,
        lambda folder: write_json(folder / ALIGNMENT_FILE, alignment.model_dump(mode="json")),
    )
