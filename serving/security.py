"""What guards the gRPC port: certificates and tokens, as the settings say, and their reloading."""

from __future__ import annotations

import asyncio
from typing import Any

import grpc

from serving.metrics import Metrics
from serving.reloading import Reloaded
from serving.settings import ServerSettings
from serving.tokens import Tokens, parse_tokens


class Security:
    """Certificates and tokens of a server, read when it is made.

    Parameters
    ----------
    settings
        Where the files are.
    metrics
        Where expiry and reloads show.

    Attributes
    ----------
    tokens
        The tokens in force, or ``None`` if callers need none.
    credentials
        For the gRPC port; ``None`` is plaintext.

    Raises
    ------
    StartError
        If a file cannot be used.
    """

    def __init__(self, settings: ServerSettings, metrics: Metrics) -> None:
        self._seconds = settings.reload_seconds
        self._files: list[Reloaded[Any]] = []
        self._mutual = settings.tls_client_ca is not None
        self.tokens: Reloaded[Tokens] | None = None
        self.credentials: grpc.ServerCredentials | None = None
        if settings.token_file is not None:
            self.tokens = Reloaded("tokens", [settings.token_file], lambda read: parse_tokens(*read), metrics)
            self._files.append(self.tokens)
        if settings.tls_certificate is not None:
            # Imported here: a server without TLS neither waits for it nor keeps it in memory.
            from serving.certificates import ServerTls

            tls = ServerTls(settings, metrics)
            self.credentials = tls.credentials()
            self._files.append(tls.files)

    def describe(self) -> dict[str, str]:
        """Return what is in force, for the log."""
        tls = ("mutual" if self._mutual else "server") if self.credentials is not None else "off"
        return {"tls": tls, "tokens": "off" if self.tokens is None else "required"}

    def watch(self) -> list[asyncio.Task[None]]:
        """Start to look for changed files; the tasks end only when they are cancelled."""
        return [
            asyncio.create_task(files.watch(self._seconds), name=f"watch of {files.what}")
            for files in self._files
        ]
