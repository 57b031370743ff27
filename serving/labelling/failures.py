"""How the job fails, and with which exit status: the one table."""

from __future__ import annotations

import grpc

from serving.bundle import BundleError
from serving.client import ClusterServiceError, SecurityError
from serving.configuration import InvalidSettings
from serving.engine import EngineError
from serving.readers import DataError

DONE = 0
RETRY = 1
NEVER_RETRY = 42

_HOPELESS_CODES = frozenset(
    {
        grpc.StatusCode.INVALID_ARGUMENT,
        grpc.StatusCode.NOT_FOUND,
        grpc.StatusCode.PERMISSION_DENIED,
        grpc.StatusCode.UNAUTHENTICATED,
        grpc.StatusCode.UNIMPLEMENTED,
    }
)


class LabellingError(Exception):
    """The job cannot do what was asked, and a retry would not help; the message says what to do instead."""


class Stopped(Exception):
    """A signal asked the job to stop; what is finished stays, and ``--resume`` goes on from there.

    Attributes
    ----------
    signal_number
        Which signal.
    """

    def __init__(self, signal_number: int) -> None:
        super().__init__(f"stopped by signal {signal_number}; run again with --resume to go on")
        self.signal_number = signal_number


_HOPELESS = (
    *(LabellingError, DataError, BundleError, InvalidSettings, SecurityError),
    *(FileExistsError, NotADirectoryError, IsADirectoryError, PermissionError),
)
# Their message says it all; anything else is a fault of the program, and needs its traceback.
FORESEEN = (*_HOPELESS, Stopped, ClusterServiceError, EngineError, OSError)


def exit_status(error: Exception) -> int:
    """Exit status for ``error``: 42 if no retry can help, 128 + signal if stopped, 1 otherwise."""
    if isinstance(error, Stopped):
        return 128 + error.signal_number
    if isinstance(error, ClusterServiceError):
        return NEVER_RETRY if error.code in _HOPELESS_CODES else RETRY
    return NEVER_RETRY if isinstance(error, _HOPELESS) else RETRY
