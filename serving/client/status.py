"""How a failed call reaches the caller."""

from __future__ import annotations

from typing import Any

import grpc

from serving.client.messages import ModelInfo


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
    request_id
        Under which the server's log has the call; empty if the call never reached it.
    """

    def __init__(self, code: grpc.StatusCode, message: str, target: str, request_id: str = "") -> None:
        super().__init__(f"{target}: {code.name}: {message}")
        self.code = code
        self.message = message
        self.target = target
        self.request_id = request_id

    @classmethod
    def of(cls, error: grpc.RpcError, target: str) -> ClusterServiceError:
        """Make one of what gRPC raised, sync or asyncio."""
        trailers: Any = error.trailing_metadata() or ()  # the stubs do not know that entries are pairs
        ids = [str(value) for key, value in trailers if key == "x-request-id"]
        request_id = ids[0] if ids else ""
        return cls(error.code(), error.details() or "no details", target, request_id)


def refuse_unready(info: ModelInfo, target: str) -> None:
    """Raise `ClusterServiceError` unless ``info`` is of a model that answers; otherwise it is mostly empty.

    The code is that of a call that comes too early, UNAVAILABLE: another try may succeed.
    """
    if info.state != "ready":
        why = f": {info.state_reason}" if info.state_reason else "; try again soon"
        message = f"model {info.name} version {info.version} is {info.state}{why}"
        raise ClusterServiceError(grpc.StatusCode.UNAVAILABLE, message, target)
