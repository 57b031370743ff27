"""What a client shows and trusts: TLS, a certificate of its own, a token."""

from __future__ import annotations

import os
import ssl
from dataclasses import dataclass, field
from pathlib import Path

import grpc

from serving.addresses import target_is_local

Option = tuple[str, str | int]

# Those of `serving.tokens.Role`, which wants packages of the server.
_ROLES = (b"inference:", b"admin:")


class SecurityError(ValueError):
    """A certificate or token cannot be used, or would be sent in plaintext; the message says what to do."""


@dataclass(frozen=True)
class Security:
    """How to talk to a server; plaintext and without a token by default.

    Attributes
    ----------
    tls
        Whether to use TLS; so do ``ca`` and ``cert``.
    ca
        PEM file of the authorities to trust for the server's certificate, in place of gRPC's own list.
    cert, key
        PEM files: the client's certificate with its chain, and its private key, for servers that ask.
    token_file
        File that holds the token alone; read again when it changes.
    token
        The token itself, in place of the file.
    allow_insecure_token
        Send the token also in plaintext to other machines.
    """

    tls: bool = False
    ca: Path | None = None
    cert: Path | None = None
    key: Path | None = None
    token_file: Path | None = None
    token: str | None = field(default=None, repr=False)
    allow_insecure_token: bool = False

    @property
    def uses_tls(self) -> bool:
        """Whether the channel is encrypted."""
        return self.tls or self.ca is not None or self.cert is not None

    def credentials(self) -> grpc.ChannelCredentials | None:
        """Return TLS credentials, or ``None`` for plaintext.

        Raises
        ------
        SecurityError
            If a file cannot be used: gRPC would only fail to connect, for a reason it does not give.
        """
        if (self.cert is None) != (self.key is None):
            raise SecurityError("a certificate and its key go together; pass both (--cert and --key)")
        if not self.uses_tls:
            return None
        ca, cert, key = (_read(path) for path in (self.ca, self.cert, self.key))
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        if ca is not None:
            try:
                context.load_verify_locations(cadata=ca.decode("ascii"))
            except (ssl.SSLError, UnicodeDecodeError, ValueError) as error:
                raise SecurityError(f"{self.ca}: no PEM certificates (--ca)") from error
        if self.cert is not None and self.key is not None:
            try:
                context.load_cert_chain(self.cert, self.key, password=_no_password)
            except (ssl.SSLError, ValueError) as error:
                raise SecurityError(
                    f"{self.cert} and {self.key}: not a PEM certificate and its unencrypted private key "
                    "(--cert and --key)"
                ) from error
        return grpc.ssl_channel_credentials(ca, key, cert)

    @property
    def has_token(self) -> bool:
        """Whether calls carry a token."""
        return self.token_file is not None or self.token is not None

    def channel_options(self, target: str) -> list[Option]:
        """Options that keep the token on its way to ``target``.

        Raises
        ------
        SecurityError
            If it would be sent in plaintext to another machine.
        """
        if not self.has_token or self.uses_tls or self.allow_insecure_token:
            return []
        if not target_is_local(target):
            raise SecurityError(
                f"{target}: the token would be sent in plaintext; use TLS (--tls or --ca), or allow it with "
                "--allow-insecure-token"
            )
        # A proxy from the environment is another machine.
        return [("grpc.enable_http_proxy", 0)]


PLAINTEXT = Security()


class TokenSource:
    """The metadata of calls, with the token that there is now.

    Parameters
    ----------
    security
        Where it is.

    Raises
    ------
    SecurityError
        If the file cannot be read, or there is no token in it.
    """

    def __init__(self, security: Security) -> None:
        self._path = security.token_file
        self._seen: tuple[int, int, int] | None = None
        self._metadata: tuple[tuple[str, str], ...] = ()
        if security.token is not None:
            if self._path is not None:
                raise SecurityError("there are both token and token_file; pass one of them")
            self._metadata = _bearer(security.token.encode(), "token")
        self.metadata()

    def metadata(self) -> tuple[tuple[str, str], ...]:
        """Return what to send with a call.

        Raises
        ------
        SecurityError
            If the file cannot be read, or holds no token.
        """
        if self._path is None:
            return self._metadata
        try:
            found = os.stat(self._path)
        except OSError as error:
            raise _unreadable(self._path, error) from error
        seen = (found.st_ino, found.st_mtime_ns, found.st_size)
        if seen != self._seen:
            self._metadata = _bearer(_read(self._path) or b"", f"{self._path} (--token-file)")
            self._seen = seen
        return self._metadata


def _bearer(content: bytes, origin: str) -> tuple[tuple[str, str], ...]:
    words = content.split()
    if words and words[0].startswith(_ROLES):
        raise SecurityError(
            f"{origin}: begins with a role, as lines of the server's file do; a client has the token alone, "
            "what follows the colon"
        )
    if len(words) != 1 or not all(0x21 <= byte <= 0x7E for byte in words[0]):
        raise SecurityError(
            f"{origin}: {len(words)} words; a client has one token and nothing else there, printable ASCII "
            "without spaces"
        )
    return (("authorization", f"Bearer {words[0].decode('ascii')}"),)


def _read(path: Path | None) -> bytes | None:
    if path is None:
        return None
    try:
        return Path(path).read_bytes()
    except OSError as error:
        raise _unreadable(path, error) from error


def _unreadable(path: Path, error: OSError) -> SecurityError:
    return SecurityError(f"cannot read {path}: {error.strerror}")


def _no_password() -> str:
    # Without this, OpenSSL would ask for the password on the terminal.
    return ""
