"""Export of q(y|x) to a bundle: the ONNX graph, its parity with torch, and the manifest."""

from __future__ import annotations

import copy
import logging
import subprocess
import warnings
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path

import numpy as np
import onnx
import torch
from torch import Tensor, nn

from serving.bundle import (
    CLUSTER,
    INPUT_NAME,
    PROBABILITIES,
    BundleError,
    Cluster,
    Manifest,
    Parity,
    TrainingSummary,
    parse_version,
    sha256,
    write_bundle,
)
from serving.runtime import import_onnxruntime
from training.fitted import Fitted
from training.inference import probabilities
from training.model import NVISAModel

OPSET = 18
MAX_DIFFERENCE = 1e-4
# Argmax may flip where two clusters are within rounding of each other: for one row in a thousand, or one.
MAX_FLIPPED = 0.001


class ExportError(ValueError):
    """The model cannot be exported as asked; nothing was written."""


class _Assigner(nn.Module):
    def __init__(self, model: NVISAModel) -> None:
        super().__init__()
        self.model = model

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Raw rows -> probabilities and cluster."""
        q = self.model(x)
        return q, q.argmax(-1)


def to_onnx(fitted: Fitted) -> bytes:
    """The graph of q(y|x) with preprocessing inside: ``x (N, *shape)`` -> probabilities, cluster."""
    # A copy: moving the model itself would leave its owner, on a GPU until now, on the CPU.
    model = _Assigner(copy.deepcopy(fitted.model).cpu()).eval()
    dtype = getattr(torch, fitted.spec.dtype)
    example = torch.zeros((2, *fitted.spec.shape), dtype=dtype)
    # The exporter warns of its own internals; what matters is checked on the graph below.
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        program = torch.onnx.export(
            model,
            (example,),
            dynamo=True,
            verbose=False,
            opset_version=OPSET,
            input_names=[INPUT_NAME],
            output_names=[PROBABILITIES, CLUSTER],
            dynamic_shapes={"x": {0: torch.export.Dim("n", min=1)}},
        )
    assert program is not None
    proto = program.model_proto
    # Where each node came from in the source: paths of this machine have no place in a bundle.
    for node in proto.graph.node:
        del node.metadata_props[:]
        node.doc_string = ""
    onnx.checker.check_model(proto)
    return proto.SerializeToString()


def check_parity(fitted: Fitted, graph: bytes, x: np.ndarray) -> Parity:
    """Compare the graph, under ONNX Runtime on the CPU, with torch on rows ``x``.

    Raises
    ------
    ExportError
        If probabilities differ by more than 1e-4 or the argmax on more than 0.1 % of the rows.
    """
    session = import_onnxruntime().InferenceSession(graph, providers=["CPUExecutionProvider"])
    expected = probabilities(fitted.model, x)
    found, clusters = session.run([PROBABILITIES, CLUSTER], {INPUT_NAME: x})
    alone = session.run([PROBABILITIES], {INPUT_NAME: x[:1]})[0]
    if found.shape != expected.shape or alone.shape != expected[:1].shape:
        raise ExportError(f"the graph gives shape {found.shape}, torch {expected.shape}: not exported")
    difference = max(float(np.abs(found - expected).max()), float(np.abs(alone - expected[:1]).max()))
    flipped = int((clusters != expected.argmax(1)).sum())
    equal = 1 - flipped / len(x)
    if not difference <= MAX_DIFFERENCE or flipped > max(1, MAX_FLIPPED * len(x)):
        raise ExportError(
            f"the graph differs from torch by up to {difference:.3g} in probability and agrees on "
            f"{100 * equal:.2f} % of {len(x)} rows (allowed: {MAX_DIFFERENCE:g} and all but "
            f"{100 * MAX_FLIPPED:g} %): not exported"
        )
    return Parity(max_abs_difference=difference, equal_argmax_share=equal, rows=len(x))


def export(fitted: Fitted, output: Path) -> Manifest:
    """Write the bundle ``output`` (``.../<name>/<version>``) and return its manifest.

    Raises
    ------
    ExportError
        If the path does not name a model and a version, or parity fails.
    BundleError
        If the bundle is there already or cannot be written.
    """
    output = Path(output)
    number = parse_version(output.name)
    if number is None:
        raise ExportError(f"--output {output} must end in NAME/VERSION, VERSION a positive integer")
    if output.exists():
        raise BundleError(f"{output} already exists; versions are never overwritten, export to the next one")
    graph = to_onnx(fitted)
    parity = check_parity(fitted, graph, fitted.rows.sample)
    reference = fitted.rows.reference
    manifest = Manifest(
        name=output.parent.name,
        version=number,
        input=fitted.spec,
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
        graph_sha256=sha256(graph),
        opset=OPSET,
        parity=parity,
        reference=reference,
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
