"""Why a server cannot start. Apart from the other errors, which need gRPC: a supervisor does not."""

from __future__ import annotations


class StartError(RuntimeError):
    """The server cannot start; the message says why and what to do."""
