"""How a failed call reaches the caller."""

from __future__ import annotations

import grpc


class ClusterServiceError(Exception):
    """The server refused a call, or could not be reached.

    Attributes
    ----------
    code
        gRPC status: ``INVALID_ARGUMENT`` if the input does not fit the model, ``NOT_FOUND`` if there is no
        such model, ``UNAVAILABLE`` if no ready server was reached, and so on.
    message
        What the server said.
    target
        The server's address.
    """

    def __init__(self, code: grpc.StatusCode, message: str, target: str) -> None:
        super().__init__(f"{target}: {code.name}: {message}")
        self.code = code
        self.message = message
        self.target = target

    @classmethod
    def of(cls, error: grpc.RpcError, target: str) -> ClusterServiceError:
        """Make one of what gRPC raised, sync or asyncio."""
        return cls(error.code(), error.details() or "no details", target)
