"""KServe's Python server: ``python kserve_server.py GRAPH GRPC_PORT HTTP_PORT``."""

from __future__ import annotations

import sys

from kserve import InferOutput, InferRequest, InferResponse, Model, ModelServer
from onnx_model import OnnxModel


class Assigner(Model):
    def __init__(self, name: str, path: str) -> None:
        super().__init__(name)
        self.model = OnnxModel(path)
        self.ready = True

    def predict(
        self, payload: InferRequest, headers: dict[str, str] | None = None, **_: object
    ) -> InferResponse:
        probabilities, clusters = self.model.run(payload.inputs[0].as_numpy())
        outputs = []
        for name, kind, values in (("probabilities", "FP32", probabilities), ("cluster", "INT64", clusters)):
            output = InferOutput(name, list(values.shape), kind)
            output.set_data_from_numpy(values)
            outputs.append(output)
        return InferResponse(payload.id, self.name, outputs)


if __name__ == "__main__":
    grpc_port, http_port = map(int, sys.argv[2:4])
    ModelServer(
        http_port=http_port, grpc_port=grpc_port, enable_latency_logging=False, access_log_format=None
    ).start([Assigner("mnist", sys.argv[1])])
