import pytest

from serving import grpc_assign, grpc_inference
from serving.auth import ADMINISTRATION, presented_token

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
