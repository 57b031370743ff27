"""A port that several processes will share, held for them before they are there."""

from __future__ import annotations

import errno
import socket

from serving.start_error import StartError


class ReservedPort:
    """A TCP port that is bound and does not listen: workers bind it as well, by ``SO_REUSEPORT``, and listen.

    The system hands new connections only to those that listen. As long as this is open nobody gets the port
    who does not share it on purpose, also while all workers are being started again.

    Parameters
    ----------
    host
        A name or address of this machine.
    port
        0 takes any free one.
    flag
        The setting that says it, for messages.

    Attributes
    ----------
    port
        Which it is.

    Raises
    ------
    StartError
        If the port cannot be had.
    """

    def __init__(self, host: str, port: int, flag: str) -> None:
        if not hasattr(socket, "SO_REUSEPORT"):
            raise StartError("--workers: this system cannot share a port between processes; pass --workers 1")
        try:
            family, *_, address = socket.getaddrinfo(
                host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
            )[0]
            # A port that others share, such as another server with workers, must not be joined by mistake:
            # it is taken for oneself alone first. Not while connections of earlier days are still winding up.
            with socket.socket(family) as alone:
                alone.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                alone.bind(address)
                port = alone.getsockname()[1]
            self._socket = socket.socket(family)
            self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
            self._socket.bind((address[0], port, *address[2:]))
        except OSError as error:
            why = "the port is taken" if error.errno == errno.EADDRINUSE else error.strerror or str(error)
            raise StartError(
                f"cannot listen on {host}:{port} (gRPC): {why}; pass another {flag} or --host"
            ) from error
        self.port = port

    def close(self) -> None:
        """Give it up."""
        self._socket.close()
