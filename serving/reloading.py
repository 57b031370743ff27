"""Credentials in files that are replaced while the server runs: the last good content is in force."""

from __future__ import annotations

import asyncio
import hashlib
import logging
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Generic, TypeVar

from serving.metrics import Metrics
from serving.start_error import StartError

log = logging.getLogger(__name__)

T = TypeVar("T")
# Certificates and tokens take a few KiB; who names another file by mistake shall not fill the memory.
MAX_BYTES = 1 << 20


class CredentialError(ValueError):
    """A credential file cannot be used; the message says why, and has no secret in it."""


class Reloaded(Generic[T]):
    """What some files say, read again when they change.

    Files are compared by content: that also sees a Kubernetes Secret's switched link, and no clock is
    involved. Files that belong together and are replaced one after the other do not fit for a moment; the
    old content stays in force until they do.

    Parameters
    ----------
    what
        What they hold, for messages and as a metric's label.
    paths
        The files.
    parse
        Makes the value of their contents, in order; raises `CredentialError`.
    metrics
        Where reloads are counted.

    Attributes
    ----------
    what
        As above.
    value
        What is in force.

    Raises
    ------
    StartError
        If they cannot be used now.
    """

    def __init__(
        self, what: str, paths: Sequence[Path], parse: Callable[[Sequence[bytes]], T], metrics: Metrics
    ) -> None:
        self.what = what
        self._paths = tuple(paths)
        self._parse = parse
        self._metrics = metrics
        self._refused = ""
        try:
            contents = self._read()
            self.value = parse(contents)
        except CredentialError as error:
            raise StartError(f"{what}, {self._names()}: {error}") from error
        self._in_force = _fingerprint(contents)
        metrics.credentials_stale.labels(what).set(0)

    def check(self) -> None:
        """Take what the files hold now, if it has changed and can be used; otherwise say so, once."""
        seen = ""
        try:
            contents = self._read()
            seen = _fingerprint(contents)
            if seen in (self._in_force, self._refused):
                if seen == self._in_force:
                    self._settle()
                return
            value = self._parse(contents)
        except CredentialError as error:
            self._refuse(seen or str(error), str(error))
            return
        self.value, self._in_force = value, seen
        self._settle()
        self._metrics.credential_reloads.labels(self.what, "success").inc()
        log.info("%s reloaded", self.what, extra={"files": self._names()})

    async def watch(self, seconds: float) -> None:
        """Check every ``seconds``, for ever."""
        while True:
            await asyncio.sleep(seconds)
            await asyncio.to_thread(self.check)

    def _refuse(self, seen: str, why: str) -> None:
        if seen == self._refused:
            return
        self._refused = seen
        self._metrics.credential_reloads.labels(self.what, "failure").inc()
        self._metrics.credentials_stale.labels(self.what).set(1)
        log.error(
            "%s changed but cannot be used; the old content stays in force",
            self.what,
            extra={"files": self._names(), "why": why},
        )

    def _settle(self) -> None:
        self._refused = ""
        self._metrics.credentials_stale.labels(self.what).set(0)

    def _read(self) -> list[bytes]:
        return [_read(path) for path in self._paths]

    def _names(self) -> str:
        return ", ".join(map(str, self._paths))


def _read(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            content = file.read(MAX_BYTES + 1)
    except OSError as error:
        raise CredentialError(f"cannot read {path}: {error.strerror}") from error
    if len(content) > MAX_BYTES:
        raise CredentialError(f"{path} has more than {MAX_BYTES} bytes, that is no credential")
    return content


def _fingerprint(contents: Sequence[bytes]) -> str:
    whole = hashlib.sha256()
    for content in contents:
        whole.update(hashlib.sha256(content).digest())
    return whole.hexdigest()
