"""The Python client of `nvisa.v1`: `ClusterClient`, and `AsyncClusterClient` for asyncio.

It needs numpy, grpcio, grpcio-health-checking and protobuf, and nothing of the server.
"""

from serving.client.aio import AsyncClusterClient
from serving.client.messages import AssignResult, Health, ModelInfo
from serving.client.security import Security, SecurityError
from serving.client.status import ClusterServiceError
from serving.client.sync import ClusterClient

__all__ = [
    "AssignResult",
    "AsyncClusterClient",
    "ClusterClient",
    "ClusterServiceError",
    "Health",
    "ModelInfo",
    "Security",
    "SecurityError",
]
