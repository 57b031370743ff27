import subprocess
import sys
from pathlib import Path

from serving.pb.inference import grpc_service_pb2
from serving.pb.nvisa.v1 import cluster_pb2

ROOT = Path(__file__).resolve().parents[3]


def generated(root):
    folder = root / "serving" / "pb"
    return {
        path.relative_to(folder): path.read_text()
        for path in folder.rglob("*.py*")
        if path.suffix in (".py", ".pyi")
    }


def test_the_checked_in_code_is_what_its_source_generates(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "protos")
    monkeypatch.delitem(sys.modules, "generate", raising=False)
    import generate

    generate.generate(tmp_path)
    assert generated(ROOT) == generated(tmp_path), "run: python protos/generate.py"


def test_the_sources_pass_the_linter():
    linter = Path(sys.executable).with_name("buf")
    found = subprocess.run([linter, "lint"], cwd=ROOT / "protos", capture_output=True, text=True, check=False)
    assert found.returncode == 0, found.stdout + found.stderr


def test_the_services_have_the_rpcs_of_the_design():
    def rpcs(module, name):
        return [method.name for method in module.DESCRIPTOR.services_by_name[name].methods]

    assert rpcs(cluster_pb2, "ClusterService") == ["Assign", "AssignStream", "GetModel", "ListModels"]
    assert rpcs(grpc_service_pb2, "GRPCInferenceService") == [
        *("ServerLive", "ServerReady", "ModelReady", "ServerMetadata", "ModelMetadata", "ModelInfer"),
        *("RepositoryIndex", "RepositoryModelLoad", "RepositoryModelUnload"),
    ]
