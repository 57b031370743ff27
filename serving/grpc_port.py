"""The gRPC port: every service on one server, within the message limits; and the port for probes."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import TYPE_CHECKING

import grpc

from serving import grpc_assign, grpc_inference, health
from serving.auth import Authenticator
from serving.metrics import Metrics
from serving.model_control import ModelControl
from serving.pb.nvisa.v1 import cluster_pb2
from serving.reloading import Reloaded
from serving.repository import Repository
from serving.rpc import Shed, service_handler
from serving.settings import ServerSettings
from serving.start_error import StartError
from serving.tokens import Tokens

if TYPE_CHECKING:
    from serving.tracing import Tracing

SERVICES = (grpc_assign.SERVICE.full_name, grpc_inference.SERVICE.full_name)
REFLECTION_SERVICE = "grpc.reflection.v1alpha.ServerReflection"
# A health check names a service; whoever sends more wants something else.
_HEALTH_MESSAGE_BYTES = 4096


def build_grpc_server(
    settings: ServerSettings,
    repository: Repository,
    control: ModelControl,
    metrics: Metrics,
    health_service: health.HealthService,
    is_ready: Callable[[], bool],
    draining: asyncio.Event,
    tokens: Reloaded[Tokens] | None = None,
    tracing: Tracing | None = None,
) -> grpc.aio.Server:
    """Put all services on a server that does not listen yet.

    ``draining`` ends calls that stream; with ``tokens``, callers must show one.
    """
    server = grpc.aio.server(
        interceptors=[_authenticator(settings, tokens, metrics)] if tokens is not None else None,
        options=[
            ("grpc.max_receive_message_length", settings.max_message_bytes),
            ("grpc.max_send_message_length", settings.max_message_bytes),
            *_pending_calls(settings.max_pending_calls),
            *_connection_age(settings.max_connection_age),
            _sharing(settings),
        ],
    )
    limits = cluster_pb2.Limits(
        max_message_bytes=settings.max_message_bytes,
        max_queue_rows=settings.max_queue_rows,
        max_batch_rows=settings.max_batch_rows,
    )
    cluster_service = grpc_assign.ClusterService(repository, limits, metrics, draining)
    shed = Shed(("Assign", "ModelInfer"), repository.overload)
    inference_service = grpc_inference.InferenceService(repository, is_ready, control)
    server.add_generic_rpc_handlers(
        (
            service_handler(grpc_assign.SERVICE, cluster_service, metrics, tracing, shed),
            service_handler(grpc_inference.SERVICE, inference_service, metrics, tracing, shed),
        )
    )
    health.add_to_server(health_service, server)
    if settings.reflection:
        from grpc_reflection.v1alpha import reflection

        assert reflection.SERVICE_NAME == REFLECTION_SERVICE
        names = (*SERVICES, health.SERVICE_NAME, reflection.SERVICE_NAME)
        reflection.enable_server_reflection(names, server)
    return server


def build_health_server(settings: ServerSettings, health_service: health.HealthService) -> grpc.aio.Server:
    """Put the health service alone on a server: kubelet's probes speak neither TLS nor tokens."""
    limit = ("grpc.max_receive_message_length", _HEALTH_MESSAGE_BYTES)
    server = grpc.aio.server(options=[limit, _sharing(settings)])
    health.add_to_server(health_service, server)
    return server


def listen(
    server: grpc.aio.Server,
    host: str,
    port: int,
    credentials: grpc.ServerCredentials | None = None,
    flag: str = "--grpc-port",
) -> int:
    """Bind ``server``, and return the port; 0 takes any free one. Plaintext without ``credentials``.

    Raises
    ------
    StartError
        If the port cannot be had.
    """
    address = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
    try:
        if credentials is None:
            return int(server.add_insecure_port(address))
        return int(server.add_secure_port(address, credentials))
    except RuntimeError as error:
        raise StartError(
            f"cannot listen on {host}:{port} (gRPC): the port is taken, or the address is not this "
            f"machine's; pass another {flag} or --host"
        ) from error


def _pending_calls(most: int) -> list[tuple[str, int]]:
    """Let up to ``most`` calls wait to be read, of a burst a quarter for sure, and fewer under overload.

    Between the two limits gRPC turns calls away at random, with a probability that grows from 0 to 1. At
    twice the peak those that wait then settle between, where with one limit they stay at it, and the calls
    behind them wait as long as it takes to read all of them.
    """
    return [
        ("grpc.server.max_pending_requests", max(1, most // 4)),
        ("grpc.server.max_pending_requests_hard_limit", most),
    ]


def _connection_age(seconds: float) -> list[tuple[str, int]]:
    # Calls in flight end in peace: gRPC gives them all the time they take.
    return [("grpc.max_connection_age_ms", max(1, round(seconds * 1000)))] if seconds else []


def _sharing(settings: ServerSettings) -> tuple[str, int]:
    # Workers share their ports, which the supervisor has made sure are nobody else's. Without this option a
    # second server would share the port of the first without a word.
    return "grpc.so_reuseport", int(settings.workers > 1)


def _authenticator(settings: ServerSettings, tokens: Reloaded[Tokens], metrics: Metrics) -> Authenticator:
    described = (grpc_assign.SERVICE, grpc_inference.SERVICE)
    methods = [f"{service.full_name}/{method.name}" for service in described for method in service.methods]
    open_services = set()
    if not settings.health_needs_token:
        open_services.add(health.SERVICE_NAME)
    if not settings.reflection_needs_token:
        open_services.add(REFLECTION_SERVICE)
    return Authenticator(tokens, methods, open_services, metrics)
