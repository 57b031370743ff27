"""The whole path on scikit-learn's digits: fit, score, export, serve, assign, label, and look.

Run by ``make demo``. Everything is done by the commands a user would type; they are printed as they run.
What they leave is in ``demo/``, which is made anew each time.
"""

from __future__ import annotations

import json
import shlex
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import NoReturn

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from sklearn.cluster import KMeans
from sklearn.datasets import load_digits

from training.data import load
from training.scores import accuracy

DEMO = Path("demo")
BIN = Path(sys.executable).parent
READY_SECONDS = 60
STOP_SECONDS = 15


def main() -> None:
    """Run the demo; any failing step ends it with that step's message."""
    signal.signal(signal.SIGTERM, _terminated)
    began = time.monotonic()
    shutil.rmtree(DEMO, ignore_errors=True)
    DEMO.mkdir()
    rows = DEMO / "digits.parquet"
    write_parquet(rows)

    step("nvisa-train", "fit", "digits", "--clusters", "10", "--output", DEMO / "run")
    scores = json.loads(output("nvisa-train", "evaluate", DEMO / "run", "--data", "digits", "--json"))
    step("nvisa-train", "export", DEMO / "run", "--output", DEMO / "models" / "digits" / "1")
    step("nvisa-train", "report", DEMO / "run")
    assigned = serve_and_assign(rows)
    step(
        *("nvisa-label", "--model", DEMO / "models" / "digits" / "1", "--input", rows),
        *("--id-columns", "id", "--output", DEMO / "labels"),
    )
    labelled = pq.read_table(DEMO / "labels")["cluster"].to_numpy()
    if not np.array_equal(assigned, labelled):
        sys.exit("demo: the server and the offline job disagree")
    kmeans = KMeans(10, n_init=10, random_state=0).fit_predict(load_digits().data)
    truth = load("digits", labels=True).labels
    assert truth is not None
    baselines = f"its start {scores['start']['acc']:.3f}, KMeans {accuracy(truth, kmeans):.3f}"
    print(
        f"""
NVISA on digits: {scores["n_rows"]} images, 10 clusters, {time.monotonic() - began:.0f} s in all
  accuracy   NVISA {scores["acc"]:.3f}, {baselines}
             (one seed; README has five)
  served     {len(assigned)} rows over gRPC, labelled {len(labelled)} rows offline: the same clusters
  look at    {DEMO / "run" / "report" / "index.html"}
  bundle     {DEMO / "models" / "digits" / "1"}
  labels     {DEMO / "labels"}"""
    )


def write_parquet(path: Path) -> None:
    """Write the digits as a table: an ``id``, and 8 x 8 bytes of ``image``."""
    x = load("digits").x
    flat = pa.array(x.reshape(-1))
    image = pa.FixedSizeListArray.from_arrays(pa.FixedSizeListArray.from_arrays(flat, 8), 8)
    ids = pa.array([f"digit-{index:04d}" for index in range(len(x))])
    pq.write_table(pa.table({"id": ids, "image": image}), path)


def serve_and_assign(rows: Path) -> np.ndarray:
    """Start the server, assign ``rows`` over gRPC, stop the server; return the clusters."""
    ports, answers = DEMO / "ports.json", DEMO / "assigned.parquet"
    command = [
        *("nvisa-serve", "--model-repository", DEMO / "models", "--port-file", ports),
        *("--grpc-port", "0", "--metrics-port", "0", "--drain-seconds", "0", "--log-level", "warning"),
    ]
    say(*command)
    with subprocess.Popen([BIN / command[0], *map(str, command[1:])]) as server:
        try:
            target = f"127.0.0.1:{wait_for(ports, server)['grpc_port']}"
            step("nvisa-client", "health", "--target", target, "--wait", str(READY_SECONDS))
            step("nvisa-client", "models", "--target", target)
            step(
                *("nvisa-client", "assign", "--target", target, "--model", "digits", "--input", rows),
                *("--id-columns", "id", "--output", answers),
            )
        finally:
            stop(server)
    if server.returncode != 0:
        sys.exit(f"demo: the server ended with status {server.returncode}")
    return np.asarray(pq.read_table(answers)["cluster"].to_numpy())


def stop(server: subprocess.Popen[bytes]) -> None:
    """Stop the server and wait for its end: after Ctrl-C, `Popen` itself would not."""
    server.terminate()
    try:
        server.wait(timeout=STOP_SECONDS)
    except subprocess.TimeoutExpired:
        server.kill()
        server.wait()


def wait_for(ports: Path, server: subprocess.Popen[bytes]) -> dict[str, int]:
    """Wait until the server listens: its ports are known."""
    deadline = time.monotonic() + READY_SECONDS
    while time.monotonic() < deadline and server.poll() is None:
        if ports.exists():
            found: dict[str, int] = json.loads(ports.read_text())
            return found
        time.sleep(0.1)
    sys.exit("demo: the server did not start; its messages are above")


def step(*command: str | Path) -> None:
    """Run a command, its output going to the terminal."""
    say(*command)
    if (status := subprocess.run([BIN / command[0], *map(str, command[1:])]).returncode) != 0:
        sys.exit(status)


def output(*command: str | Path) -> str:
    """Run a command and return what it printed."""
    say(*command)
    done = subprocess.run([BIN / command[0], *map(str, command[1:])], stdout=subprocess.PIPE, text=True)
    if done.returncode != 0:
        sys.exit(done.returncode)
    return done.stdout


def say(*command: str | Path) -> None:
    """Print a command as it would be typed."""
    print(f"\n$ {shlex.join(map(str, command))}", flush=True)


def _terminated(*_: object) -> NoReturn:
    raise SystemExit(128 + signal.SIGTERM)


if __name__ == "__main__":
    try:
        main()
    except KeyboardInterrupt:
        sys.exit(130)
