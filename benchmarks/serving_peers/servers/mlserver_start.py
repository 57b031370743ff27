"""MLServer, in the current folder: ``python mlserver_start.py GRAPH GRPC_PORT HTTP_PORT METRICS_PORT``.

Without inference workers in processes of their own and without its batching: both cost more than such a small
model takes.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path


def main(path: str, grpc_port: int, http_port: int, metrics_port: int) -> None:
    settings = {
        "host": "127.0.0.1",
        "grpc_port": grpc_port,
        "http_port": http_port,
        "metrics_port": metrics_port,
        "parallel_workers": 0,
        "grpc_max_message_length": 64 * 2**20,
    }
    model = {
        "name": "mnist",
        "implementation": "mlserver_runtime.OnnxRuntime",
        "parameters": {"uri": path},
    }
    Path("settings.json").write_text(json.dumps(settings))
    Path("model-settings.json").write_text(json.dumps(model))
    command = [str(Path(sys.executable).parent / "mlserver"), "start", "."]
    here = str(Path(__file__).resolve().parent)
    os.execve(command[0], command, os.environ | {"PYTHONPATH": here})


if __name__ == "__main__":
    main(sys.argv[1], *map(int, sys.argv[2:5]))
