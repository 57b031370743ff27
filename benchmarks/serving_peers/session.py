"""One turn of one system: start it, wait for its first right answer, put load on it, end it."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from serving_peers.callers import caller
from serving_peers.model import Rows
from serving_peers.processes import MemorySamples, pss_megabytes, started_at, tree
from serving_peers.systems import Setting, System, environment
from serving_peers.wires import WIRES, questions

BENCHMARKS = Path(__file__).resolve().parents[1]
_SPARE_PORTS = 4
_START_SECONDS = 90.0
_STOP_SECONDS = 10.0


class StartError(RuntimeError):
    """A system does not come up; the message says what it said."""


@dataclass(frozen=True)
class Started:
    """A system that answers.

    Attributes
    ----------
    system
        Which.
    pid
        Its first process.
    target
        Host and port.
    seconds
        From the command to the first right answer.
    idle_megabytes
        Memory then (PSS).
    """

    system: System
    pid: int
    target: str
    seconds: float
    idle_megabytes: float


@dataclass(frozen=True)
class Places:
    """Files that all turns share.

    Attributes
    ----------
    repository
        Folder of bundles.
    rows
        What `serving_peers.model.Rows` saved.
    environments
        Folder of the peers' environments.
    server
        Our server's executable.
    """

    repository: Path
    rows: Path
    environments: Path
    server: Path


@contextmanager
def started(system: System, places: Places, pinned_to: set[int] | None = None) -> Iterator[Started]:
    """Run ``system`` for the length of the block, on the processors ``pinned_to`` if given.

    Raises
    ------
    StartError
        If it ends, or gives no right answer within 90 seconds.
    """
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        port, *spare = free_ports(1 + _SPARE_PORTS)
        python = places.environments / system.name / "bin" / "python"
        setting = Setting(places.repository, port, tuple(spare), folder, python, places.server)
        with (folder / "log").open("wb") as log:
            since = time.monotonic()
            process = subprocess.Popen(
                system.command(setting),
                cwd=folder,
                env=environment(system),
                stdout=log,
                stderr=log,
                start_new_session=True,
                preexec_fn=None if pinned_to is None else lambda: os.sched_setaffinity(0, pinned_to),
            )
        try:
            target = f"127.0.0.1:{port}"
            try:
                asyncio.run(_first_answer(system, process, target, Rows.load(places.rows)))
            except StartError as error:
                said = (folder / "log").read_text(errors="replace").strip()[-1500:]
                raise StartError(f"{system.title}: {error}: {said}") from error
            seconds = time.monotonic() - since
            yield Started(system, process.pid, target, seconds, pss_megabytes(process.pid))
        finally:
            _end(process)


def free_ports(n: int) -> list[int]:
    """``n`` ports that nothing listens on now."""
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(n)]
    ports = [each.getsockname()[1] for each in sockets]
    for each in sockets:
        each.close()
    return ports


async def _first_answer(system: System, process: subprocess.Popen[bytes], target: str, rows: Rows) -> None:
    """Ask until there is a right answer; a connection is tried first, since gRPC waits between tries."""
    wire, end = WIRES[system.wire], time.monotonic() + _START_SECONDS
    (question,) = questions(wire, rows, [1])
    host, port = target.rsplit(":", 1)
    code, reply = "nothing listens", b""
    while time.monotonic() < end:
        if process.poll() is not None:
            raise StartError(f"ended with status {process.returncode}")
        try:
            _, writer = await asyncio.open_connection(host, int(port))
        except OSError:
            await asyncio.sleep(0.005)
            continue
        writer.close()
        call = caller(system.wire, target)
        code, reply = await call.call(question.message, 10.0)
        await call.close()
        if code == "OK":
            if system.checked and not question.is_right(wire.answer(reply)):
                raise StartError("its first answer is wrong")
            return
        await asyncio.sleep(0.02)
    raise StartError(f"no answer in {_START_SECONDS:.0f} s, the last was {code} {reply[:300]!r}")


def _end(process: subprocess.Popen[bytes]) -> None:
    """SIGTERM, and SIGKILL for whatever of its descendants is there ten seconds later."""
    family = {pid: started_at(pid) for pid in tree(process.pid)[1:]}
    if process.poll() is None:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(_STOP_SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
    for pid, when in family.items():
        # A number that was given to another process since is not ours to end.
        if when is not None and started_at(pid) == when:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)


def put_load(
    to: Started, places: Places, cases: list[dict[str, Any]], pinned_to: set[int] | None = None
) -> tuple[list[dict[str, Any]], list[tuple[float, float]]]:
    """Run the load generator, see `serving_peers.load`: one result a case, and samples of the memory.

    A sample is seconds since the beginning and 10^6 bytes (PSS).

    Raises
    ------
    RuntimeError
        If the load generator fails.
    """
    plan = {
        "wire": to.system.wire,
        "target": to.target,
        "rows": str(places.rows),
        "pid": to.pid,
        "checked": to.system.checked,
        "connections": to.system.connections,
        "cases": cases,
    }
    with MemorySamples(to.pid) as memory:
        done = subprocess.run(
            [sys.executable, "-m", "serving_peers.load"],
            input=json.dumps(plan),
            cwd=BENCHMARKS,
            capture_output=True,
            text=True,
            check=False,
            preexec_fn=None if pinned_to is None else lambda: os.sched_setaffinity(0, pinned_to),
        )
    if done.returncode:
        raise RuntimeError(f"the load generator ended with {done.returncode}: {done.stderr[-2000:]}")
    results: list[dict[str, Any]] = json.loads(done.stdout)
    return results, memory.samples
