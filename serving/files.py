"""Writing files so that a reader, or a crash, sees all of them or nothing."""

from __future__ import annotations

import os
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO

Content = bytes | Callable[[BinaryIO], None]
"""The bytes of a file, or a function that writes them to a binary file."""


def write_atomically(path: Path, content: Content) -> None:
    """Write ``path`` by way of a hidden temporary file: fsync, rename, fsync of the folder.

    An existing file is replaced.

    Raises
    ------
    OSError
        If it cannot be written, naming ``path``; the temporary file is removed, and an existing file is as
        it was.
    """
    staging = path.with_name(f".{path.stem}.{uuid.uuid4().hex}.tmp")
    try:
        try:
            write_synced(staging, content)
            os.replace(staging, path)
            sync_directory(path.parent)
        finally:
            staging.unlink(missing_ok=True)
    except OSError as error:
        if error.errno is None:
            raise
        # The temporary file's name would mean nothing to anyone.
        raise OSError(error.errno, error.strerror, str(path)) from error


def write_synced(path: Path, content: Content) -> None:
    """Write a new file and make what it holds durable (fsync)."""
    with path.open("wb") as file:
        if isinstance(content, bytes):
            file.write(content)
        else:
            content(file)
        file.flush()
        os.fsync(file.fileno())


def sync_directory(path: Path) -> None:
    """Make the names in directory ``path`` durable (fsync)."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def remove_leftovers(path: Path) -> None:
    """Remove the temporary files that killed processes left of ``path``."""
    for staging in path.parent.glob(f".{path.stem}.*.tmp"):
        staging.unlink(missing_ok=True)
