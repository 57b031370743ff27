"""The floor of the model: ONNX Runtime in a loop, in process, at the best of several ways; JSON to stdout.

Ways: one session that runs on all processors, and as many sessions as processors with one thread each;
batches of 64 to 4,096 rows.
"""

from __future__ import annotations

import json
import os
import sys
import threading
import time
from typing import Any

os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")

import numpy as np
import onnxruntime as ort

BATCHES = (64, 128, 256, 512, 4096)


def measure(
    path: str, x: np.ndarray, sessions: int, threads: int, batch: int, seconds: float
) -> dict[str, Any]:
    """Rows a second of ``sessions`` at once, each with ``threads``."""

    def one() -> ort.InferenceSession:
        options = ort.SessionOptions()
        options.intra_op_num_threads = threads
        return ort.InferenceSession(path, options, providers=["CPUExecutionProvider"])

    parts = [x[start : start + batch] for start in range(0, len(x) - batch + 1, batch)]
    done = [0] * sessions
    began = threading.Barrier(sessions + 1)
    end = [0.0]

    def work(index: int, session: ort.InferenceSession) -> None:
        for part in parts[:3]:
            session.run(None, {"x": part})
        began.wait()
        began.wait()
        turn = 0
        while time.monotonic() < end[0]:
            session.run(None, {"x": parts[turn % len(parts)]})
            done[index] += batch
            turn += 1

    workers = [threading.Thread(target=work, args=(index, one())) for index in range(sessions)]
    for worker in workers:
        worker.start()
    began.wait()
    start, cpu = time.monotonic(), time.process_time()
    end[0] = start + seconds
    began.wait()
    for worker in workers:
        worker.join()
    wall, cpu = time.monotonic() - start, time.process_time() - cpu
    return {
        "batch": batch,
        "sessions": sessions,
        "threads": threads,
        "rows_per_second": round(sum(done) / wall, 1),
        "cpu_seconds_per_million_rows": round(cpu / sum(done) * 1e6, 2),
    }


def latency(path: str, x: np.ndarray, seconds: float) -> float:
    """Median of one run of one row, in ms."""
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    session = ort.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    times, end = [], time.monotonic() + seconds
    while time.monotonic() < end:
        start = time.perf_counter()
        session.run(None, {"x": x[:1]})
        times.append(time.perf_counter() - start)
    return round(float(np.median(times)) * 1e3, 4)


def main(path: str, rows: str, seconds: float) -> None:
    with np.load(rows) as file:
        x = file["x"]
    cores = len(os.sched_getaffinity(0))
    ways = sorted({(cores, 1), (1, cores)})
    found = [
        measure(path, x, sessions, threads, batch, seconds / len(BATCHES))
        for sessions, threads in ways
        for batch in BATCHES
    ]
    result = {"ways": found, "single_row_ms": latency(path, x, min(1.0, seconds))}
    json.dump(result, sys.stdout)


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], float(sys.argv[3]))
