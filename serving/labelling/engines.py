"""Who answers: the model in this process, or a server that has the very same one."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np

from serving.bundle import Bundle
from serving.client import ClusterClient, Security
from serving.client.status import refuse_unready
from serving.engine import EngineError, OnnxEngine
from serving.labelled import Assign, Labels
from serving.labelling.failures import LabellingError
from serving.labelling.settings import LabelSettings


@dataclass(frozen=True)
class Labeller:
    """Who answers, and how to ask.

    Attributes
    ----------
    name
        For people: the device, or the server and its device.
    assign
        Assigns rows.
    has_novelty
        Whether it also says their novelty.
    """

    name: str
    assign: Assign
    has_novelty: bool


@contextmanager
def open_labeller(settings: LabelSettings, bundle: Bundle) -> Iterator[Labeller]:
    """Give the labeller that ``settings`` ask for.

    Raises
    ------
    LabellingError, BundleError
        If the model cannot be run here as asked, or the server's model of this name and version is another.
    ClusterServiceError
        If the server has none, or cannot be reached.
    SecurityError
        If a certificate or token cannot be used.
    """
    if settings.target is None:
        yield _local(settings, bundle)
    else:
        with _client(settings, settings.target) as client:
            yield _remote(client, bundle, settings.timeout)


def _client(settings: LabelSettings, target: str) -> ClusterClient:
    security = Security(
        tls=settings.tls,
        ca=settings.ca,
        cert=settings.cert,
        key=settings.key,
        token_file=settings.token_file,
        allow_insecure_token=settings.allow_insecure_token,
    )
    return ClusterClient(target, security=security)


def _local(settings: LabelSettings, bundle: Bundle) -> Labeller:
    try:
        # A job runs the model back to back, so idle threads may spin.
        engine = OnnxEngine(bundle, settings.device, intra_op_threads=settings.threads, spin=True)
    except EngineError as error:
        raise LabellingError(str(error)) from error

    def assign(x: np.ndarray) -> Labels:
        step = settings.batch_rows
        runs = [engine.assign(x[first : first + step]) for first in range(0, len(x), step)]
        novelty = [run.novelty for run in runs if run.novelty is not None]
        return Labels(
            clusters=np.concatenate([run.clusters for run in runs]),
            confidences=np.concatenate([run.confidences for run in runs]),
            novelty=np.concatenate(novelty) if novelty else None,
        )

    return Labeller(engine.device, assign, bundle.manifest.novelty is not None)


def _remote(client: ClusterClient, bundle: Bundle, timeout: float) -> Labeller:
    name, version, sha256 = bundle.manifest.name, bundle.manifest.version, bundle.manifest.graph_sha256
    info = client.model(name, version=version, timeout=timeout)
    refuse_unready(info, client.target)
    if info.graph_sha256 != sha256:
        raise LabellingError(
            f"{client.target}: its {name} version {version} has SHA-256 {info.graph_sha256}, but "
            f"{bundle.path} has {sha256}: not the same model; deploy this one there, or label with the "
            "bundle that the server has"
        )

    def assign(x: np.ndarray) -> Labels:
        result = client.assign(x, model=name, version=version, novelty=info.has_novelty, timeout=timeout)
        return Labels(result.clusters, result.confidences, result.novelty)

    return Labeller(f"{client.target} ({info.device})", assign, info.has_novelty)
