"""h2load, of Debian's ``nghttp2-client``: a client in C, which leaves the processors to the server.

It sends one request over and over and does not look at answers, but for their length.
"""

from __future__ import annotations

import re
import shutil
import subprocess
import tempfile
from pathlib import Path
from typing import Any

from serving_peers.model import Rows
from serving_peers.session import Places, Started
from serving_peers.wires import WIRES

_CONNECTIONS = 16  # so that two workers get about as many


class CallsFailedError(RuntimeError):
    """Not all calls were answered, or h2load did not run; the message is what it printed."""


def run(to: Started, places: Places, in_flight: int, seconds: float) -> list[dict[str, Any]]:
    """Calls of one row a second with ``in_flight`` at once: one result, none where there is no h2load.

    Raises
    ------
    CallsFailedError
        If calls fail, or replies are too short to be answers.
    """
    if shutil.which("h2load") is None:
        return []
    wire = WIRES[to.system.wire]
    message = wire.request(Rows.load(places.rows).x[:1])
    with tempfile.NamedTemporaryFile() as body:
        Path(body.name).write_bytes(b"\0" + len(message).to_bytes(4, "big") + message)
        command = ["h2load", "-c", f"{_CONNECTIONS}", "-m", f"{in_flight // _CONNECTIONS}"]
        command += ["-D", f"{round(1000 * seconds)}ms", "--warm-up-time", "1", "-d", body.name]
        command += ["-H", "content-type: application/grpc", "-H", "te: trailers"]
        done = subprocess.run(
            [*command, f"http://{to.target}{wire.path}"], capture_output=True, text=True, check=False
        )
    return [read(done.stdout + done.stderr, in_flight, seconds)]


def read(said: str, in_flight: int, seconds: float) -> dict[str, Any]:
    """Understand what h2load printed; see `run`."""
    requests = re.search(r"(\d+) done, (\d+) succeeded, (\d+) failed, (\d+) errored", said)
    data = re.search(r"\((\d+)\) data", said)
    if requests is None or data is None:
        raise CallsFailedError(f"h2load says: {said[-1000:]}")
    count, succeeded, *bad = map(int, requests.groups())
    # gRPC tells of errors behind the data, of which there is none then: one row's answer has 48 bytes.
    if count == 0 or succeeded < count or any(bad) or int(data[1]) < 48 * count:
        raise CallsFailedError(f"h2load: not all calls were answered: {said[-1000:]}")
    return {"case": f"h2load 1x{in_flight}", "calls_per_second": round(count / seconds, 1)}
