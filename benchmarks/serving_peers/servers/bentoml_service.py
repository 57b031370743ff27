"""BentoML's service; see ``bentoml_start.py``. Bytes go in and out by a route of Starlette's.

Its own API would write each body to a file, or take numbers as JSON.
"""

import asyncio
import os

import bentoml
from onnx_model import OnnxModel
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route


async def assign(request: Request) -> Response:
    model = bentoml.get_current_service().model
    answer = await asyncio.to_thread(model.answer, await request.body())
    return Response(answer, media_type="application/octet-stream")


@bentoml.service(workers=1, traffic={"timeout": 60})
@bentoml.asgi_app(Starlette(routes=[Route("/assign", assign, methods=["POST"])]))
class Assigner:
    def __init__(self) -> None:
        self.model = OnnxModel(os.environ["GRAPH"])
