"""Environments of the peers: each has one of its own, made on demand from a file of pinned versions."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from serving_peers.systems import HERE, System

_INSTALL_SECONDS = 1800
_MARK = "requirements-installed.txt"


class InstallError(RuntimeError):
    """A peer cannot be installed; the message says why."""


def requirements(system: System) -> Path:
    """The file of what ``system`` is installed from."""
    return HERE / "requirements" / f"{system.name}.txt"


def prepare(system: System, environments: Path, python: Path | None) -> None:
    """Make the environment of ``system``, or bring it up to its requirements; nothing if it is there.

    Parameters
    ----------
    python
        The interpreter to make it with; ``None``: this one, or for a peer that needs Python as a shared
        library the first of this one and the system's that is.

    Raises
    ------
    InstallError
        If there is no fitting interpreter, or pip fails.
    """
    if system.package is None:
        return
    wanted = requirements(system).read_text()
    place = environments / system.name
    mark = place / _MARK
    if mark.exists() and mark.read_text() == wanted:
        return
    chosen = python or _interpreter(system)
    print(f"installing {system.title} into {place}", file=sys.stderr, flush=True)
    steps = [
        [str(chosen), "-m", "venv", "--clear", str(place)],
        [
            *(str(place / "bin" / "pip"), "install", "--quiet", "--disable-pip-version-check"),
            *("--requirement", str(requirements(system))),
        ],
    ]
    for step in steps:
        try:
            done = subprocess.run(step, capture_output=True, text=True, check=False, timeout=_INSTALL_SECONDS)
        except (OSError, subprocess.TimeoutExpired) as error:
            raise InstallError(f"not installed: {error}") from error
        if done.returncode:
            said = [line for line in (done.stdout + done.stderr).splitlines() if "WARNING" not in line]
            raise InstallError(f"not installed: {' '.join(step[:3])} …: {' '.join(said)[-300:]}")
    mark.write_text(wanted)


def versions(system: System) -> dict[str, str]:
    """Version of the peer's own package and of ONNX Runtime in its requirements."""
    pinned = dict(
        line.split("==") for line in requirements(system).read_text().splitlines() if not line.startswith("#")
    )
    return {name: pinned[name] for name in (system.package, "onnxruntime") if name in pinned}


def _interpreter(system: System) -> Path:
    here = Path(sys.executable)
    if not system.needs_shared_python:
        return here
    for candidate in (here, Path("/usr/bin/python3")):
        if candidate.exists() and _is_shared(candidate):
            return candidate
    raise InstallError(
        "not installed: it needs a Python with a shared libpython; pass one with --peer-python"
    )


def _is_shared(python: Path) -> bool:
    question = "import sys, sysconfig; sys.exit(not sysconfig.get_config_var('Py_ENABLE_SHARED'))"
    return subprocess.run([str(python), "-c", question], check=False).returncode == 0
