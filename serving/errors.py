"""What can go wrong with a request, and the status its caller then sees, in one table."""

from __future__ import annotations

import logging
import uuid
from dataclasses import dataclass

import grpc

log = logging.getLogger(__name__)


class ServingError(Exception):
    """A request cannot be answered; the message says what was wrong and what to do, and may be shown."""


class InvalidInput(ServingError):
    """Wrong dtype, rank, shape or byte count, NaN or infinity, an empty batch."""


class UnknownModel(ServingError):
    """No such model, or no such version of it."""


class NotReady(ServingError):
    """The model is still loading, or the server is draining; another try may succeed.

    Parameters
    ----------
    message
        What the caller reads.
    retry_after
        Seconds after which another try makes sense; ``None`` at once, as another server may answer.
    """

    def __init__(self, message: str, retry_after: float | None = None) -> None:
        super().__init__(message)
        self.retry_after = retry_after


class Unauthenticated(ServingError):
    """The caller shows no token, or one that is not known."""


class Forbidden(ServingError):
    """The caller's token is known, and not good for this method."""


class Refused(ServingError):
    """What an administrator asks for cannot be done; another try helps only once something has changed."""


class DeadlinePassed(ServingError):
    """The caller's deadline passed while its rows waited; they were not computed."""


class Overloaded(ServingError):
    """The queue is full.

    Parameters
    ----------
    message
        What the caller reads.
    retry_after
        Seconds after which another try makes sense; sent as pushback to the client's retry policy.
    """

    def __init__(self, message: str, retry_after: float) -> None:
        super().__init__(message)
        self.retry_after = retry_after


# A message over the size limit never gets here: gRPC refuses it, with RESOURCE_EXHAUSTED as well.
STATUS_CODES: dict[type[ServingError], grpc.StatusCode] = {
    InvalidInput: grpc.StatusCode.INVALID_ARGUMENT,
    UnknownModel: grpc.StatusCode.NOT_FOUND,
    NotReady: grpc.StatusCode.UNAVAILABLE,
    Overloaded: grpc.StatusCode.RESOURCE_EXHAUSTED,
    Refused: grpc.StatusCode.FAILED_PRECONDITION,
    DeadlinePassed: grpc.StatusCode.DEADLINE_EXCEEDED,
    Unauthenticated: grpc.StatusCode.UNAUTHENTICATED,
    Forbidden: grpc.StatusCode.PERMISSION_DENIED,
}


@dataclass(frozen=True)
class Status:
    """A failed call as gRPC reports it."""

    code: grpc.StatusCode
    message: str
    trailers: tuple[tuple[str, str], ...] = ()


def status_of(error: Exception, method: str, request_id: str = "") -> Status:
    """Return the status that ``error`` gives its caller, by the table above.

    Anything that is not a `ServingError` is INTERNAL: the caller reads only an id, under which the log
    has the details.
    """
    if isinstance(error, ServingError):
        return Status(STATUS_CODES[type(error)], str(error), _trailers(error))
    error_id = uuid.uuid4().hex
    log.error(
        "request failed",
        exc_info=error,
        extra={"error_id": error_id, "method": method, "request_id": request_id},
    )
    return Status(grpc.StatusCode.INTERNAL, f"internal error {error_id}; the server's log has the details")


def _trailers(error: ServingError) -> tuple[tuple[str, str], ...]:
    if isinstance(error, (Overloaded, NotReady)) and error.retry_after is not None:
        return (("grpc-retry-pushback-ms", str(max(1, round(error.retry_after * 1000)))),)
    return ()
