"""A cluster service for client tests: in this process, on a real socket, with a fake engine."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from concurrent import futures
from contextlib import contextmanager

import grpc
import numpy as np
from grpc_health.v1 import health, health_pb2, health_pb2_grpc

from serving.engine import FakeEngine
from serving.pb.nvisa.v1 import cluster_pb2 as pb
from serving.pb.nvisa.v1 import cluster_pb2_grpc as rpc

SHAPE = (4,)
N_CLUSTERS = 5
LABELS = {"stable": 2, "canary": 1}
Failure = tuple[grpc.StatusCode, dict[str, str]]


class ClusterService(rpc.ClusterServiceServicer):
    """Model ``toy``: uint8 rows of 4, versions 1, labelled canary, and 2, labelled stable (the default).

    Attributes
    ----------
    failures
        Failures of the next calls of Assign, in order; a call that finds none is answered.
    says_novelty
        Whether the models say novelty.
    loading
        Whether the models are said to be loading still.
    canaries
        Ids of the calls without a version that the canary answers.
    calls
        The requests for Assign that were answered.
    """

    def __init__(self) -> None:
        self.failures: list[Failure] = []
        self.calls: list[pb.AssignRequest] = []
        self.attempts = 0
        self.limits = pb.Limits(max_message_bytes=1 << 20, max_queue_rows=2000)
        self.graph_sha256 = "0" * 64
        self.loading = False
        self.says_novelty = False
        self.canaries: set[str] = set()
        self.engine = FakeEngine(N_CLUSTERS, novelty=True)
        self.health = health.HealthServicer()
        self._lock = threading.Lock()

    def model(self, version: int) -> pb.Model:
        if self.loading:
            return pb.Model(name="toy", version=version, state=pb.MODEL_STATE_LOADING)
        return pb.Model(
            name="toy",
            version=version,
            is_default=version == 2,
            state=pb.MODEL_STATE_READY,
            device="cpu",
            input=pb.InputSpec(dtype=pb.DATA_TYPE_UINT8, shape=SHAPE, meaning="image"),
            n_clusters=N_CLUSTERS,
            clusters=[pb.Cluster(id=k, name=f"cluster {k}") for k in range(N_CLUSTERS)],
            graph_sha256=self.graph_sha256,
            labels=[label for label, labelled in LABELS.items() if labelled == version],
            created="2026-01-01T00:00:00Z",
            novelty=pb.Novelty(score="toy", rows=9, cost_ratio=2) if self.says_novelty else None,
        )

    def Assign(self, request, context):
        with self._lock:
            self.attempts += 1
            failure = self.failures.pop(0) if self.failures else None
        if failure is not None:
            context.set_trailing_metadata(tuple(failure[1].items()))
            context.abort(failure[0], "not now")
        if request.model_name != "toy":
            context.abort(grpc.StatusCode.NOT_FOUND, f"no model {request.model_name!r}")
        if request.input.dtype != pb.DATA_TYPE_UINT8:
            context.abort(grpc.StatusCode.INVALID_ARGUMENT, "the model takes uint8")
        if request.want_novelty and not self.says_novelty:
            context.abort(grpc.StatusCode.INVALID_ARGUMENT, "toy does not say novelty")
        x = np.frombuffer(request.input.data, np.uint8).reshape(tuple(request.input.shape))
        with self._lock:
            self.calls.append(request)
            run = self.engine.assign(x)
        return pb.AssignResponse(
            model_name="toy",
            model_version=self._version(request, context),
            clusters_data=run.clusters.astype("<i8").tobytes(),
            confidences_data=run.confidences.astype("<f4").tobytes(),
            probabilities_data=run.probabilities.tobytes() if request.want_probabilities else b"",
            novelty_data=run.novelty.tobytes() if request.want_novelty else b"",
            n_clusters=N_CLUSTERS,
        )

    def GetModel(self, request, context):
        if request.model_name != "toy":
            context.abort(grpc.StatusCode.NOT_FOUND, f"no model {request.model_name!r}")
        return pb.GetModelResponse(model=self.model(self._version(request, context)), limits=self.limits)

    def ListModels(self, request, context):
        return pb.ListModelsResponse(models=[self.model(1), self.model(2)], limits=self.limits)

    def _version(self, request, context):
        if not request.model_label:
            return request.model_version or (1 if request.request_id in self.canaries else 2)
        if request.model_label not in LABELS:
            context.abort(grpc.StatusCode.NOT_FOUND, f"no label {request.model_label!r}")
        return LABELS[request.model_label]

    def set_ready(self, ready: bool) -> None:
        status = (
            health_pb2.HealthCheckResponse.SERVING if ready else health_pb2.HealthCheckResponse.NOT_SERVING
        )
        self.health.set("nvisa.v1.ClusterService", status)


@contextmanager
def running(service: ClusterService) -> Iterator[str]:
    """Serve on a free port; gives the target."""
    server = grpc.server(futures.ThreadPoolExecutor(8))
    rpc.add_ClusterServiceServicer_to_server(service, server)
    health_pb2_grpc.add_HealthServicer_to_server(service.health, server)
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    try:
        yield f"127.0.0.1:{port}"
    finally:
        server.stop(None).wait()
