"""Ray Serve, bytes in and out: ``python ray_server.py GRAPH PORT``."""

from __future__ import annotations

import signal
import sys
import threading

import ray
from onnx_model import OnnxModel
from ray import serve
from starlette.requests import Request
from starlette.responses import Response


@serve.deployment(max_ongoing_requests=256, ray_actor_options={"num_cpus": 1})
class Assigner:
    def __init__(self, path: str) -> None:
        self.model = OnnxModel(path)

    async def __call__(self, request: Request) -> Response:
        return Response(self.model.answer(await request.body()), media_type="application/octet-stream")


if __name__ == "__main__":
    ended = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: ended.set())
    ray.init(include_dashboard=False, log_to_driver=False)
    serve.start(http_options={"host": "127.0.0.1", "port": int(sys.argv[2])})
    serve.run(Assigner.bind(sys.argv[1]), route_prefix="/assign")
    ended.wait()
    serve.shutdown()
    ray.shutdown()
