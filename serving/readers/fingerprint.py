"""Fingerprints of data sets, by which a changed input is noticed."""

from __future__ import annotations

import hashlib
from pathlib import Path

_BLOCK = 1 << 20


def content_fingerprint(root: Path, files: tuple[Path, ...]) -> str:
    """SHA-256 over the bytes of ``files``, and their names relative to ``root`` if that is a folder.

    A single file keeps its fingerprint when it is copied or renamed. Each file is hashed on its own first,
    so that bytes cannot move between files unnoticed.
    """
    total = hashlib.sha256()
    for file in files:
        one = hashlib.sha256()
        with file.open("rb") as stream:
            while block := stream.read(_BLOCK):
                one.update(block)
        total.update(f"{_name(root, file)}\0{one.hexdigest()}\n".encode())
    return total.hexdigest()


def stat_fingerprint(root: Path, files: tuple[Path, ...]) -> str:
    """SHA-256 over names, sizes and modification times (ns) of ``files``: cheap, for very large inputs.

    It differs between two copies of the same data, and cannot see a change that keeps size and time.
    """
    total = hashlib.sha256()
    for file in files:
        stat = file.stat()
        total.update(f"{_name(root, file)}\0{stat.st_size}\0{stat.st_mtime_ns}\n".encode())
    return total.hexdigest()


def _name(root: Path, file: Path) -> str:
    return file.relative_to(root).as_posix() if root.is_dir() else ""
