"""Which version answers a call: by number, by label, or by share."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Mapping

from serving.errors import InvalidInput
from serving.models import ReadyModel


class Route:
    """Where calls for one model go. Made anew at every change, so that a call only looks things up.

    Parameters
    ----------
    versions
        All that answer, by number.
    labels
        The version that each label points at.
    default
        Answers calls that name no version, if there is one.
    canary, share
        Answers this share of them in its place.
    """

    __slots__ = ("_labelled", "_share", "canary", "default", "versions")

    def __init__(
        self,
        versions: Mapping[int, ReadyModel],
        labels: Mapping[str, int],
        default: ReadyModel | None,
        canary: ReadyModel | None = None,
        share: float = 0.0,
    ) -> None:
        self.versions = dict(versions)
        self.default = default
        self.canary = canary
        self._labelled = {label: self.versions.get(version) for label, version in labels.items()}
        self._share = share

    def choose(self, key: str) -> ReadyModel | None:
        """Return what answers a call that names no version.

        Parameters
        ----------
        key
            Calls with the same key get the same version while the labels stay, in any process: a call that
            is repeated under its id asks the same version again. Without, chance decides.
        """
        if self.canary is None:
            return self.default
        return self.canary if (place(key) if key else random.random()) < self._share else self.default

    def named(self, version: int, label: str) -> ReadyModel | None:
        """Return what a call asks for by number or by label, or ``None``.

        Raises
        ------
        InvalidInput
            If it names both.
        """
        if not label:
            return self.versions.get(version)
        if version:
            raise InvalidInput(f"the call names version {version} and label {label[:64]!r}; set one of them")
        return self._labelled.get(label)


def place(key: str) -> float:
    """Return the place of ``key`` in [0, 1): even over all keys, and the same everywhere."""
    digest = hashlib.blake2b(key.encode(errors="replace"), digest_size=8).digest()
    return int.from_bytes(digest, "big") / 2**64
