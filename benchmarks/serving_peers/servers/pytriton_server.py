"""PyTriton: ``python pytriton_server.py GRAPH GRPC_PORT HTTP_PORT METRICS_PORT``."""

from __future__ import annotations

import sys

import numpy as np
from onnx_model import SHAPE, OnnxModel
from pytriton.decorators import batch
from pytriton.model_config import DynamicBatcher, ModelConfig, Tensor
from pytriton.triton import Triton, TritonConfig


def main(path: str, grpc_port: int, http_port: int, metrics_port: int) -> None:
    model = OnnxModel(path)

    @batch
    def infer(x: np.ndarray) -> list[np.ndarray]:
        probabilities, clusters = model.run(x)
        return [probabilities, clusters[:, None]]

    config = TritonConfig(
        grpc_address="127.0.0.1",
        grpc_port=grpc_port,
        http_address="127.0.0.1",
        http_port=http_port,
        metrics_port=metrics_port,
    )
    with Triton(config=config) as triton:
        triton.bind(
            model_name="mnist",
            infer_func=infer,
            inputs=[Tensor(name="x", dtype=np.uint8, shape=SHAPE)],
            outputs=[
                Tensor(name="probabilities", dtype=np.float32, shape=(10,)),
                Tensor(name="cluster", dtype=np.int64, shape=(1,)),
            ],
            config=ModelConfig(max_batch_size=4096, batcher=DynamicBatcher()),
            strict=False,
        )
        triton.serve()


if __name__ == "__main__":
    main(sys.argv[1], *map(int, sys.argv[2:5]))
