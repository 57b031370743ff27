import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

from serving import grpc_assign, grpc_inference
from serving.auth import ADMINISTRATION, presented_token
from tests.servers import TIMEOUT, fake_engine, in_process

# Whoever adds an RPC says here, or in `serving.auth.ADMINISTRATION`, who may call it.
EITHER_ROLE = {
    *("Assign", "AssignStream", "GetModel", "ListModels"),
    *("ServerLive", "ServerReady", "ServerMetadata"),
    *("ModelReady", "ModelMetadata", "ModelInfer", "ModelConfig", "ModelStatistics", "ModelStreamInfer"),
    "RepositoryIndex",
}


def test_every_rpc_is_sorted_by_who_may_call_it():
    services = (grpc_assign.SERVICE, grpc_inference.SERVICE)
    methods = {method.name for service in services for method in service.methods}
    assert methods <= EITHER_ROLE | ADMINISTRATION
    assert not EITHER_ROLE & ADMINISTRATION


@pytest.mark.parametrize(
    ("metadata", "token"),
    [
        ((), None),
        (None, None),
        ((("authorization", "Bearer abc"),), "abc"),
        ((("authorization", "bearer  abc "),), "abc"),
        ((("x-api-key", "abc"),), "abc"),
        ((("x-api-key", "abc"), ("authorization", "Bearer abc")), "abc"),
        ((("x-api-key", "abc"), ("authorization", "Bearer def")), None),
        ((("authorization", "Basic abc"),), None),
        ((("authorization", "abc"),), None),
        ((("authorization-bin", b"Bearer abc"),), None),
        ((("other", "Bearer abc"),), None),
    ],
)
def test_the_token_of_a_call(metadata, token):
    assert presented_token(metadata) == token


@pytest.mark.parametrize("health_is_open", [True, False])
@pytest.mark.parametrize("reflection_is_open", [True, False])
async def test_health_and_reflection_are_open_as_the_settings_say(
    repository, tmp_path, health_is_open, reflection_is_open
):
    (tmp_path / "tokens").write_text("inference:0123456789abcdef")

    async def is_open(call):
        try:
            await call
        except grpc.aio.AioRpcError as error:
            if error.code() is not grpc.StatusCode.UNAUTHENTICATED:
                raise
            return False
        return True

    async with (
        in_process(
            repository,
            fake_engine,
            token_file=tmp_path / "tokens",
            reflection=True,
            health_needs_token=not health_is_open,
            reflection_needs_token=not reflection_is_open,
        ) as server,
        grpc.aio.insecure_channel(f"127.0.0.1:{server.grpc_port}") as channel,
    ):
        check = health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest(), timeout=TIMEOUT)
        assert await is_open(check) is health_is_open
        question = reflection_pb2.ServerReflectionRequest(list_services="")
        stub = reflection_pb2_grpc.ServerReflectionStub(channel)
        stream = stub.ServerReflectionInfo(iter([question]), timeout=TIMEOUT)
        assert await is_open(anext(aiter(stream))) is reflection_is_open
