"""Channel settings: message sizes, compression, what is retried, and how calls spread over servers."""

from __future__ import annotations

import json
from typing import Literal

import grpc

MAX_MESSAGE_BYTES = 64 << 20
DEFAULT_TIMEOUT = 60.0

Compression = Literal["none", "deflate", "gzip"]
COMPRESSIONS: dict[Compression, grpc.Compression] = {
    "none": grpc.Compression.NoCompression,
    "deflate": grpc.Compression.Deflate,
    "gzip": grpc.Compression.Gzip,
}

# Assigning changes nothing on the server, so every call may be repeated. gRPC waits as long as the server's
# `grpc-retry-pushback-ms` says, or else backs off exponentially with jitter; it makes at most 5 attempts,
# within the call's deadline. CANCELLED is what the core of a server that stops says of calls that it has read
# and the server not yet taken; what a caller cancels itself is not repeated. Calls go round all addresses of
# the target, a headless Service's pods, and past those that do not answer; gRPC itself would stay with the
# first.
_SERVICE_CONFIG = {
    "loadBalancingConfig": [{"round_robin": {}}],
    "methodConfig": [
        {
            "name": [{"service": "nvisa.v1.ClusterService"}],
            "retryPolicy": {
                "maxAttempts": 5,
                "initialBackoff": "0.1s",
                "maxBackoff": "2s",
                "backoffMultiplier": 2,
                "retryableStatusCodes": ["UNAVAILABLE", "RESOURCE_EXHAUSTED", "CANCELLED"],
            },
        },
        # A stream is continued by the client, which knows what has been answered.
        {"name": [{"service": "nvisa.v1.ClusterService", "method": "AssignStream"}]},
    ],
}


def channel_options(max_message_bytes: int = MAX_MESSAGE_BYTES) -> list[tuple[str, str | int]]:
    """Options of a channel that sends and takes messages of up to ``max_message_bytes``."""
    return [
        ("grpc.max_send_message_length", max_message_bytes),
        ("grpc.max_receive_message_length", max_message_bytes),
        ("grpc.service_config", json.dumps(_SERVICE_CONFIG)),
        ("grpc.enable_retries", 1),
        # A server that comes up, or back, is noticed as soon as a repeated call would; gRPC's own pauses
        # between attempts to connect begin at one second and grow to two minutes.
        ("grpc.initial_reconnect_backoff_ms", 100),
        ("grpc.max_reconnect_backoff_ms", 2000),
        # A call is only repeated while its request fits in this buffer; the default is 256 KiB.
        ("grpc.per_rpc_retry_buffer_size", max_message_bytes),
    ]
