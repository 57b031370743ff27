"""The file that says which ports a server has, for whoever started it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

from serving.files import write_atomically
from serving.start_error import StartError


def write_ports(path: Path, ports: Mapping[str, int]) -> None:
    """Write the ports as JSON; whoever waits for the file finds it whole.

    Raises
    ------
    StartError
        If it cannot be written.
    """
    try:
        write_atomically(path, json.dumps(dict(ports)).encode() + b"\n")
    except OSError as error:
        raise StartError(f"cannot write --port-file {path}: {error.strerror}") from error
