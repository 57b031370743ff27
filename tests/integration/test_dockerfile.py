"""The Dockerfile: clean by hadolint, and in step with the package, its settings and its extras."""

import json
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from serving.settings import ServerSettings

ROOT = Path(__file__).parents[2]
DOCKERFILE = ROOT / "Dockerfile"
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


def stages():
    """Instructions of each stage as ``(keyword, arguments)``, by the stage's name; "" is before any."""
    text = "\n".join(
        line for line in DOCKERFILE.read_text().splitlines() if not line.lstrip().startswith("#")
    )
    found, current = {"": []}, ""
    for line in text.replace("\\\n", " ").splitlines():
        if not line.strip():
            continue
        keyword, arguments = line.split(maxsplit=1)
        if keyword == "FROM":
            current = arguments.split()[-1]
            found[current] = []
        found[current].append((keyword, " ".join(arguments.split())))
    return found


def lineage(stage):
    """Instructions of a stage and of the stages it is built on, the oldest first."""
    parent = stages()[stage][0][1].split()[0]
    return (lineage(parent) if parent in stages() else []) + stages()[stage]


def arguments(stage, keyword):
    return [value for key, value in lineage(stage) if key == keyword]


def environment(stage):
    return dict(re.findall(r"(\w+)=(\S+)", " ".join(arguments(stage, "ENV"))))


def test_hadolint_has_nothing_to_say():
    hadolint = Path(sys.executable).parent / "hadolint"
    done = subprocess.run([hadolint, DOCKERFILE], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_hadolint_would_have(tmp_path):
    bad = tmp_path / "Dockerfile"
    bad.write_text("FROM python:latest\nRUN pip install numpy\n")
    hadolint = Path(sys.executable).parent / "hadolint"
    done = subprocess.run([hadolint, bad], capture_output=True, text=True, timeout=60)
    assert done.returncode == 1
    assert "DL3007" in done.stdout


@pytest.mark.parametrize(("stage", "program"), [("server", "nvisa-serve"), ("trainer", "nvisa-train")])
def test_images_run_their_program_as_nobody_special_and_pass_signals_on(stage, program):
    assert re.fullmatch(r"[1-9]\d{3,}:[1-9]\d{3,}", arguments(stage, "USER")[-1])
    # The JSON form has no shell in between, and tini passes signals on.
    assert json.loads(arguments(stage, "ENTRYPOINT")[-1]) == ["tini", "--", program]
    assert program in PROJECT["scripts"]
    assert "tini" in " ".join(arguments(stage, "RUN"))
    keywords = [key for key, _ in lineage(stage)]
    assert "RUN" not in keywords[keywords.index("USER") :]
    labels = " ".join(arguments(stage, "LABEL"))
    for name in ("title", "description", "version", "revision"):
        assert f"org.opencontainers.image.{name}=" in labels
    assert f"VERSION={PROJECT['version']}" in arguments(stage, "ARG")
    assert environment(stage)["PYTHONDONTWRITEBYTECODE"] == "1"
    assert environment(stage)["ORT_DISABLE_TELEMETRY"] == "1"


def test_the_server_image_is_the_default_and_checks_that_it_has_no_torch():
    assert list(stages())[-1] == "server"
    install = " ".join(arguments("server-packages", "RUN"))
    assert "[serving,tracing,${RUNTIME}]" in install
    assert "import torch" in install
    assert "training" not in install


@pytest.mark.parametrize("stage", ["server-packages", "trainer-packages"])
def test_packages_are_pinned_and_their_extras_exist(stage):
    install = arguments(stage, "RUN")[-1]
    assert "--constraint /constraints.txt" in install
    [extras] = re.findall(r"\[([\w,${}]+)\]\"", install)
    runtimes = ["cpu", "gpu"] if "${RUNTIME}" in extras else [""]
    for runtime in runtimes:
        names = set(extras.replace("${RUNTIME}", runtime).split(","))
        assert names <= set(PROJECT["optional-dependencies"])


def test_the_server_image_sets_what_the_server_knows():
    variables = environment("server")
    settings = {
        name.removeprefix("NVISA_SERVE_").lower(): value
        for name, value in variables.items()
        if name.startswith("NVISA_")
    }
    server = ServerSettings(_cli_parse_args=[], **settings)
    assert server.host == "0.0.0.0"
    assert {str(server.grpc_port), str(server.metrics_port)} == set(arguments("server", "EXPOSE")[-1].split())


def test_the_health_check_is_python_and_asks_whether_the_server_is_ready():
    check = arguments("server", "HEALTHCHECK")[-1]
    interpreter, flag, code = json.loads(check[check.index("CMD") + 3 :])
    assert (interpreter, flag) == ("python", "-c")
    compile(code, "HEALTHCHECK", "exec")
    assert "/readyz" in code
    assert f"'{ServerSettings.model_fields['metrics_port'].default}'" in code


def test_everything_copied_is_there_and_in_the_build_context():
    allowed = [line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")]
    copied = set()
    for instructions in stages().values():
        for keyword, value in instructions:
            if keyword == "COPY" and not value.startswith("--from="):
                copied |= set(value.split()[:-1])
    assert copied == set(allowed)
    assert [name for name in sorted(copied) if not (ROOT / name).exists()] == []
