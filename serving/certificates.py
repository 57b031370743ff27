"""The server's certificate: read, checked before it is used, and handed to gRPC at each new connection."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime

import grpc
from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa

from serving.metrics import Metrics
from serving.reloading import CredentialError, Reloaded
from serving.settings import ServerSettings

# gRPC serves P-521 as well, but its own clients do not take it.
_CURVES = ("secp256r1", "secp384r1")
_MIN_RSA_BITS = 2048


@dataclass(frozen=True)
class Certificates:
    """What a TLS server shows, and whom it trusts.

    Attributes
    ----------
    chain, key
        PEM: the server's certificate followed by intermediate ones, and its private key.
    client_ca
        PEM: authorities that sign clients' certificates, or ``None`` if clients need none.
    expires
        When the first certificate of the chain to expire does.
    client_ca_expires
        When the last of the authorities does.
    """

    chain: bytes
    key: bytes = field(repr=False)
    client_ca: bytes | None
    expires: datetime
    client_ca_expires: datetime | None

    def configuration(self) -> grpc.ServerCertificateConfiguration:
        """Return them as gRPC takes them."""
        return grpc.ssl_server_certificate_configuration([(self.key, self.chain)], self.client_ca)


def check_certificates(contents: Sequence[bytes], now: datetime | None = None) -> Certificates:
    """Make sure that these can be served.

    gRPC itself takes a pair that does not fit without a word, and then fails every handshake.

    Parameters
    ----------
    contents
        PEM: the chain, the key, and the client's authorities if clients need certificates.
    now
        The time; the clock's if ``None``.

    Raises
    ------
    CredentialError
        If they are not PEM, do not belong together, are expired, or of a kind that gRPC cannot serve.
    """
    now = now or datetime.now(UTC)
    chain, key, *more = contents
    certificates = _read_chain(chain, "the certificate")
    if _public(_read_key(key).public_key()) != _public(certificates[0].public_key()):
        raise CredentialError(
            "the key does not belong to the first certificate; the server's own comes first in its file"
        )
    expires = min(certificate.not_valid_after_utc for certificate in certificates)
    if expires <= now:
        raise CredentialError(f"the certificate expired on {expires:%Y-%m-%d %H:%M:%S} UTC; renew it")
    client_ca = more[0] if more else None
    client_ca_expires = None
    if client_ca is not None:
        authorities = _read_chain(client_ca, "the client CA")
        client_ca_expires = max(authority.not_valid_after_utc for authority in authorities)
        if client_ca_expires <= now:
            raise CredentialError(
                f"the client CA expired on {client_ca_expires:%Y-%m-%d %H:%M:%S} UTC; renew it"
            )
    return Certificates(chain, key, client_ca, expires, client_ca_expires)


class ServerTls:
    """The certificates in force, for gRPC and for Prometheus.

    Parameters
    ----------
    settings
        Where the files are.
    metrics
        Where expiry and reloads show.

    Raises
    ------
    StartError
        If they cannot be used.
    """

    def __init__(self, settings: ServerSettings, metrics: Metrics) -> None:
        paths = [settings.tls_certificate, settings.tls_key, settings.tls_client_ca]
        given = [path for path in paths if path is not None]
        self.files = Reloaded("tls certificate", given, check_certificates, metrics)
        self._needs_client = settings.tls_client_ca is not None
        self._served = self.files.value
        metrics.certificate_expiry("server").set_function(lambda: self.files.value.expires.timestamp())
        if self._needs_client:
            metrics.certificate_expiry("client_ca").set_function(self._client_ca_expires)

    def credentials(self) -> grpc.ServerCredentials:
        """Return credentials for a port: every new connection gets the certificate then in force."""
        return grpc.dynamic_ssl_server_credentials(
            self._served.configuration(),
            self._changed,  # type: ignore[arg-type]  # the stubs do not know that it may return None
            self._needs_client,
        )

    def _changed(self) -> grpc.ServerCertificateConfiguration | None:
        # Called by gRPC's threads, before each handshake; None stands for no change.
        current = self.files.value
        if current is self._served:
            return None
        self._served = current
        return current.configuration()

    def _client_ca_expires(self) -> float:
        expires = self.files.value.client_ca_expires
        assert expires is not None
        return expires.timestamp()


def _read_chain(pem: bytes, what: str) -> list[x509.Certificate]:
    try:
        return x509.load_pem_x509_certificates(pem)
    except ValueError as error:
        raise CredentialError(f"{what} is not PEM, or is cut short") from error


def _read_key(pem: bytes) -> rsa.RSAPrivateKey | ec.EllipticCurvePrivateKey:
    try:
        key = serialization.load_pem_private_key(pem, password=None)
    except TypeError as error:
        raise CredentialError("the key is encrypted; the server cannot ask for its password") from error
    except (ValueError, UnsupportedAlgorithm) as error:
        raise CredentialError("the key is not a PEM private key, or is cut short") from error
    if isinstance(key, rsa.RSAPrivateKey) and key.key_size >= _MIN_RSA_BITS:
        return key
    if isinstance(key, ec.EllipticCurvePrivateKey) and key.curve.name in _CURVES:
        return key
    raise CredentialError(
        f"the key is of a kind that cannot be served; take RSA of {_MIN_RSA_BITS} bits or more, "
        "or ECDSA on P-256 or P-384"
    )


def _public(key: object) -> bytes:
    assert hasattr(key, "public_bytes")
    spki = serialization.PublicFormat.SubjectPublicKeyInfo
    return bytes(key.public_bytes(serialization.Encoding.DER, spki))
