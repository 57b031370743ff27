"""What lies in a model repository at one moment: seen by the files' marks, without reading the graphs."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from serving.bundle import GRAPH_FILE, MANIFEST_FILE, BundleError, find_bundles
from serving.labels import LABELS_FILE, MAX_BYTES

Mark = tuple[int, int, int] | None
"""Modification time in ns, size and inode of a file; ``None`` if it is not there."""
Fingerprint = tuple[Mark, ...]
"""The marks of a bundle's files. A file that is replaced, cut or written on has another mark."""
Key = tuple[str, int]
"""Name and version."""


@dataclass(frozen=True)
class Snapshot:
    """One look at a repository.

    Attributes
    ----------
    bundles
        Every ``<name>/<version>`` folder, and the marks of its files.
    labels
        For every name in ``bundles``, what its labels file holds; ``None`` if there is none.
    """

    bundles: dict[Key, Fingerprint]
    labels: dict[str, bytes | None]

    def settled(self, before: Snapshot) -> Snapshot:
        """Return the part that was the same at the look before.

        What somebody is still copying, or has taken away to put another in its place, differs between two
        looks; the exporter's own bundles appear whole.
        """
        return Snapshot(
            {key: mark for key, mark in self.bundles.items() if before.bundles.get(key) == mark},
            {
                name: content
                for name, content in self.labels.items()
                if name in before.labels and before.labels[name] == content
            },
        )


def take_snapshot(repository: Path) -> Snapshot:
    """Look at ``repository``. Blocking.

    Raises
    ------
    BundleError
        If it cannot be read.
    """
    bundles: dict[Key, Fingerprint] = {}
    labels: dict[str, bytes | None] = {}
    try:
        for path in find_bundles(repository):
            key = path.parent.name, int(path.name)
            bundles[key] = tuple(_mark(path / name) for name in (GRAPH_FILE, MANIFEST_FILE))
            if key[0] not in labels:
                labels[key[0]] = _read(path.parent / LABELS_FILE)
    except OSError as error:
        raise BundleError(f"cannot read model repository: {error.filename}: {error.strerror}") from error
    return Snapshot(bundles, labels)


def _mark(path: Path) -> Mark:
    try:
        status = path.stat()
    except (FileNotFoundError, NotADirectoryError):
        return None
    return status.st_mtime_ns, status.st_size, status.st_ino


def _read(path: Path) -> bytes | None:
    try:
        with path.open("rb") as file:
            return file.read(MAX_BYTES + 1)
    except FileNotFoundError:
        return None
