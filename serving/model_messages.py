"""What a server says of a model, as ``nvisa.v1`` messages."""

from __future__ import annotations

from collections.abc import Sequence

from serving.manifest import Manifest
from serving.models import Model, ModelState
from serving.pb.nvisa.v1 import cluster_pb2 as pb

DATA_TYPES = {"uint8": pb.DATA_TYPE_UINT8, "float32": pb.DATA_TYPE_FLOAT32}
_STATES = {
    ModelState.LOADING: pb.MODEL_STATE_LOADING,
    ModelState.READY: pb.MODEL_STATE_READY,
    ModelState.FAILED: pb.MODEL_STATE_FAILED,
}


def describe(model: Model, is_default: bool, labels: Sequence[str] = ()) -> pb.Model:
    """Everything known of ``model``; its name, version and state only while it is not loaded."""
    state, reason = model.told()
    message = pb.Model(
        name=model.name,
        version=model.version,
        is_default=is_default,
        state=_STATES[state],
        state_reason=reason,
        labels=labels,
    )
    if model.manifest is not None and model.engine is not None:
        message.device = model.engine.device
        _add_manifest(message, model.manifest)
    return message


def _add_manifest(message: pb.Model, manifest: Manifest) -> None:
    message.MergeFrom(
        pb.Model(
            input=pb.InputSpec(
                dtype=DATA_TYPES[manifest.input.dtype],
                shape=manifest.input.shape,
                meaning=manifest.input.meaning,
                columns=manifest.input.columns,
            ),
            n_clusters=manifest.n_clusters,
            clusters=[pb.Cluster(**cluster.model_dump()) for cluster in manifest.clusters],
            parity=pb.Parity(**manifest.parity.model_dump()),
            training=pb.Training(**manifest.training.model_dump()),
            graph_sha256=manifest.graph_sha256,
            opset=manifest.opset,
            package_version=manifest.package_version,
            commit=manifest.commit or "",
            created=manifest.created,
            novelty=pb.Novelty(**manifest.novelty.model_dump()) if manifest.novelty is not None else None,
        )
    )
