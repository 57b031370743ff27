"""How a failed call reaches the caller."""

from __future__ import annotations

from typing import Any

import grpc

from serving.client.messages import ModelInfo
from serving.client.security import Security

# What gRPC says of a connection that failed, and what that means; the first that is found counts.
_HINTS = {
    "CERTIFICATE_VERIFY_FAILED: certificate has expired": "the server's certificate has expired",
    "CERTIFICATE_VERIFY_FAILED": "the server's certificate is not signed by an authority that this client "
    "trusts; pass the file of the right one (--ca)",
    "Hostname Verification Check failed": "the server's certificate is for other names than this one; call "
    "the server by a name that is in it",
    "WRONG_VERSION_NUMBER": "the server does not speak TLS there; leave out --tls, --ca and --cert",
}
_UNREACHED = ("failed to connect", "connections to all backends failing")
_CLOSED = ("Socket closed", "Connection reset by peer", "TLSV1_ALERT", "SSLV3_ALERT", "TLSV13_ALERT")


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
    def of(cls, error: grpc.RpcError, target: str, security: Security) -> ClusterServiceError:
        """Make one of what gRPC raised, sync or asyncio."""
        code, details = error.code(), error.details() or "no details"
        hint = _hint(code, details, security)
        trailers: Any = error.trailing_metadata() or ()  # the stubs do not know that entries are pairs
        ids = [str(value) for key, value in trailers if key == "x-request-id"]
        return cls(code, f"{hint} ({details})" if hint else details, target, ids[0] if ids else "")


def _hint(code: grpc.StatusCode, details: str, security: Security) -> str:
    """Return what to do about TLS or the token, or ``""`` if they are not what failed."""
    if code is grpc.StatusCode.UNAUTHENTICATED and not security.has_token:
        return "the server asks for a token; pass the file that holds yours (--token-file)"
    if code is not grpc.StatusCode.UNAVAILABLE or not any(said in details for said in _UNREACHED):
        return ""
    for said, meaning in _HINTS.items():
        if said in details:
            return meaning
    if not any(said in details for said in _CLOSED):
        return ""
    if not security.uses_tls:
        return "the server closed the connection; if it speaks TLS, pass --tls or --ca"
    if security.cert is None:
        return (
            "the server closed the connection; if it asks for a client's certificate, pass --cert and --key"
        )
    return "the server closed the connection; it may not trust this client's certificate, or it expired"


def refuse_unready(info: ModelInfo, target: str) -> None:
    """Raise `ClusterServiceError` unless ``info`` is of a model that answers; otherwise it is mostly empty.

    The code is that of a call that comes too early, UNAVAILABLE: another try may succeed.
    """
    if info.state != "ready":
        why = f": {info.state_reason}" if info.state_reason else "; try again soon"
        message = f"model {info.name} version {info.version} is {info.state}{why}"
        raise ClusterServiceError(grpc.StatusCode.UNAVAILABLE, message, target)
