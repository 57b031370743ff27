"""Environments of the peers: each has one of its own, made on demand from a file of pinned versions."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from serving_peers.systems import HERE, System

_INSTALL_SECONDS = 1800
_MARK = "requirements-installed.txt"
_REPOSITORY = HERE.parents[1]
_CONSTRAINTS = _REPOSITORY / "constraints.txt"


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
        library the first of the system's and this one that is.

    Raises
    ------
    InstallError
        If there is no fitting interpreter, or pip fails.
    """
    if system.package is None:
        return
    wanted = requirements(system)
    place = environments / system.name
    if not _is_of(place, wanted.read_text()):
        _make(place, python or _interpreter(system), ["--requirement", str(wanted)], wanted.read_text())


def packages_megabytes(system: System, environments: Path) -> float | None:
    """What the packages of ``system`` add to Python in an image, less compiled bytecode; ``None`` of a floor.

    Ours are installed for that as the Dockerfile's server is.

    Raises
    ------
    InstallError
        If they cannot be.
    """
    place = environments / system.name
    if system.name == "nvisa":
        wanted = (_REPOSITORY / "pyproject.toml").read_text() + _CONSTRAINTS.read_text()
        arguments = ["--constraint", str(_CONSTRAINTS), f"{_REPOSITORY}[serving,tracing,cpu]"]
        if not _is_of(place, wanted):
            _make(place, Path(sys.executable), arguments, wanted)
    elif system.package is None:
        return None
    names = {"pip", "setuptools", "__pycache__"}
    (folder,) = place.glob("lib/python*/site-packages")
    files = (file for file in folder.rglob("*") if file.is_file() and not file.is_symlink())
    return sum(file.stat().st_size for file in files if names.isdisjoint(file.parts)) / 1e6


def versions(system: System) -> dict[str, str]:
    """Version of the peer's own package and of ONNX Runtime in its requirements."""
    pinned = dict(
        line.split("==") for line in requirements(system).read_text().splitlines() if not line.startswith("#")
    )
    return {name: pinned[name] for name in (system.package, "onnxruntime") if name in pinned}


def _is_of(place: Path, wanted: str) -> bool:
    mark = place / _MARK
    return mark.exists() and mark.read_text() == wanted


def _make(place: Path, python: Path, arguments: list[str], wanted: str) -> None:
    print(f"installing {place.name} into {place}", file=sys.stderr, flush=True)
    pip = [str(place / "bin" / "pip"), "install", "--quiet", "--disable-pip-version-check"]
    for step in ([str(python), "-m", "venv", "--clear", str(place)], [*pip, *arguments]):
        try:
            done = subprocess.run(step, capture_output=True, text=True, check=False, timeout=_INSTALL_SECONDS)
        except (OSError, subprocess.TimeoutExpired) as error:
            raise InstallError(f"not installed: {error}") from error
        if done.returncode:
            said = [line for line in (done.stdout + done.stderr).splitlines() if "WARNING" not in line]
            raise InstallError(f"not installed: {' '.join(step[:3])} …: {' '.join(said)[-300:]}")
    (place / _MARK).write_text(wanted)


def _interpreter(system: System) -> Path:
    here = Path(sys.executable)
    if not system.needs_shared_python:
        return here
    # The system's first: the peer loads libpython by name, and the loader finds the system's.
    for candidate in (Path("/usr/bin/python3"), here):
        if candidate.exists() and _is_shared(candidate):
            return candidate
    raise InstallError(
        "not installed: it needs a Python with a shared libpython; pass one with --peer-python"
    )


def _is_shared(python: Path) -> bool:
    question = "import sys, sysconfig; sys.exit(not sysconfig.get_config_var('Py_ENABLE_SHARED'))"
    return subprocess.run([str(python), "-c", question], check=False).returncode == 0
