"""Small bundles for tests: a two-layer softmax classifier with seeded weights."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import numpy as np
from onnx import TensorProto, helper, numpy_helper

from serving.bundle import sha256, write_bundle
from serving.manifest import (
    CLUSTER,
    INPUT_NAME,
    NOVELTY,
    PROBABILITIES,
    Cluster,
    InputSpec,
    Manifest,
    Novelty,
    Parity,
    Reference,
    TrainingSummary,
)

OPSET = 17
HIDDEN = 16
CONFIDENCE_EDGES = (0.0, 0.25, 0.5, 0.75, 1.0)


def make_bundle(
    repository: Path,
    name: str = "toy",
    version: int = 1,
    shape: tuple[int, ...] = (8, 8),
    dtype: Literal["uint8", "float32"] = "uint8",
    n_clusters: int = 10,
    seed: int = 0,
    novelty: bool = False,
    hidden: int = HIDDEN,
    columns: tuple[str, ...] = (),
) -> Path:
    """Write a bundle to ``repository/name/version`` and return that path."""
    rng = np.random.default_rng(seed)
    n_inputs = int(np.prod(shape))
    weights = {
        "w1": rng.normal(size=(n_inputs, hidden)).astype(np.float32),
        "b1": rng.normal(size=hidden).astype(np.float32),
        "w2": rng.normal(size=(hidden, n_clusters)).astype(np.float32),
        "b2": np.zeros(n_clusters, np.float32),
    }
    rows = random_rows(512, shape, dtype, seed=seed + 1)
    probabilities = reference_probabilities(weights, rows)
    graph = build_graph(weights, shape, dtype, n_clusters, novelty)
    manifest = _manifest(name, version, shape, dtype, probabilities, graph, seed, novelty, columns)
    return write_bundle(Path(repository) / name / str(version), manifest, graph)


def random_rows(n: int, shape: tuple[int, ...] = (8, 8), dtype: str = "uint8", seed: int = 0) -> np.ndarray:
    """``n`` rows such as `make_bundle`'s model takes."""
    rng = np.random.default_rng(seed)
    if dtype == "uint8":
        return rng.integers(0, 256, size=(n, *shape), dtype=np.uint8)
    return rng.normal(size=(n, *shape)).astype(np.float32)


def reference_probabilities(weights: dict[str, np.ndarray], rows: np.ndarray) -> np.ndarray:
    """What the graph computes, in numpy: float32 ``(n_rows, n_clusters)``."""
    x = rows.reshape(len(rows), -1).astype(np.float32)
    if rows.dtype == np.uint8:
        x = (x + np.float32(0.5)) / np.float32(256)
    logits = np.maximum(x @ weights["w1"] + weights["b1"], 0) @ weights["w2"] + weights["b2"]
    odds = np.exp(logits - logits.max(axis=1, keepdims=True))
    return odds / odds.sum(axis=1, keepdims=True)


def reference_novelty(rows: np.ndarray) -> np.ndarray:
    """What the graph gives for novelty: the logistic function of the mean feature, float32 ``(n_rows,)``."""
    x = rows.reshape(len(rows), -1).astype(np.float32)
    if rows.dtype == np.uint8:
        x = (x + np.float32(0.5)) / np.float32(256)
    return 1 / (1 + np.exp(-x.mean(axis=1)))


def build_graph(
    weights: dict[str, np.ndarray], shape: tuple[int, ...], dtype: str, n_clusters: int, novelty: bool = False
) -> bytes:
    """The serialised ONNX graph, preprocessing inside."""
    constants = dict(weights)
    nodes = [
        helper.make_node("Cast", [INPUT_NAME], ["cast"], to=TensorProto.FLOAT),
        helper.make_node("Flatten", ["cast"], ["flat"], axis=1),
    ]
    if dtype == "uint8":
        constants |= {"half": np.array(0.5, np.float32), "levels": np.array(256, np.float32)}
        nodes += [
            helper.make_node("Add", ["flat", "half"], ["shifted"]),
            helper.make_node("Div", ["shifted", "levels"], ["features"]),
        ]
    features = "features" if dtype == "uint8" else "flat"
    nodes += [
        helper.make_node("Gemm", [features, "w1", "b1"], ["pre"]),
        helper.make_node("Relu", ["pre"], ["hidden"]),
        helper.make_node("Gemm", ["hidden", "w2", "b2"], ["logits"]),
        helper.make_node("Softmax", ["logits"], [PROBABILITIES], axis=1),
        helper.make_node("ArgMax", [PROBABILITIES], [CLUSTER], axis=1, keepdims=0),
    ]
    outputs = [
        helper.make_tensor_value_info(PROBABILITIES, TensorProto.FLOAT, ["n", n_clusters]),
        helper.make_tensor_value_info(CLUSTER, TensorProto.INT64, ["n"]),
    ]
    if novelty:
        nodes += [
            helper.make_node("ReduceMean", [features], ["mean"], axes=[1], keepdims=0),
            helper.make_node("Sigmoid", ["mean"], [NOVELTY]),
        ]
        outputs.append(helper.make_tensor_value_info(NOVELTY, TensorProto.FLOAT, ["n"]))
    element = TensorProto.UINT8 if dtype == "uint8" else TensorProto.FLOAT
    graph = helper.make_graph(
        nodes,
        "toy",
        [helper.make_tensor_value_info(INPUT_NAME, element, ["n", *shape])],
        outputs,
        [numpy_helper.from_array(value, key) for key, value in constants.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=9)
    return bytes(model.SerializeToString())


def _manifest(
    name: str,
    version: int,
    shape: tuple[int, ...],
    dtype: Literal["uint8", "float32"],
    probabilities: np.ndarray,
    graph: bytes,
    seed: int,
    novelty: bool,
    columns: tuple[str, ...],
) -> Manifest:
    n_rows, n_clusters = probabilities.shape
    assigned = probabilities.argmax(axis=1)
    confidence = probabilities.max(axis=1)
    shares = np.bincount(assigned, minlength=n_clusters) / n_rows
    histogram, _ = np.histogram(confidence, CONFIDENCE_EDGES)
    clusters = tuple(
        Cluster(
            id=k,
            name=f"cluster {k}",
            share=float(shares[k]),
            mean_confidence=float(confidence[assigned == k].mean()) if shares[k] else None,
        )
        for k in range(n_clusters)
    )
    meaning: Literal["image", "features"] = "image" if dtype == "uint8" else "features"
    return Manifest(
        schema_version=3 if columns else 2 if novelty else 1,
        name=name,
        version=version,
        input=InputSpec(dtype=dtype, shape=shape, meaning=meaning, columns=columns),
        n_clusters=n_clusters,
        clusters=clusters,
        outputs=(PROBABILITIES, CLUSTER, NOVELTY) if novelty else (PROBABILITIES, CLUSTER),
        graph_sha256=sha256(graph),
        opset=OPSET,
        parity=Parity(max_abs_difference=1e-6, equal_argmax_share=1.0, rows=n_rows),
        reference=Reference(
            cluster_shares=tuple(float(s) for s in shares),
            confidence_edges=CONFIDENCE_EDGES,
            confidence_shares=tuple(float(h) / n_rows for h in histogram),
            rows=n_rows,
        ),
        novelty=Novelty(score="toy", rows=n_rows, cost_ratio=1.5, max_abs_difference=1e-6)
        if novelty
        else None,
        training=TrainingSummary(
            data="random rows",
            data_fingerprint="0" * 64,
            rows=n_rows,
            config_hash="1" * 64,
            objective="vimco",
            epochs=1,
            seed=seed,
            scores={"acc": 0.5},
        ),
        package_version="0.1.0",
        commit=None,
        created="2026-01-01T00:00:00Z",
    )
