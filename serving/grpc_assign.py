"""``nvisa.v1.ClusterService``: the native interface."""

from __future__ import annotations

import asyncio
import time

import grpc
import numpy as np

from serving.batcher import Answer
from serving.errors import InvalidInput
from serving.grpc_stream import answer_stream
from serving.inputs import check_columns, check_dtype, from_bytes, from_numbers
from serving.manifest import InputSpec, Manifest
from serving.metrics import Metrics
from serving.model_messages import DATA_TYPES, describe
from serving.models import Model
from serving.pb.nvisa.v1 import cluster_pb2 as pb
from serving.pb.nvisa.v1.cluster_pb2_grpc import ClusterServiceServicer
from serving.repository import Repository
from serving.request_ids import id_in_metadata, new_id
from serving.rpc import deadline_ns

SERVICE = pb.DESCRIPTOR.services_by_name["ClusterService"]
_DTYPE_NAMES = {value: name for name, value in DATA_TYPES.items()}
_INT64, _FLOAT32 = np.dtype("<i8"), np.dtype("<f4")


class ClusterService(ClusterServiceServicer):
    """Answers Assign, AssignStream, GetModel and ListModels.

    Parameters
    ----------
    repository
        The models.
    limits
        What clients are told of the server's limits.
    metrics
        Where the messages of streams are counted.
    draining
        Set when streams are to end.
    """

    def __init__(
        self, repository: Repository, limits: pb.Limits, metrics: Metrics, draining: asyncio.Event
    ) -> None:
        self._repository = repository
        self._limits = limits
        self._metrics = metrics
        self._draining = draining

    async def Assign(self, request: pb.AssignRequest, context: grpc.aio.ServicerContext) -> pb.AssignResponse:
        """Assign every row of the batch to a cluster."""
        return await self._assign(request, deadline_ns(context))

    async def AssignStream(self, requests: object, context: grpc.aio.ServicerContext) -> None:
        """Assign batch after batch, each answered when it is done."""
        deadline = deadline_ns(context)
        key = id_in_metadata(context) or new_id()  # all messages go to one version, while labels stay
        await answer_stream(
            context,
            lambda request: self._assign(request, deadline, wait_for_room=True, key=key),
            most_bytes=self._limits.max_message_bytes,
            draining=self._draining,
            count=self._metrics.stream_message,
        )

    async def _assign(
        self, request: pb.AssignRequest, deadline: int | None, *, wait_for_room: bool = False, key: str = ""
    ) -> pb.AssignResponse:
        start = time.perf_counter_ns()
        model = self._repository.get(
            request.model_name, request.model_version, request.model_label, key or request.request_id
        )
        if request.want_novelty:
            check_novelty(model.manifest)
        tensor = request.input
        data = tensor.data  # a copy at every look
        x = read_tensor(model.manifest.input, tensor, data)
        answer = await model.batcher.assign(x, deadline_ns=deadline, wait_for_room=wait_for_room)
        reply = pb.AssignResponse(
            request_id=request.request_id,
            model_name=model.manifest.name,
            model_version=model.manifest.version,
            n_clusters=model.manifest.n_clusters,
        )
        write_answer(
            reply,
            answer,
            as_data=bool(data),
            want_probabilities=request.want_probabilities,
            want_novelty=request.want_novelty,
        )
        reply.timings.queue_ns = answer.queue_ns
        reply.timings.inference_ns = answer.inference_ns
        reply.timings.total_ns = time.perf_counter_ns() - start
        return reply

    async def GetModel(
        self, request: pb.GetModelRequest, context: grpc.aio.ServicerContext
    ) -> pb.GetModelResponse:
        """Describe one model."""
        model = self._repository.find(
            request.model_name, request.model_version, request.model_label, request.request_id
        )
        return pb.GetModelResponse(model=self._describe(model), limits=self._limits)

    async def ListModels(
        self, request: pb.ListModelsRequest, context: grpc.aio.ServicerContext
    ) -> pb.ListModelsResponse:
        """Describe every model."""
        models = [self._describe(model) for model in self._repository.models()]
        return pb.ListModelsResponse(models=models, limits=self._limits)

    def _describe(self, model: Model) -> pb.Model:
        default = self._repository.default(model.name)
        return describe(model, model is default, self._repository.labels_of(model))


def check_novelty(manifest: Manifest) -> None:
    """Raise `InvalidInput` if the model does not say novelty."""
    if manifest.novelty is None:
        raise InvalidInput(
            f"model {manifest.name} version {manifest.version} does not say novelty; leave want_novelty "
            "unset, or serve a version exported with: nvisa-train export --with-novelty"
        )


def read_tensor(spec: InputSpec, tensor: pb.Tensor, data: bytes) -> np.ndarray:
    """Return the rows of ``tensor``, whose ``data`` is given beside it, checked against ``spec``.

    Raises
    ------
    InvalidInput
        If they do not fit.
    """
    check_columns(spec, tensor.columns)
    dtype = _DTYPE_NAMES.get(tensor.dtype)
    if tensor.dtype != pb.DATA_TYPE_UNSPECIFIED:
        check_dtype(spec, dtype or f"of the unknown dtype {tensor.dtype}")
    if tensor.values:
        if data:
            raise InvalidInput("the input has both data and values; set one of them")
        return from_numbers(spec, tensor.shape, tensor.values)
    if dtype is None:
        raise InvalidInput(f"the input has no dtype; set it to {spec.dtype} when sending data")
    return from_bytes(spec, tensor.shape, data)


def write_answer(
    reply: pb.AssignResponse, answer: Answer, *, as_data: bool, want_probabilities: bool, want_novelty: bool
) -> None:
    """Put ``answer`` into ``reply``, as bytes or as numbers."""
    if as_data:
        reply.clusters_data = answer.clusters.astype(_INT64, copy=False).tobytes()
        reply.confidences_data = answer.confidences.astype(_FLOAT32, copy=False).tobytes()
        if want_probabilities:
            reply.probabilities_data = answer.probabilities.astype(_FLOAT32, copy=False).tobytes()
        if want_novelty and answer.novelty is not None:
            reply.novelty_data = answer.novelty.astype(_FLOAT32, copy=False).tobytes()
        return
    reply.clusters.extend(answer.clusters.tolist())
    reply.confidences.extend(answer.confidences.tolist())
    if want_probabilities:
        reply.probabilities.extend(answer.probabilities.ravel().tolist())
    if want_novelty and answer.novelty is not None:
        reply.novelty.extend(answer.novelty.tolist())
