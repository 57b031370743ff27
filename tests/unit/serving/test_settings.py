import contextlib

import pytest
from hypothesis import given
from hypothesis import settings as examples
from hypothesis import strategies as st

from serving.configuration import InvalidSettings
from serving.configuration import load_settings as load
from serving.settings import ServerSettings


def load_settings(arguments):
    return load(ServerSettings, arguments)


@pytest.fixture(autouse=True)
def no_settings_in_the_environment(monkeypatch):
    for name in ServerSettings.model_fields:
        monkeypatch.delenv(f"NVISA_SERVE_{name.upper()}", raising=False)


def test_defaults_are_the_designs():
    settings = load_settings(["--model-repository", "models"])
    assert (settings.grpc_port, settings.metrics_port) == (8001, 8002)
    assert settings.device == "auto"
    assert settings.host == "127.0.0.1"
    assert settings.max_queue_delay == 0
    assert not settings.reflection


def test_the_command_line_beats_the_environment_beats_the_file(tmp_path, monkeypatch):
    file = tmp_path / "serve.yaml"
    file.write_text("grpc-port: 1\nmetrics_port: 2\nmax-batch-rows: 3\nmodel-repository: from-file\n")
    monkeypatch.setenv("NVISA_SERVE_GRPC_PORT", "10")
    monkeypatch.setenv("NVISA_SERVE_METRICS_PORT", "20")
    settings = load_settings(["--config", str(file), "--grpc-port", "100", "--reflection"])
    assert (settings.grpc_port, settings.metrics_port, settings.max_batch_rows) == (100, 20, 3)
    assert str(settings.model_repository) == "from-file"
    assert settings.reflection


def test_the_environment_can_name_the_file(tmp_path, monkeypatch):
    file = tmp_path / "serve.yaml"
    file.write_text("model_repository: from-file\n")
    monkeypatch.setenv("NVISA_SERVE_CONFIG", str(file))
    assert str(load_settings([]).model_repository) == "from-file"


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ([], "--model-repository is missing; pass it, or set NVISA_SERVE_MODEL_REPOSITORY"),
        (["--model-repository"], "--model-repository"),
        (["--model-repository", "m", "--bogus"], "--bogus"),
        (["--model-repository", "m", "stray"], "stray"),
        (["--model-repository", "m", "--max-batch", "3"], "--max-batch"),
        (["--model-repository", "m", "--grpc-port", "65536"], "--grpc-port: .*65535"),
        (["--model-repository", "m", "--grpc-port", "x"], "--grpc-port"),
        (["--model-repository", "m", "--device", "tpu"], "--device: .*'cuda', got 'tpu'"),
        (["--model-repository", "m", "--max-batch-rows", "0"], "--max-batch-rows"),
        (["--model-repository", "m", "--max-queue-delay", "nan"], "--max-queue-delay"),
        (["--model-repository", "m", "--workers", "0"], "--workers"),
        (["--model-repository", "m", "--workers", "2", "--device", "cuda"], "a GPU belongs to one process"),
        (["--model-repository", "m", "--run-timeout-seconds", "-1"], "--run-timeout-seconds"),
        (["--model-repository", "m", "--failed-runs", "0"], "--failed-runs"),
        (["--model-repository", "m", "--failing-seconds", "-1"], "--failing-seconds"),
        (["--model-repository", "m", "--tensorrt"], "--tensorrt runs on CUDA alone; pass --device cuda"),
        (
            ["--model-repository", "m", "--device", "cuda", "--tensorrt", "--cuda-graphs"],
            "pass one of them",
        ),
        (["--model-repository", "m", "--tensorrt-cache", "c"], "--tensorrt-cache: there is nothing to keep"),
        (
            ["--model-repository", "m", "--device", "cuda", "--tensorrt", "--tensorrt-cache", "/not/there"],
            "/not/there is not a folder; make it first",
        ),
        (["--model-repository", "m", "--gpu-memory-bytes", "-1"], "--gpu-memory-bytes"),
        (
            ["--model-repository", "m", "--gpu-memory-bytes", "9", "--device", "cpu"],
            "--gpu-memory-bytes: models run on the CPU",
        ),
        (
            ["--model-repository", "m", "--gpu-memory-bytes", "9", "--workers", "2"],
            "--gpu-memory-bytes: models run on the CPU",
        ),
        (
            ["--model-repository", "m", "--config", "/not/there.yaml"],
            "--config /not/there.yaml: No such file",
        ),
    ],
)
def test_what_is_wrong_is_said_in_one_line(arguments, says):
    with pytest.raises(InvalidSettings, match=says) as caught:
        load_settings(arguments)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("model_repository: m\nmax_batch_row: 3\n", "no setting 'max_batch_row'"),
        ("model_repository: m\nconfig: other.yaml\n", "no setting 'config'"),
        ("- a\n- b\n", "expected a mapping of settings, got list"),
        ("a: [1\n", "not YAML"),
        ("model_repository: m\ngrpc_port: -1\n", r"--grpc-port: .*got -1 \(from --config .*serve.yaml\)"),
        ("model_repository: m\nmodel-repository: n\n", "there twice"),
    ],
)
def test_what_is_wrong_in_the_file_is_said_in_one_line(tmp_path, text, says):
    file = tmp_path / "serve.yaml"
    file.write_text(text)
    with pytest.raises(InvalidSettings, match=says) as caught:
        load_settings(["--config", str(file)])
    assert "\n" not in str(caught.value)


def test_a_bad_value_in_the_environment_is_found_there(monkeypatch):
    monkeypatch.setenv("NVISA_SERVE_DEVICE", "tpu")
    with pytest.raises(InvalidSettings, match=r"--device: .*'tpu' \(from NVISA_SERVE_DEVICE\)"):
        load_settings(["--model-repository", "m"])
    with pytest.raises(InvalidSettings, match=r"got 'gpu'$"):
        load_settings(["--model-repository", "m", "--device", "gpu"])


def test_an_unknown_name_in_the_environment_is_an_error(monkeypatch):
    monkeypatch.setenv("NVISA_SERVE_GRPC_PROT", "1")
    with pytest.raises(InvalidSettings, match="NVISA_SERVE_GRPC_PROT"):
        load_settings(["--model-repository", "m"])


def test_what_kubernetes_puts_into_the_environment_for_a_service_is_passed_over(monkeypatch):
    links = {
        "NVISA_SERVE_SERVICE_HOST": "10.0.0.1",
        "NVISA_SERVE_SERVICE_PORT": "8001",
        "NVISA_SERVE_SERVICE_PORT_GRPC": "8001",
        "NVISA_SERVE_PORT": "tcp://10.0.0.1:8001",
        "NVISA_SERVE_PORT_8001_TCP_ADDR": "10.0.0.1",
    }
    for name, value in links.items():
        monkeypatch.setenv(name, value)
    assert load_settings(["--model-repository", "m"]).host == "127.0.0.1"


def test_home_is_meant_wherever_a_path_comes_from(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "serve.yaml").write_text("port-file: ~/ports.json\n")
    settings = load_settings(["--model-repository=~/models", "--config=~/serve.yaml"])
    assert (settings.model_repository, settings.port_file) == (tmp_path / "models", tmp_path / "ports.json")


def test_a_model_is_not_loaded_by_one_worker_of_many():
    class WithControl(ServerSettings):
        model_control: str = "none"

    with pytest.raises(ValueError, match="by one worker of many; pass --model-control poll"):
        WithControl(model_repository="m", workers=2, model_control="explicit")
    assert WithControl(model_repository="m", workers=2, model_control="poll").workers == 2
    assert WithControl(model_repository="m", model_control="explicit").workers == 1


def test_every_flag_is_explained(capsys):
    with pytest.raises(SystemExit) as caught:
        load_settings(["--help"])
    assert caught.value.code == 0
    text = capsys.readouterr().out
    for name, field in ServerSettings.model_fields.items():
        assert f"--{name.replace('_', '-')}" in text
        assert field.description


@examples(max_examples=30, deadline=None)
@given(st.lists(st.text(max_size=20), max_size=4))
def test_any_command_line_gives_settings_or_one_clear_error(arguments):
    with contextlib.suppress(InvalidSettings, SystemExit):
        load_settings(["--model-repository", "m", *arguments])
