"""Export of q(y|x) to a bundle: the graph's parity with torch, and the manifest."""

from __future__ import annotations

import subprocess
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path

import numpy as np

from serving.bundle import BundleError, parse_version, sha256, write_bundle
from serving.manifest import (
    CLUSTER,
    INPUT_NAME,
    NOVELTY,
    PROBABILITIES,
    Cluster,
    Manifest,
    Novelty,
    Parity,
    TrainingSummary,
    schema_version,
)
from serving.runtime import import_onnxruntime
from training.end_to_end import compose_with
from training.fitted import Fitted
from training.half import to_half
from training.inference import probabilities
from training.novelty import SCORE, Ranks, calibrate, cost_ratio, novelty
from training.onnx_graph import OPSET, output_names, to_onnx


@dataclass(frozen=True)
class Limits:
    """How far a graph may be from torch: in a probability, and in the share of rows whose argmax flips.

    It may flip where two clusters are within rounding of each other; one row always may.
    """

    difference: float
    flipped: float


FLOAT32 = Limits(difference=1e-4, flipped=0.001)
FLOAT16 = Limits(difference=0.05, flipped=0.01)
# Rounding of an energy of thousands of nats, where the training rows are densest.
MAX_NOVELTY_DIFFERENCE = 5e-3


class ExportError(ValueError):
    """The model cannot be exported as asked; nothing was written."""


def check_parity(
    fitted: Fitted,
    graph: bytes,
    x: np.ndarray,
    features: np.ndarray | None = None,
    limits: Limits = FLOAT32,
) -> Parity:
    """Compare the graph, under ONNX Runtime on the CPU, with torch on rows ``x``.

    ``features`` are what torch gets in their place, where the graph begins with a backbone.

    Raises
    ------
    ExportError
        If they differ by more than ``limits``.
    """
    session = _session(graph)
    expected = probabilities(fitted.model, x if features is None else features)
    found, clusters = session.run([PROBABILITIES, CLUSTER], {INPUT_NAME: x})
    alone = session.run([PROBABILITIES], {INPUT_NAME: x[:1]})[0]
    if found.shape != expected.shape or alone.shape != expected[:1].shape:
        raise ExportError(f"the graph gives shape {found.shape}, torch {expected.shape}: not exported")
    difference = max(float(np.abs(found - expected).max()), float(np.abs(alone - expected[:1]).max()))
    flipped = int((clusters != expected.argmax(1)).sum())
    equal = 1 - flipped / len(x)
    if not difference <= limits.difference or flipped > max(1, limits.flipped * len(x)):
        raise ExportError(
            f"the graph differs from torch by up to {difference:.3g} in probability and agrees on "
            f"{100 * equal:.2f} % of {len(x)} rows (allowed: {limits.difference:g} and all but "
            f"{100 * limits.flipped:g} %): not exported"
        )
    return Parity(max_abs_difference=difference, equal_argmax_share=equal, rows=len(x))


def check_novelty(
    fitted: Fitted, graph: bytes, x: np.ndarray, ranks: Ranks, features: np.ndarray | None = None
) -> float:
    """Largest difference between the graph's novelty and torch's on rows ``x``; see `check_parity`.

    Raises
    ------
    ExportError
        If it is more than 0.005, or the graph's is not finite.
    """
    expected = novelty(fitted.model, ranks, x if features is None else features)
    (found,) = _session(graph).run([NOVELTY], {INPUT_NAME: x})
    difference = float(np.abs(found - expected).max()) if found.shape == expected.shape else float("inf")
    if not difference <= MAX_NOVELTY_DIFFERENCE:
        raise ExportError(
            f"the graph differs from torch by up to {difference:.3g} in novelty on {len(x)} rows "
            f"(allowed: {MAX_NOVELTY_DIFFERENCE:g}): not exported"
        )
    return difference


def export(
    fitted: Fitted,
    output: Path,
    *,
    with_novelty: bool = False,
    backbone: str | None = None,
    half: bool = False,
) -> Manifest:
    """Write the bundle ``output`` (``.../<name>/<version>``) and return its manifest.

    Parameters
    ----------
    with_novelty
        Add the output ``novelty``: a rank among all training rows, or for a run that was fitted before ranks
        were kept, among the up to 2,000 training rows that it holds.
    backbone
        Of which the run's features are: the graph then begins with it and takes images, see
        `training.end_to_end`. It is checked on images that the run holds, beside the check on features.
    half
        Matrix products in float16. Parity is of the graph that is written: it says how many rows change
        cluster; up to 1 % may.

    Raises
    ------
    ExportError
        If the path does not name a model and a version, or parity fails; or if ``half`` and ``with_novelty``
        are asked for together: novelty ranks energies of thousands of nats, too large for float16.
    BackboneError
        If ``backbone`` cannot be read or is not the one of the run's features.
    BundleError
        If the bundle is there already or cannot be written.
    """
    output = Path(output)
    number = parse_version(output.name)
    if number is None:
        raise ExportError(f"--output {output} must end in NAME/VERSION, VERSION a positive integer")
    if output.exists():
        raise BundleError(f"{output} already exists; versions are never overwritten, export to the next one")
    ranks = None
    if with_novelty:
        if half:
            raise ExportError("float16 is too coarse for novelty; leave --half or --with-novelty away")
        ranks = fitted.rows.ranks or calibrate(fitted.model, fitted.rows.sample)
    graph, whole = to_onnx(fitted, ranks), None
    parity = check_parity(fitted, graph, fitted.rows.sample)
    difference = check_novelty(fitted, graph, fitted.rows.sample, ranks) if ranks is not None else None
    spec, opset, cost = fitted.spec, OPSET, 0
    if backbone is not None:
        whole = compose_with(fitted, backbone, graph)
        graph, spec, opset, cost = whole.graph, whole.images, whole.opset, whole.cost
        parity = check_parity(fitted, graph, whole.examples, whole.features)
        if ranks is not None:
            difference = check_novelty(fitted, graph, whole.examples, ranks, whole.features)
    if half:
        graph = to_half(graph)
        rows, features = (whole.examples, whole.features) if whole else (fitted.rows.sample, None)
        parity = check_parity(fitted, graph, rows, features, FLOAT16)
    reference = fitted.rows.reference
    manifest = Manifest(
        schema_version=schema_version(spec, novelty=ranks is not None),
        name=output.parent.name,
        version=number,
        input=spec,
        n_clusters=fitted.config.n_clusters,
        clusters=tuple(
            Cluster(
                id=index,
                name=name,
                share=share,
                mean_confidence=None if np.isnan(confidence) else min(1.0, float(confidence)),
            )
            for index, (name, share, confidence) in enumerate(
                zip(
                    fitted.cluster_names,
                    reference.cluster_shares,
                    fitted.rows.mean_confidence,
                    strict=True,
                )
            )
        ),
        outputs=output_names(ranks),
        graph_sha256=sha256(graph),
        opset=opset,
        parity=parity,
        reference=reference,
        novelty=None
        if ranks is None or difference is None
        else Novelty(
            score=SCORE,
            rows=ranks.rows,
            cost_ratio=cost_ratio(fitted.model, cost),
            max_abs_difference=difference,
        ),
        training=TrainingSummary(
            data=Path(fitted.data["name"]).name,
            data_fingerprint=fitted.data["fingerprint"],
            rows=fitted.data["rows"],
            config_hash=fitted.config.digest(),
            objective=fitted.config.objective,
            epochs=fitted.restarts[fitted.chosen].epochs,
            seed=fitted.restarts[fitted.chosen].seed,
        ),
        package_version=version("nvisa"),
        commit=_commit(),
        created=datetime.now(UTC).isoformat(timespec="seconds"),
    )
    write_bundle(output, manifest, graph)
    return manifest


def _session(graph: bytes):  # type: ignore[no-untyped-def]
    return import_onnxruntime().InferenceSession(graph, providers=["CPUExecutionProvider"])


def _commit() -> str | None:
    """Commit of the checkout this package runs from, if it is one."""
    checkout = Path(__file__).resolve().parents[1]
    if not (checkout / ".git").exists():
        return None
    try:
        result = subprocess.run(
            ["git", "-C", str(checkout), "rev-parse", "HEAD"],
            capture_output=True,
            text=True,
            timeout=10,
            check=True,
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return result.stdout.strip()
