"""The gRPC port: every service on one server, within the message limits."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import grpc

from serving import grpc_assign, grpc_inference, health
from serving.errors import StartError
from serving.metrics import Metrics
from serving.pb.nvisa.v1 import cluster_pb2
from serving.repository import Repository
from serving.rpc import service_handler
from serving.settings import ServerSettings

if TYPE_CHECKING:
    from serving.tracing import Tracing

SERVICES = (grpc_assign.SERVICE.full_name, grpc_inference.SERVICE.full_name)


def build_grpc_server(
    settings: ServerSettings,
    repository: Repository,
    metrics: Metrics,
    health_service: health.HealthService,
    is_ready: Callable[[], bool],
    tracing: Tracing | None = None,
) -> grpc.aio.Server:
    """Put all services on a server that does not listen yet."""
    server = grpc.aio.server(
        options=[
            ("grpc.max_receive_message_length", settings.max_message_bytes),
            ("grpc.max_send_message_length", settings.max_message_bytes),
            # Without this a second server would share the port without a word.
            ("grpc.so_reuseport", 0),
        ]
    )
    limits = cluster_pb2.Limits(
        max_message_bytes=settings.max_message_bytes,
        max_queue_rows=settings.max_queue_rows,
        max_batch_rows=settings.max_batch_rows,
    )
    cluster_service = grpc_assign.ClusterService(repository, limits)
    inference_service = grpc_inference.InferenceService(repository, is_ready)
    server.add_generic_rpc_handlers(
        (
            service_handler(grpc_assign.SERVICE, cluster_service, metrics, tracing),
            service_handler(grpc_inference.SERVICE, inference_service, metrics, tracing),
        )
    )
    health.add_to_server(health_service, server)
    if settings.reflection:
        from grpc_reflection.v1alpha import reflection

        names = (*SERVICES, health.SERVICE_NAME, reflection.SERVICE_NAME)
        reflection.enable_server_reflection(names, server)
    return server


def listen(server: grpc.aio.Server, host: str, port: int) -> int:
    """Bind ``server``, and return the port; 0 takes any free one.

    Raises
    ------
    StartError
        If the port cannot be had.
    """
    address = f"[{host}]" if ":" in host else host
    try:
        return int(server.add_insecure_port(f"{address}:{port}"))
    except RuntimeError as error:
        raise StartError(
            f"cannot listen on {host}:{port} (gRPC): the port is taken, or the address is not this "
            "machine's; pass another --grpc-port or --host"
        ) from error
