"""The synchronous client."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from types import TracebackType
from typing import TYPE_CHECKING, Self

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

from serving.client.channel import (
    COMPRESSIONS,
    DEFAULT_TIMEOUT,
    MAX_MESSAGE_BYTES,
    Compression,
    channel_options,
)
from serving.client.messages import (
    READINESS_SERVICE,
    AssignResult,
    Health,
    ModelInfo,
    Version,
    assign_request,
    assign_result,
    is_small,
    model_info,
    model_request,
    new_request_id,
    slices,
)
from serving.client.rows import as_rows
from serving.client.security import PLAINTEXT, Security, TokenSource
from serving.client.status import ClusterServiceError
from serving.client.streaming import Requests, Stream
from serving.pb.nvisa.v1 import cluster_pb2 as pb
from serving.pb.nvisa.v1 import cluster_pb2_grpc as rpc

if TYPE_CHECKING:
    from serving.client.rows import Rows

_CALLS_IN_FLIGHT = 4


class ClusterClient:
    """Asks a server which clusters rows are in. Safe to share between threads; close it after use.

    Calls are repeated by themselves while the server is unavailable or overloaded: up to five attempts,
    with backoff or as the server asks.

    Parameters
    ----------
    target
        ``host:port``, or any other gRPC target. Calls go round all its addresses, as of a headless Service.
    security
        TLS and token; by default plaintext without one.
    max_message_bytes
        Largest message to send or take.
    compression
        ``"gzip"`` or ``"deflate"`` what is sent: for slow networks alone, as it costs more than the model.

    Raises
    ------
    SecurityError
        If a certificate or token cannot be used, or a token would be sent in plaintext to another machine.

    Examples
    --------
    >>> with ClusterClient("localhost:8001") as client:  # doctest: +SKIP
    ...     clusters = client.assign(x, model="digits").clusters
    """

    def __init__(
        self,
        target: str,
        *,
        security: Security = PLAINTEXT,
        max_message_bytes: int = MAX_MESSAGE_BYTES,
        compression: Compression = "none",
    ) -> None:
        self.target = target
        self._max_message_bytes = max_message_bytes
        options = channel_options(max_message_bytes) + security.channel_options(target)
        credentials = security.credentials()
        self._security = security
        self._token = TokenSource(security)
        if credentials is None:
            self._channel = grpc.insecure_channel(target, options, compression=COMPRESSIONS[compression])
        else:
            self._channel = grpc.secure_channel(
                target, credentials, options, compression=COMPRESSIONS[compression]
            )
        self._clusters = rpc.ClusterServiceStub(self._channel)
        self._health = health_pb2_grpc.HealthStub(self._channel)

    def assign(
        self,
        x: Rows,
        *,
        model: str,
        version: Version = None,
        probabilities: bool = False,
        novelty: bool = False,
        request_id: str | None = None,
        timeout: float = DEFAULT_TIMEOUT,
    ) -> AssignResult:
        """Assign rows to clusters.

        Large arrays are sent in several calls, all to the same version of the model.

        Parameters
        ----------
        x
            ``(n_rows, *row_shape)``: uint8, or a float type, which is sent as float32. Or an Arrow table or
            array, or a list of images, PIL's or encoded: see `serving.client.rows.as_rows`.
        model, version
            Name of the model, and its version: a number, or a label such as ``"canary"``. Without, the
            server's default answers, or its canary for a share of the calls; all rows get the same.
        probabilities
            Also return the probability of every cluster.
        novelty
            Also return how unlike the training data each row is; the server refuses unless the model says it,
            `ModelInfo.has_novelty`.
        request_id
            By which the server's log and traces name the call, or all calls if it takes several; a new
            random one without.
        timeout
            Seconds that each call may take, its repetitions included.

        Raises
        ------
        ClusterServiceError
            If the server refuses or cannot be reached.
        ValueError
            If ``x`` does not make up rows that can be sent; the first bad one is named.
        """
        rows, columns = as_rows(x)
        request_id = new_request_id() if request_id is None else request_id
        parts = [slice(None)]
        if not is_small(rows, columns):
            info = self._model(model_request(model, version, request_id), timeout)
            parts, version = slices(rows, columns, info, self._max_message_bytes), info.version
        replies: list[pb.AssignResponse] = []
        pending: deque[grpc.Future] = deque()
        with self._errors():
            try:
                for part in parts:
                    if len(pending) == _CALLS_IN_FLIGHT:
                        replies.append(pending.popleft().result())
                    request = assign_request(
                        rows[part], columns, model, version, probabilities, novelty, request_id
                    )
                    pending.append(
                        self._clusters.Assign.future(
                            request, timeout=timeout, metadata=self._token.metadata()
                        )
                    )
                while pending:
                    replies.append(pending.popleft().result())
            finally:
                for call in pending:
                    call.cancel()
        return assign_result(replies)

    def assign_stream(
        self,
        batches: Iterable[Rows],
        *,
        model: str,
        version: Version = None,
        probabilities: bool = False,
        novelty: bool = False,
        timeout: float | None = None,
    ) -> Iterator[AssignResult | ClusterServiceError]:
        """Assign batch after batch over one call, each as soon as the server has room for it.

        A full queue holds the stream back instead of failing it, and neither side holds more than a few
        batches. If the server goes away or drains, another call goes on with what has no answer yet.

        Parameters
        ----------
        batches
            Arrays as for `assign`, each within one message. They are drawn in a thread of gRPC's.
        model, version, probabilities, novelty
            As for `assign`. Without a version, a new default of the server answers from when it is there;
            whether a canary answers is decided once for the whole stream.
        timeout
            Seconds for everything; by default as long as it takes.

        Yields
        ------
        AssignResult or ClusterServiceError
            One for each batch, in their order: what the server says of it, or why it refused it. A refused
            batch does not stop the others.

        Raises
        ------
        ClusterServiceError
            If the server cannot be reached, in five attempts without an answer, or time is up.
        """
        end = None if timeout is None else time.monotonic() + timeout

        def message(x: Rows) -> pb.AssignRequest:
            return assign_request(*as_rows(x), model, version, probabilities, novelty)

        stream = Stream(message, self.target)
        requests = Requests(stream, iter(batches))
        while True:
            left = None if end is None else end - time.monotonic()
            metadata = (*self._token.metadata(), *stream.metadata)
            call = self._clusters.AssignStream(requests(), timeout=left, metadata=metadata)
            try:
                for reply in call:
                    yield from stream.answered(reply)
            except grpc.RpcError:
                pass  # the call has the code
            finally:
                call.cancel()
            if requests.failure is not None:
                raise requests.failure
            if stream.is_done(call.code()):
                return
            time.sleep(stream.pause(call.code(), call.details()))

    def models(self, *, timeout: float = DEFAULT_TIMEOUT) -> list[ModelInfo]:
        """Every model and version that the server has, sorted.

        Raises
        ------
        ClusterServiceError
            If the server cannot be reached.
        """
        with self._errors():
            reply = self._clusters.ListModels(
                pb.ListModelsRequest(), timeout=timeout, metadata=self._token.metadata()
            )
        return [model_info(model, reply.limits) for model in reply.models]

    def model(self, name: str, *, version: Version = None, timeout: float = DEFAULT_TIMEOUT) -> ModelInfo:
        """One model, by default in the version that answers calls which name none.

        Raises
        ------
        ClusterServiceError
            If there is no such model, version or label (``NOT_FOUND``), or the server cannot be reached.
        """
        return self._model(model_request(name, version), timeout)

    def health(self, *, timeout: float = 5.0) -> Health:
        """Ask the server for its health; never repeated.

        Raises
        ------
        ClusterServiceError
            If the server cannot be reached.
        """
        return Health(alive=self._serving("", timeout), ready=self._serving(READINESS_SERVICE, timeout))

    def close(self) -> None:
        """Close the channel; calls in flight are cancelled."""
        self._channel.close()

    def __enter__(self) -> Self:
        """Return the client itself."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close the channel."""
        self.close()

    def _model(self, request: pb.GetModelRequest, timeout: float) -> ModelInfo:
        with self._errors():
            reply = self._clusters.GetModel(request, timeout=timeout, metadata=self._token.metadata())
        return model_info(reply.model, reply.limits)

    def _serving(self, service: str, timeout: float) -> bool:
        with self._errors():
            request = health_pb2.HealthCheckRequest(service=service)
            reply = self._health.Check(request, timeout=timeout, metadata=self._token.metadata())
        return bool(reply.status == health_pb2.HealthCheckResponse.SERVING)

    @contextmanager
    def _errors(self) -> Iterator[None]:
        try:
            yield
        except grpc.RpcError as error:
            raise ClusterServiceError.of(error, self.target, self._security) from error
