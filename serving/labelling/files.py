"""Writing files so that a reader, or a crash, sees all of them or nothing."""

from __future__ import annotations

import os
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO

from serving.bundle import sync_directory


def write_atomically(path: Path, content: bytes | Callable[[BinaryIO], None]) -> None:
    """Write ``path`` by way of a hidden temporary file: fsync, rename, fsync of the folder.

    Parameters
    ----------
    path
        An existing file is replaced.
    content
        The bytes, or a function that writes them to a binary file.

    Raises
    ------
    OSError
        If it cannot be written; the temporary file is removed, and an existing file is as it was.
    """
    staging = path.with_name(f".{path.stem}.{uuid.uuid4().hex}.tmp")
    try:
        with staging.open("wb") as file:
            if isinstance(content, bytes):
                file.write(content)
            else:
                content(file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(staging, path)
        sync_directory(path.parent)
    finally:
        staging.unlink(missing_ok=True)


def remove_leftovers(path: Path) -> None:
    """Remove the temporary files that killed processes left of ``path``."""
    for staging in path.parent.glob(f".{path.stem}.*.tmp"):
        staging.unlink(missing_ok=True)
