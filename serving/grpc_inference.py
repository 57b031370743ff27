"""``inference.GRPCInferenceService``: Open Inference Protocol v2, for clients that nobody here wrote."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from importlib.metadata import PackageNotFoundError, version

import grpc
import numpy as np

from serving.bundle import parse_version
from serving.errors import InvalidInput, NotReady, UnknownModel
from serving.inputs import check_dtype, from_bytes, from_numbers
from serving.labels import LABELS
from serving.manifest import CLUSTER, INPUT_NAME, NOVELTY, PROBABILITIES, InputSpec, Manifest
from serving.model_control import ModelControl
from serving.models import ModelState
from serving.pb.inference import grpc_service_pb2 as pb
from serving.pb.inference.grpc_service_pb2_grpc import GRPCInferenceServiceServicer
from serving.repository import Repository
from serving.rpc import deadline_ns

SERVICE = pb.DESCRIPTOR.services_by_name["GRPCInferenceService"]
PLATFORM = "onnx_onnxv1"
# Whatever else there may be, it does not answer.
_STATES: dict[ModelState | None, str] = {ModelState.READY: "READY", ModelState.LOADING: "LOADING"}
_DTYPES = {"UINT8": "uint8", "FP32": "float32"}
_DATATYPES = {dtype: datatype for datatype, dtype in _DTYPES.items()}
_OUTPUT_DATATYPES = {PROBABILITIES: "FP32", CLUSTER: "INT64", NOVELTY: "FP32"}
_TensorMetadata = pb.ModelMetadataResponse.TensorMetadata


class InferenceService(GRPCInferenceServiceServicer):
    """Answers the protocol's six RPCs, and those of its extension for the model repository.

    Parameters
    ----------
    repository
        The models.
    is_ready
        Whether the server takes requests.
    control
        Changes what is loaded.
    """

    def __init__(self, repository: Repository, is_ready: Callable[[], bool], control: ModelControl) -> None:
        self._repository = repository
        self._is_ready = is_ready
        self._control = control

    async def ServerLive(
        self, request: pb.ServerLiveRequest, context: grpc.aio.ServicerContext
    ) -> pb.ServerLiveResponse:
        """Say that the process is alive."""
        return pb.ServerLiveResponse(live=True)

    async def ServerReady(
        self, request: pb.ServerReadyRequest, context: grpc.aio.ServicerContext
    ) -> pb.ServerReadyResponse:
        """Say whether the server takes requests."""
        return pb.ServerReadyResponse(ready=self._is_ready())

    async def ModelReady(
        self, request: pb.ModelReadyRequest, context: grpc.aio.ServicerContext
    ) -> pb.ModelReadyResponse:
        """Say whether a model takes requests."""
        try:
            model = self._repository.find(request.name, *_version(request.version))
        except NotReady:
            return pb.ModelReadyResponse(ready=False)
        return pb.ModelReadyResponse(ready=self._is_ready() and model.answers)

    async def ServerMetadata(
        self, request: pb.ServerMetadataRequest, context: grpc.aio.ServicerContext
    ) -> pb.ServerMetadataResponse:
        """Say what this server is, and which of the protocol's extensions it has."""
        return pb.ServerMetadataResponse(
            name="nvisa", version=_package_version(), extensions=["model_repository"]
        )

    async def ModelMetadata(
        self, request: pb.ModelMetadataRequest, context: grpc.aio.ServicerContext
    ) -> pb.ModelMetadataResponse:
        """Describe a model's inputs and outputs."""
        model = self._repository.find(request.name, *_version(request.version))
        manifest = self._repository.get(model.name, model.version).manifest
        spec = manifest.input
        datatype = _DATATYPES[spec.dtype]
        row_shapes = {PROBABILITIES: (manifest.n_clusters,)}
        versions = [str(model.version) for model in self._repository.versions(manifest.name)]
        return pb.ModelMetadataResponse(
            name=manifest.name,
            versions=versions,
            platform=PLATFORM,
            inputs=[_TensorMetadata(name=INPUT_NAME, datatype=datatype, shape=(-1, *spec.shape))],
            outputs=[
                _TensorMetadata(
                    name=name, datatype=_OUTPUT_DATATYPES[name], shape=(-1, *row_shapes.get(name, ()))
                )
                for name in manifest.outputs
            ],
        )

    async def ModelInfer(
        self, request: pb.ModelInferRequest, context: grpc.aio.ServicerContext
    ) -> pb.ModelInferResponse:
        """Assign a batch of rows."""
        model = self._repository.get(request.model_name, *_version(request.model_version), request.id)
        names = _requested_outputs(request, model.manifest)
        x = _read_input(model.manifest.input, request)
        answer = await model.batcher.assign(x, deadline_ns=deadline_ns(context))
        values = {PROBABILITIES: answer.probabilities, CLUSTER: answer.clusters}
        if answer.novelty is not None:
            values[NOVELTY] = answer.novelty
        outputs = {name: values[name] for name in names}
        return _write_outputs(request, model.manifest, outputs)

    async def RepositoryIndex(
        self, request: pb.RepositoryIndexRequest, context: grpc.aio.ServicerContext
    ) -> pb.RepositoryIndexResponse:
        """List the repository's versions and those that are loaded."""
        _check_repository(request.repository_name)
        reply = pb.RepositoryIndexResponse()
        for listed in await self._control.index():
            state = _STATES.get(listed.state, "UNAVAILABLE")
            if state == "READY" or not request.ready:
                reply.models.add(
                    name=listed.name, version=str(listed.version), state=state, reason=listed.reason
                )
        return reply

    async def RepositoryModelLoad(
        self, request: pb.RepositoryModelLoadRequest, context: grpc.aio.ServicerContext
    ) -> pb.RepositoryModelLoadResponse:
        """Load a model as it is in the repository now."""
        _check_repository(request.repository_name)
        if request.parameters:
            names = ", ".join(repr(name[:64]) for name in list(request.parameters)[:8])
            raise InvalidInput(
                f"models are loaded as they are in the repository; leave out the parameters {names}"
            )
        await self._control.load(request.model_name)
        return pb.RepositoryModelLoadResponse()

    async def RepositoryModelUnload(
        self, request: pb.RepositoryModelUnloadRequest, context: grpc.aio.ServicerContext
    ) -> pb.RepositoryModelUnloadResponse:
        """Unload all versions of a model; none has dependents, so the parameter about those says nothing."""
        _check_repository(request.repository_name)
        await self._control.unload(request.model_name)
        return pb.RepositoryModelUnloadResponse()


def _check_repository(name: str) -> None:
    if name:
        raise InvalidInput(f"no repository {name[:64]!r}: this server has one, leave repository_name empty")


def _read_input(spec: InputSpec, request: pb.ModelInferRequest) -> np.ndarray:
    if len(request.inputs) != 1 or request.inputs[0].name != INPUT_NAME:
        names = ", ".join(repr(tensor.name[:64]) for tensor in request.inputs[:8]) or "none"
        raise InvalidInput(f"the model takes one input, {INPUT_NAME!r}; got {names}")
    tensor = request.inputs[0]
    check_dtype(spec, _DTYPES.get(tensor.datatype) or f"of datatype {tensor.datatype[:64]!r}")
    if request.raw_input_contents:
        if len(request.raw_input_contents) != 1:
            entries = len(request.raw_input_contents)
            raise InvalidInput(f"raw_input_contents has {entries} entries for 1 input")
        if tensor.HasField("contents"):
            raise InvalidInput("the input has both contents and raw_input_contents; set one of them")
        return from_bytes(spec, tensor.shape, request.raw_input_contents[0])
    contents = tensor.contents
    numbers: Sequence[float] = contents.uint_contents if spec.dtype == "uint8" else contents.fp32_contents
    return from_numbers(spec, tensor.shape, numbers)


def _requested_outputs(request: pb.ModelInferRequest, manifest: Manifest) -> list[str]:
    names = [output.name for output in request.outputs] or list(manifest.outputs)
    for name in names:
        if name not in manifest.outputs:
            hint = "; serve one exported with: nvisa-train export --with-novelty" if name == NOVELTY else ""
            raise InvalidInput(f"no output {name[:64]!r}; the model has {', '.join(manifest.outputs)}{hint}")
    if len(set(names)) != len(names):
        raise InvalidInput("an output is asked for twice")
    return names


def _write_outputs(
    request: pb.ModelInferRequest, manifest: Manifest, outputs: dict[str, np.ndarray]
) -> pb.ModelInferResponse:
    reply = pb.ModelInferResponse(
        model_name=manifest.name, model_version=str(manifest.version), id=request.id
    )
    for name, values in outputs.items():
        tensor = reply.outputs.add(name=name, datatype=_OUTPUT_DATATYPES[name], shape=values.shape)
        # The answer takes the form of the question; common clients can read no other.
        if request.raw_input_contents:
            little_endian = values.dtype.newbyteorder("<")
            reply.raw_output_contents.append(values.astype(little_endian, copy=False).tobytes())
        elif name == CLUSTER:
            tensor.contents.int64_contents.extend(values.tolist())
        else:
            tensor.contents.fp32_contents.extend(values.ravel().tolist())
    return reply


def _version(text: str) -> tuple[int, str]:
    """Return the version or the label that ``text`` names; 0 and nothing if it is empty."""
    if not text:
        return 0, ""
    if text in LABELS:
        return 0, text
    number = parse_version(text)
    if number is None:
        raise UnknownModel(f"no version {text[:64]!r}; versions are positive integers, or a label")
    return number, ""


def _package_version() -> str:
    try:
        return version("nvisa")
    except PackageNotFoundError:  # run from a checkout
        return "unknown"
