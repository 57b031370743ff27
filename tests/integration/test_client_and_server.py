"""The client, its command line and the labelling job against the real server in a process of its own."""

from __future__ import annotations

import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from serving.bundle import read_bundle
from serving.client import AsyncClusterClient, ClusterClient, ClusterServiceError, Health
from serving.client.cli import main as client_main
from serving.engine import OnnxEngine
from serving.labelling.cli import main as label_main
from tests.bundles import make_bundle, random_rows
from tests.servers import ServerProcess

N_ROWS = 10_000


@pytest.fixture(scope="module")
def bundle(tmp_path_factory):
    return read_bundle(make_bundle(tmp_path_factory.mktemp("served") / "models"))


@pytest.fixture(scope="module")
def table_bundle(bundle):
    columns = ("a", "b", "c")
    path = make_bundle(bundle.path.parents[1], "table", shape=(3,), dtype="float32", columns=columns)
    return read_bundle(path)


@pytest.fixture(scope="module")
def target(bundle, table_bundle, tmp_path_factory):
    with ServerProcess(bundle.path.parents[1], tmp_path_factory.mktemp("server")) as server:
        yield server.grpc_target
        server.terminate()
        assert server.wait() == 0, server.log()


@pytest.fixture(scope="module")
def data(bundle, tmp_path_factory):
    """The file, and the in-process engine's answers."""
    x = random_rows(N_ROWS, seed=7)
    path = tmp_path_factory.mktemp("data") / "x.npy"
    np.save(path, x)
    return path, OnnxEngine(bundle, "cpu", intra_op_threads=1).assign(x)


async def test_both_clients_answer_as_the_engine_does(target, data):
    path, expected = data
    x = np.load(path)
    with ClusterClient(target) as client:
        one = client.assign(x, model="toy", probabilities=True)
        assert client.health() == Health(alive=True, ready=True)
    async with AsyncClusterClient(target) as client:
        other = await client.assign(x, model="toy", probabilities=True)
    for result in (one, other):
        np.testing.assert_array_equal(result.clusters, expected.clusters)
        np.testing.assert_allclose(result.confidences, expected.confidences, rtol=1e-5)
        np.testing.assert_allclose(result.probabilities, expected.probabilities, rtol=1e-4, atol=1e-6)


def test_command_line(target, data, tmp_path, capsys):
    path, expected = data
    out = tmp_path / "out.parquet"
    arguments = ["--target", target, "--model", "toy", "--input", str(path), "--output", str(out)]
    assert client_main(["assign", *arguments, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["rows"] == N_ROWS
    np.testing.assert_array_equal(pq.read_table(out)["cluster"], expected.clusters)
    assert client_main(["models", "--target", target, "--json"]) == 0
    table, model = json.loads(capsys.readouterr().out)
    assert (model["name"], model["version"], model["state"]) == ("toy", 1, "ready")
    assert (table["columns"], model["columns"]) == (["a", "b", "c"], [])


async def test_columns_go_by_name(target, table_bundle, tmp_path, capsys):
    """Of a file they are put in order; of a table in memory another order is refused, in all its parts."""
    x = random_rows(N_ROWS, (3,), "float32", seed=7)
    expected = OnnxEngine(table_bundle, "cpu", intra_op_threads=1).assign(x).clusters
    table = pa.table({name: x[:, "abc".index(name)] for name in "cab"})
    pq.write_table(table, tmp_path / "x.parquet")
    arguments = ["--target", target, "--model", "table", "--input", str(tmp_path / "x.parquet")]
    assert client_main(["assign", *arguments, "--output", str(tmp_path / "out.npy")]) == 0
    np.testing.assert_array_equal(np.load(tmp_path / "out.npy"), expected)
    ordered, refused = table.select(["a", "b", "c"]), "columns in another order: number 0 is 'c', not 'a'"
    with ClusterClient(target) as client:
        np.testing.assert_array_equal(client.assign(ordered, model="table").clusters, expected)
        with pytest.raises(ClusterServiceError, match=refused):
            client.assign(table, model="table")
        answers = list(client.assign_stream([ordered[:9], table[:9]], model="table"))
    async with AsyncClusterClient(target) as client:
        np.testing.assert_array_equal((await client.assign(ordered, model="table")).clusters, expected)
        with pytest.raises(ClusterServiceError, match=refused):
            await client.assign(table, model="table")
    np.testing.assert_array_equal(answers[0].clusters, expected[:9])
    assert refused in str(answers[1])


def test_labelling_by_the_server_and_in_process_agree(target, bundle, data, tmp_path):
    path, expected = data
    for name, more in (("remote", ["--target", target]), ("local", ["--device", "cpu"])):
        arguments = ["--model", str(bundle.path), "--input", str(path), "--output", str(tmp_path / name)]
        assert label_main([*arguments, "--rows-per-shard", "4000", *more]) == 0
        np.testing.assert_array_equal(pq.read_table(tmp_path / name)["cluster"], expected.clusters)


def test_labelling_refuses_a_server_with_another_model_of_the_name(target, data, tmp_path, capsys):
    other = make_bundle(tmp_path / "models", seed=5)
    arguments = ["--model", str(other), "--input", str(data[0]), "--output", str(tmp_path / "out")]
    assert label_main([*arguments, "--target", target]) == 42
    assert "not the same model" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
