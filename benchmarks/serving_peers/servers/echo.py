"""The floor of gRPC: grpc.aio, our messages, no model. Answers are of the right size and all the same."""

from __future__ import annotations

import asyncio
import sys

import grpc

from serving.pb.nvisa.v1 import cluster_pb2 as pb

N_CLUSTERS = 10
_replies: dict[int, pb.AssignResponse] = {}


async def assign(request: pb.AssignRequest, context: grpc.aio.ServicerContext) -> pb.AssignResponse:
    n = request.input.shape[0]
    if n not in _replies:
        _replies[n] = pb.AssignResponse(
            model_name=request.model_name,
            model_version=1,
            clusters_data=bytes(8 * n),
            confidences_data=bytes(4 * n),
            probabilities_data=bytes(4 * N_CLUSTERS * n),
            n_clusters=N_CLUSTERS,
        )
    return _replies[n]


async def main(port: int) -> None:
    server = grpc.aio.server(options=[("grpc.max_receive_message_length", -1)])
    handler = grpc.unary_unary_rpc_method_handler(
        assign, pb.AssignRequest.FromString, pb.AssignResponse.SerializeToString
    )
    server.add_generic_rpc_handlers(
        (grpc.method_handlers_generic_handler("nvisa.v1.ClusterService", {"Assign": handler}),)
    )
    server.add_insecure_port(f"127.0.0.1:{port}")
    await server.start()
    await server.wait_for_termination()


if __name__ == "__main__":
    asyncio.run(main(int(sys.argv[1])))
