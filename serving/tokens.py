"""The tokens that callers show: read from a file, kept as hashes, compared in constant time."""

from __future__ import annotations

import hashlib
import hmac
import re
from dataclasses import dataclass, field
from enum import StrEnum

from serving.reloading import CredentialError

MIN_LENGTH = 16
MAX_LENGTH = 1024
# RFC 6750, section 2.1, is a part of this: what an HTTP header can carry as it is.
_TOKEN = re.compile(r"[\x21-\x7e]+")


class Role(StrEnum):
    """What the holder of a token may do."""

    INFERENCE = "inference"
    ADMIN = "admin"


@dataclass(frozen=True)
class Tokens:
    """The tokens of a file; only their SHA-256 is kept.

    Attributes
    ----------
    digests
        SHA-256 of each token and what it is good for.
    """

    digests: tuple[tuple[bytes, Role], ...] = field(repr=False)

    def role(self, presented: str) -> Role | None:
        """Return what ``presented`` is good for, or ``None`` if it is no token of ours.

        The time taken depends neither on which token it is nor on how much of one it has right: hashes are
        compared, every one of them, by `hmac.compare_digest`.
        """
        digest = _digest(presented)
        found = None
        for known, role in self.digests:
            if hmac.compare_digest(digest, known):
                found = role
        return found


def parse_tokens(content: bytes) -> Tokens:
    """Read a token file: one ``role:token`` a line, empty lines and lines that begin with # are skipped.

    Raises
    ------
    CredentialError
        If a line is not that, a token is too short, appears twice, or there is none. The message has the
        line's number and nothing of what it holds.
    """
    try:
        lines = content.decode("ascii").splitlines()
    except UnicodeDecodeError as error:
        raise CredentialError(f"byte {error.start} is not ASCII; tokens are printable ASCII") from None
    tokens: dict[bytes, Role] = {}
    for number, line in enumerate(lines, 1):
        line = line.strip()
        if not line or line.startswith("#"):
            continue
        name, colon, token = line.partition(":")
        if not colon or name not in tuple(Role):
            raise CredentialError(f"line {number} is not role:token, with the role {' or '.join(Role)}")
        if not _TOKEN.fullmatch(token):
            raise CredentialError(f"line {number}: a token is printable ASCII without spaces")
        if not MIN_LENGTH <= len(token) <= MAX_LENGTH:
            raise CredentialError(
                f"line {number}: the token has {len(token)} characters, not {MIN_LENGTH} to {MAX_LENGTH}; "
                "make one with: openssl rand -hex 32"
            )
        digest = _digest(token)
        if digest in tokens:
            raise CredentialError(f"line {number}: the token is there twice")
        tokens[digest] = Role(name)
    if not tokens:
        raise CredentialError("there is no token in it, so nobody could call; write lines role:token")
    return Tokens(tuple(tokens.items()))


def _digest(token: str) -> bytes:
    return hashlib.sha256(token.encode("utf-8", "surrogatepass")).digest()
