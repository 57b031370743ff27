"""What a user would write in fifty lines: grpc.aio, ONNX Runtime on two threads, no batching."""

from __future__ import annotations

import asyncio
import os
import sys
from concurrent.futures import ThreadPoolExecutor

os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")

import grpc
import numpy as np
import onnxruntime as ort

from serving.pb.nvisa.v1 import cluster_pb2 as pb
from serving.pb.nvisa.v1 import cluster_pb2_grpc

THREADS = 2


class Service(cluster_pb2_grpc.ClusterServiceServicer):
    def __init__(self, path: str) -> None:
        options = ort.SessionOptions()
        options.intra_op_num_threads = 1
        self.session = ort.InferenceSession(path, options, providers=["CPUExecutionProvider"])
        self.pool = ThreadPoolExecutor(THREADS)

    async def Assign(self, request: pb.AssignRequest, context: grpc.aio.ServicerContext) -> pb.AssignResponse:
        x = np.frombuffer(request.input.data, np.uint8).reshape(tuple(request.input.shape))
        loop = asyncio.get_running_loop()
        names = ["probabilities", "cluster"]
        probabilities, clusters = await loop.run_in_executor(self.pool, self.session.run, names, {"x": x})
        return pb.AssignResponse(
            model_name=request.model_name,
            model_version=1,
            clusters_data=clusters.tobytes(),
            confidences_data=probabilities.max(axis=1).tobytes(),
            probabilities_data=probabilities.tobytes(),
            n_clusters=probabilities.shape[1],
        )


async def main(path: str, port: int) -> None:
    server = grpc.aio.server(options=[("grpc.max_receive_message_length", -1)])
    cluster_pb2_grpc.add_ClusterServiceServicer_to_server(Service(path), server)
    server.add_insecure_port(f"127.0.0.1:{port}")
    await server.start()
    await server.wait_for_termination()


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1], int(sys.argv[2])))
