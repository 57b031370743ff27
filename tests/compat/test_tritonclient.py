"""A client that nobody here wrote gets the in-process engine's answers from a running server."""

import ast
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from serving.bundle import read_bundle
from serving.engine import OnnxEngine
from tests.bundles import make_bundle, random_rows
from tests.certificates import Authority
from tests.servers import TIMEOUT, ServerProcess


def test_tritonclient_reads_the_metadata_and_gets_the_engines_answers(tmp_path):
    bundle = make_bundle(tmp_path / "models", novelty=True)
    rows = random_rows(300, seed=7)
    np.save(tmp_path / "rows.npy", rows)
    with ServerProcess(tmp_path / "models", tmp_path) as server:
        script = Path(__file__).with_name("tritonclient_assign.py")
        files = (str(tmp_path / "rows.npy"), str(tmp_path / "answers.npz"))
        ended = subprocess.run(
            [sys.executable, str(script), server.grpc_target, *files],
            capture_output=True,
            text=True,
            timeout=TIMEOUT,
            check=False,
        )
        assert ended.returncode == 0, ended.stderr
    answers = np.load(tmp_path / "answers.npz")
    expected = OnnxEngine(read_bundle(bundle), "cpu").assign(rows)
    np.testing.assert_array_equal(answers["cluster"], expected.clusters)
    assert answers["cluster"].dtype == np.int64
    np.testing.assert_allclose(answers["probabilities"], expected.probabilities, rtol=1e-5, atol=1e-7)
    np.testing.assert_allclose(answers["novelty"], expected.novelty, rtol=1e-5)
    assert answers["novelty"].dtype == np.float32
    not_found, invalid = answers["refusals"]
    assert "NOT_FOUND" in not_found
    assert "no model 'nope'" in not_found
    assert "INVALID_ARGUMENT" in invalid
    assert "[n_rows, 8, 8]" in invalid


def test_tritonclient_comes_in_with_tls_and_a_token_in_either_header(tmp_path):
    make_bundle(tmp_path / "models")
    authority = Authority(tmp_path)
    pair, token = authority.issue("server"), "0123456789abcdef"
    (tmp_path / "tokens").write_text(f"inference:{token}\n")
    tls = ("--tls-certificate", str(pair.cert), "--tls-key", str(pair.key))
    with ServerProcess(
        tmp_path / "models", tmp_path, *tls, "--token-file", str(tmp_path / "tokens")
    ) as server:
        script = Path(__file__).with_name("tritonclient_secured.py")
        ended = subprocess.run(
            [sys.executable, str(script), server.grpc_target, str(authority.ca), token],
            capture_output=True,
            text=True,
            timeout=TIMEOUT,
            check=False,
        )
    assert ended.returncode == 0, ended.stderr
    assert ended.stdout.startswith("answered\nanswered\n")
    assert "UNAUTHENTICATED" in ended.stdout


@pytest.mark.parametrize("first", ["tritonclient.grpc", "serving.client.cli"])
def test_our_client_and_theirs_live_in_one_process(first):
    # Whoever describes inference.GRPCInferenceService a second time fails at import: only the server does.
    code = f"import {first}; import tritonclient.grpc, serving.client.cli, serving.labelling.cli"
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stderr[-300:]


@pytest.mark.parametrize("role", ["admin", "inference"])
def test_tritonclient_loads_and_unloads_models_with_the_right_token(tmp_path, role):
    repository, token = tmp_path / "models", "0123456789abcdef"
    make_bundle(repository)
    bundle = make_bundle(tmp_path / "new", version=2, seed=1)
    authority = Authority(tmp_path)
    pair = authority.issue("server")
    (tmp_path / "tokens").write_text(f"{role}:{token}\n")
    flags = ("--tls-certificate", str(pair.cert), "--tls-key", str(pair.key))
    flags += ("--token-file", str(tmp_path / "tokens"), "--model-control", "explicit")
    with ServerProcess(repository, tmp_path, *flags) as server:
        script = Path(__file__).with_name("tritonclient_models.py")
        arguments = (server.grpc_target, token, str(authority.ca), str(bundle), str(repository))
        ended = subprocess.run(
            [sys.executable, str(script), *arguments],
            capture_output=True,
            text=True,
            timeout=TIMEOUT,
            check=False,
        )
        assert ended.returncode == 0, ended.stderr
    lines = [line.partition(" ") for line in ended.stdout.splitlines()]
    indices = [ast.literal_eval(rest) for first, _, rest in lines if first == "index"]
    others = [f"{first} {rest}" for first, _, rest in lines if first != "index"]

    def index(*states):
        return [("toy", str(version), state) for version, state in enumerate(states, 1)]

    first = [index("READY"), index("READY", "UNAVAILABLE")]
    if role == "inference":
        assert (indices, others) == (
            first,
            ["answered by 1", "refused StatusCode.PERMISSION_DENIED"],
        )
        return
    assert indices == [*first, index("READY", "READY"), index("UNAVAILABLE", "UNAVAILABLE")]
    refusals = ("INVALID_ARGUMENT", "NOT_FOUND", "NOT_FOUND")
    assert others == [
        *("answered by 1", "answered by 2", "answered by 2"),
        *(f"refused StatusCode.{code}" for code in refusals),
    ]
