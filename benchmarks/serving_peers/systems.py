"""The systems: how each is started, and how it is spoken to."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from serving_peers.model import NAME

HERE = Path(__file__).resolve().parent
SERVERS = HERE / "servers"


@dataclass(frozen=True)
class Setting:
    """What a system needs to start.

    Attributes
    ----------
    repository
        Folder of bundles, with ``mnist/1``.
    port
        Where it is to listen.
    spare
        Free ports for what else a system listens on.
    folder
        A folder of its own, empty.
    python
        The interpreter of its environment.
    server
        Our server's executable.
    """

    repository: Path
    port: int
    spare: tuple[int, ...]
    folder: Path
    python: Path
    server: Path

    @property
    def graph(self) -> Path:
        """The ONNX file that all serve."""
        return self.repository / NAME / "1" / "model.onnx"


@dataclass(frozen=True)
class System:
    """One server.

    Attributes
    ----------
    name
        What it is called on the command line.
    title
        What it is called in tables.
    wire
        Name in `serving_peers.wires.WIRES`.
    command
        The command line that starts it.
    package
        Its package on PyPI; it has an environment of its own, by its name. ``None``: it runs in this one.
    environment
        Variables that it is started with.
    needs_shared_python
        Whether its environment must be made with a Python that is a shared library.
    checked
        Whether its answers are answers: all but the echo's.
    connections
        Of a gRPC load: a connection stays with the process that took it.
    """

    name: str
    title: str
    wire: str
    command: Callable[[Setting], list[str]]
    package: str | None = None
    environment: dict[str, str] = field(default_factory=dict)
    needs_shared_python: bool = False
    checked: bool = True
    connections: int = 1


def _script(file: str) -> Callable[[Setting], list[str]]:
    """Our scripts for peers take the graph, the port, and spare ports."""

    def command(setting: Setting) -> list[str]:
        ports = map(str, (setting.port, *setting.spare))
        return [str(setting.python), str(SERVERS / file), str(setting.graph), *ports]

    return command


def _echo(setting: Setting) -> list[str]:
    return [sys.executable, str(SERVERS / "echo.py"), str(setting.port)]


def _naive(setting: Setting) -> list[str]:
    return [sys.executable, str(SERVERS / "naive.py"), str(setting.graph), str(setting.port)]


def _ours(*flags: str) -> Callable[[Setting], list[str]]:
    def command(setting: Setting) -> list[str]:
        where = ["--model-repository", str(setting.repository), "--grpc-port", str(setting.port)]
        where += ["--metrics-port", str(setting.spare[0]), "--device", "cpu", "--drain-seconds", "0"]
        return [str(setting.server), *where, *flags]

    return command


SYSTEMS = {
    system.name: system
    for system in (
        System("echo", "empty grpc.aio echo", "native", _echo, checked=False),
        System("naive", "naive grpc.aio, 50 lines", "native", _naive),
        System("nvisa", "nvisa-serve", "native", _ours()),
        System("nvisa-oip", "nvisa-serve, Open Inference Protocol", "oip", _ours()),
        System("nvisa-2", "nvisa-serve --workers 2", "native", _ours("--workers", "2"), connections=8),
        System(
            "pytriton",
            "PyTriton",
            "oip",
            _script("pytriton_server.py"),
            "nvidia-pytriton",
            needs_shared_python=True,
        ),
        System("kserve", "KServe, Python", "oip", _script("kserve_server.py"), "kserve"),
        System("mlserver", "MLServer", "oip", _script("mlserver_start.py"), "mlserver"),
        System("litserve", "LitServe", "http", _script("litserve_server.py"), "litserve"),
        System("bentoml", "BentoML", "http", _script("bentoml_start.py"), "bentoml"),
        System(
            "rayserve",
            "Ray Serve",
            "http",
            _script("ray_server.py"),
            "ray",
            # It would give up on a slow start, and let all its workers step back behind the load generator.
            {"RAY_SERVE_PROXY_READY_CHECK_TIMEOUT_S": "60", "RAY_worker_niceness": "0"},
        ),
    )
}
# Without telemetry, and without colours in logs.
BASE_ENVIRONMENT = {"ORT_DISABLE_TELEMETRY": "1", "DO_NOT_TRACK": "1", "NO_COLOR": "1"}


def environment(system: System) -> dict[str, str]:
    """The environment here, less our server's settings, with the system's own variables."""
    kept = {key: value for key, value in os.environ.items() if not key.startswith("NVISA_SERVE_")}
    return kept | BASE_ENVIRONMENT | system.environment
