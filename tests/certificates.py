"""Certificate authorities and certificates for tests, made when they are needed and never stored."""

from __future__ import annotations

import os
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import trustme

LONG_AGO = datetime(2025, 1, 1, tzinfo=UTC)


@dataclass(frozen=True)
class Pair:
    """A certificate with its chain, and its key, as PEM files."""

    cert: Path
    key: Path

    def replace(self, other: Pair) -> None:
        """Take over what ``other`` holds: the certificate first, then the key."""
        put(self.cert, other.cert.read_bytes())
        put(self.key, other.key.read_bytes())


class Authority:
    """A certificate authority; its own certificate is the file ``ca``."""

    def __init__(self, folder: Path, name: str = "ca") -> None:
        self._folder = folder
        self._name = name
        self._ca = trustme.CA()
        self.ca = folder / f"{name}.pem"
        self._ca.cert_pem.write_to_path(str(self.ca))

    def issue(self, name: str, *identities: str, **options: Any) -> Pair:
        """A certificate for ``identities``, by default this machine."""
        made = self._ca.issue_cert(*(identities or ("127.0.0.1", "localhost")), **options)
        pair = Pair(self._folder / f"{self._name}-{name}.pem", self._folder / f"{self._name}-{name}.key")
        pair.cert.write_bytes(b"".join(blob.bytes() for blob in made.cert_chain_pems))
        made.private_key_pem.write_to_path(str(pair.key))
        return pair


def put(path: Path, content: bytes) -> None:
    """Replace ``path`` at once, as a Kubernetes volume does."""
    new = path.with_name(path.name + ".new")
    new.write_bytes(content)
    os.replace(new, path)
