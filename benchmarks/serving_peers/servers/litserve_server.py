"""LitServe, bytes in and out: ``python litserve_server.py GRAPH PORT``."""

from __future__ import annotations

import sys
from typing import Annotated

import litserve as ls
from fastapi import Body, Response
from onnx_model import OnnxModel

Pixels = Annotated[bytes, Body(media_type="application/octet-stream")]


class Assigner(ls.LitAPI):
    """Its hooks are LitServe's."""

    def setup(self, device: str) -> None:
        self.model = OnnxModel(sys.argv[1])

    def predict(self, x: bytes) -> bytes:
        return self.model.answer(x)

    def encode_response(self, output: bytes) -> Response:
        return Response(output, media_type="application/octet-stream")


# LitServe compares this annotation as it stands, which a string, from the import above, would not survive.
def decode_request(self: Assigner, request: bytes) -> bytes:
    return request


decode_request.__annotations__["request"] = Pixels
Assigner.decode_request = decode_request  # type: ignore[method-assign]

if __name__ == "__main__":
    server = ls.LitServer(Assigner(api_path="/assign"), accelerator="cpu")
    server.run(host="127.0.0.1", port=int(sys.argv[2]), generate_client_file=False, log_level="warning")
