"""The labelling job in this process: what it writes, what it refuses, how it goes on."""

from __future__ import annotations

import io
import json
import shutil
import signal
from pathlib import Path

import grpc
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from serving.bundle import read_bundle
from serving.client import ClusterServiceError
from serving.engine import EngineError, OnnxEngine
from serving.labelling import shards
from serving.labelling.cli import main
from serving.labelling.failures import LabellingError, Stopped, exit_status
from serving.labelling.job import run_job
from serving.labelling.settings import LabelSettings
from serving.progress import Progress
from serving.runtime import import_onnxruntime
from tests.bundles import make_bundle, random_rows, reference_novelty
from tests.unit.serving.cluster_service import ClusterService, running

N_ROWS = 1000


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return make_bundle(tmp_path_factory.mktemp("models"), shape=(4,), n_clusters=5)


@pytest.fixture
def data(tmp_path):
    np.save(tmp_path / "x.npy", random_rows(N_ROWS, (4,), seed=3))
    return tmp_path / "x.npy"


@pytest.fixture
def label(model, data, tmp_path, capsys):
    """Runs the job with small shards; gives the exit status and what it printed."""

    def run(*arguments, output="out", **flags):
        flags = {
            "model": model,
            "input": data,
            "output": tmp_path / output,
            "rows_per_shard": 300,
            "chunk_rows": 64,
            "device": "cpu",
            **flags,
        }
        pairs = [
            part
            for name, value in flags.items()
            if value is not None
            for part in (f"--{name.replace('_', '-')}", str(value))
        ]
        status = main([*pairs, *arguments])
        captured = capsys.readouterr()
        return status, captured.out + captured.err

    return run


def answers(model: Path, x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    run = OnnxEngine(read_bundle(model), "cpu", intra_op_threads=1).assign(x)
    return run.clusters, run.confidences


def names(folder: Path) -> list[str]:
    return sorted(p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file())


def test_one_row_out_per_row_in_and_a_folder_any_parquet_reader_takes(label, model, data, tmp_path):
    status, said = label()
    assert status == 0, said
    out = tmp_path / "out"
    table = pq.read_table(out)  # sees the parts only
    clusters, confidences = answers(model, np.load(data))
    np.testing.assert_array_equal(table["row"], np.arange(N_ROWS))
    np.testing.assert_array_equal(table["cluster"], clusters)
    np.testing.assert_allclose(table["confidence"], confidences, rtol=1e-5)
    assert table["error"].null_count == N_ROWS
    assert table.schema.types == [pa.int64(), pa.int64(), pa.float32(), pa.string()]
    parts = [f"part-{i:05d}" for i in range(4)]
    assert names(out) == sorted(
        ["_SUCCESS", "_plan.json", *(f"{p}.parquet" for p in parts), *(f"_shards/{p}.json" for p in parts)]
    )
    success = json.loads((out / "_SUCCESS").read_text())
    assert (success["rows"], success["errors"]) == (N_ROWS, 0)
    assert success["cluster_counts"] == np.bincount(clusters, minlength=5).tolist()
    sidecar = json.loads((out / "_shards" / "part-00003.json").read_text())
    assert sidecar["shard"] == {"index": 3, "start": 900, "stop": 1000}
    assert sidecar["graph_sha256"] == read_bundle(model).manifest.graph_sha256
    assert "1,000 rows, 0 unreadable" in said


def test_id_columns_pass_through_and_labels_stay_out(label, tmp_path):
    model = make_bundle(tmp_path / "models", shape=(2,), dtype="float32")
    table = pa.table({"a": [0.0, 1.0], "key": ["u", "v"], "b": [1.0, 2.0], "label": [5, 6], "n": [8, 9]})
    pq.write_table(table, tmp_path / "t.parquet")
    status, said = label(model=model, input=tmp_path / "t.parquet", id_columns="key, n", label_column="label")
    assert status == 0, said
    out = pq.read_table(tmp_path / "out")
    assert out.column_names == ["row", "key", "n", "cluster", "confidence", "error"]
    assert out.select(["key", "n"]).to_pylist() == [{"key": "u", "n": 8}, {"key": "v", "n": 9}]


def encoded(x: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(x).save(buffer, "PNG")
    return buffer.getvalue()


@pytest.fixture
def broken_images(tmp_path):
    """Ten images of 8 x 8, of which 3 and 7 cannot be read."""
    images = random_rows(10)
    column = [encoded(x) for x in images]
    column[3], column[7] = b"broken", encoded(np.zeros((9, 8), np.uint8))
    pq.write_table(pa.table({"image": column}), tmp_path / "i.parquet")
    return {"model": make_bundle(tmp_path / "models"), "input": tmp_path / "i.parquet", "rows_per_shard": 4}


def test_bad_rows_stay_in_place_with_their_reason(label, broken_images, tmp_path):
    status, said = label(**broken_images, max_error_share=0.2, chunk_rows=3)
    assert status == 0, said
    rows = pq.read_table(tmp_path / "out").to_pylist()
    clusters, _ = answers(broken_images["model"], random_rows(10))
    assert [row["row"] for row in rows] == list(range(10))
    assert [r["cluster"] for r in rows] == [None if i in (3, 7) else clusters[i] for i in range(10)]
    assert [r["confidence"] is None for r in rows] == [i in (3, 7) for i in range(10)]
    assert rows[3]["error"] == "corrupt image: not an image"
    assert rows[7]["error"] == "the image is 8x9 grey, not 8x8 grey"
    assert "2 unreadable" in said


def test_too_many_bad_rows_is_42_and_can_be_allowed_later(label, broken_images, tmp_path):
    for share, first in ((0, 3), (0.1, 7)):
        status, said = label("--resume", **broken_images, max_error_share=share)
        assert status == 42
        assert f"row {first}: " in said
        assert "--max-error-share" in said
        assert not (tmp_path / "out" / "_SUCCESS").exists()
    status, said = label("--resume", **broken_images, max_error_share=0.2)
    assert status == 0, said
    assert "1 shards were done before" in said


def test_too_many_bad_rows_over_several_processes(label, broken_images, tmp_path):
    # Each process sees one bad row of ten, which it may; together they are too many.
    assert label("--shard", "0/2", **broken_images, max_error_share=0.1)[0] == 0
    status, said = label("--shard", "1/2", **broken_images, max_error_share=0.1)
    assert status == 42
    assert "2 of 10 rows could not be assigned" in said
    assert not (tmp_path / "out" / "_SUCCESS").exists()


def test_every_row_bad(label, tmp_path):
    x = np.full((3, 2), np.nan)
    np.save(tmp_path / "nan.npy", x)
    model = make_bundle(tmp_path / "models", shape=(2,), dtype="float32")
    status, said = label(model=model, input=tmp_path / "nan.npy", max_error_share=1)
    assert status == 0, said
    assert pq.read_table(tmp_path / "out")["cluster"].null_count == 3


def test_rows_the_model_has_no_answer_for_are_errors_too(label, tmp_path):
    x = np.ones((6, 2), np.float32)
    x[4] = 3e38  # finite, and infinite after the first layer
    np.save(tmp_path / "x.npy", x)
    flags = {"model": make_bundle(tmp_path / "models", shape=(2,), dtype="float32")}
    status, said = label(**flags, input=tmp_path / "x.npy")
    assert status == 42
    assert "row 4: the model has no finite probabilities for it" in said
    status, said = label("--resume", **flags, input=tmp_path / "x.npy", max_error_share=0.5)
    assert status == 0, said
    table = pq.read_table(tmp_path / "out")
    assert [v is None for v in table["cluster"].to_pylist()] == [False] * 4 + [True, False]
    assert table["confidence"].null_count == 1


def test_novelty_is_a_column_if_the_bundle_has_it(label, broken_images, tmp_path):
    model = make_bundle(tmp_path / "novel", novelty=True)
    status, said = label(**broken_images | {"model": model}, max_error_share=0.2, chunk_rows=3, batch_rows=2)
    assert status == 0, said
    table = pq.read_table(tmp_path / "out")
    assert table.column_names == ["row", "cluster", "confidence", "novelty", "error"]
    expected = reference_novelty(random_rows(10))
    for row, novelty in enumerate(table["novelty"].to_pylist()):
        assert novelty is None if row in (3, 7) else novelty == pytest.approx(expected[row], rel=1e-5)


def test_a_chunk_without_a_readable_row_has_the_novelty_column_too(label, tmp_path):
    np.save(tmp_path / "nan.npy", np.array([[np.nan] * 2] * 3 + [[1.0, 2.0]] * 3, np.float32))
    model = make_bundle(tmp_path / "models", shape=(2,), dtype="float32", novelty=True)
    status, said = label(model=model, input=tmp_path / "nan.npy", max_error_share=1, chunk_rows=3)
    assert status == 0, said
    assert pq.read_table(tmp_path / "out")["novelty"].null_count == 3


def test_an_id_column_of_the_name_novelty_is_refused_only_where_it_clashes(label, tmp_path):
    pq.write_table(pa.table({"a": [0.0, 1.0], "b": [1.0, 2.0], "novelty": [5, 6]}), tmp_path / "t.parquet")
    flags = {"input": tmp_path / "t.parquet", "id_columns": "novelty"}
    plain = make_bundle(tmp_path / "plain", shape=(2,), dtype="float32")
    assert label(model=plain, **flags)[0] == 0
    assert pq.read_table(tmp_path / "out")["novelty"].to_pylist() == [5, 6]
    novel = make_bundle(tmp_path / "novel", shape=(2,), dtype="float32", novelty=True)
    status, said = label(model=novel, output="other", **flags)
    assert status == 42
    assert "rename the id column 'novelty'" in said


def test_columns_are_found_by_name_wherever_they_are(label, tmp_path):
    x = random_rows(10, (3,), "float32")
    model = make_bundle(tmp_path / "models", shape=(3,), dtype="float32", columns=("a", "b", "c"))
    columns = {"c": x[:, 2], "a": x[:, 0], "label": np.arange(10), "b": x[:, 1]}
    pq.write_table(pa.table(columns), tmp_path / "t.parquet")
    status, said = label(model=model, input=tmp_path / "t.parquet")
    assert status == 0, said
    clusters, confidences = answers(model, x)
    found = pq.read_table(tmp_path / "out")
    assert found["cluster"].to_pylist() == clusters.tolist()
    np.testing.assert_allclose(found["confidence"].to_numpy(), confidences, rtol=1e-6)
    pq.write_table(pa.table({"a": x[:, 0], "B": x[:, 1], "c": x[:, 2]}), tmp_path / "u.parquet")
    status, said = label(model=model, input=tmp_path / "u.parquet", output="other")
    assert status == 42
    assert "has no column ['b'], which the model was fitted on" in said
    assert not (tmp_path / "other").exists()


def test_a_fault_of_the_program_shows_its_traceback_and_one_of_the_input_does_not(label, monkeypatch):
    assert "Traceback" not in label("--shard", "7/3")[1]
    monkeypatch.setattr("serving.labelling.job.label_chunk", lambda *_: 1 / 0)
    status, said = label()
    assert status == 1
    assert "Traceback" in said
    assert "nvisa-label: division by zero" in said.splitlines()[-1]


def test_existing_output_needs_resume_and_resume_does_nothing_twice(label, tmp_path):
    assert label()[0] == 0
    before = {name: (tmp_path / "out" / name).stat().st_mtime_ns for name in names(tmp_path / "out")}
    status, said = label()
    assert status == 42
    assert "pass --resume" in said
    status, said = label("--resume", rows_per_shard=None)
    assert status == 0
    assert "labelled 0 rows" in said
    after = {name: (tmp_path / "out" / name).stat().st_mtime_ns for name in names(tmp_path / "out")}
    after["_SUCCESS"] = before["_SUCCESS"]
    assert after == before


def test_resume_does_again_what_is_missing_or_damaged(label, tmp_path):
    assert label()[0] == 0
    out = tmp_path / "out"
    whole = pq.read_table(out)
    (out / "part-00000.parquet").write_bytes(b"x" * (out / "part-00000.parquet").stat().st_size)
    (out / "part-00001.parquet").unlink()
    (out / "_shards" / "part-00002.json").write_text("{")
    (out / "_SUCCESS").unlink()
    (out / ".part-00001.abc.tmp").write_text("left by a killed process")
    (out / "_shards" / ".part-00003.abc.tmp").write_text("left by a killed process")
    status, said = label("--resume")
    assert status == 0, said
    assert "3 of 4 shards to do, 1 of this process done before" in said
    assert pq.read_table(out).equals(whole)
    assert (out / "_SUCCESS").exists()
    assert not list(out.rglob(".*"))


def test_resume_refuses_what_changed_and_touches_nothing(label, model, data, tmp_path):
    assert label()[0] == 0
    before = {name: (tmp_path / "out" / name).read_bytes() for name in names(tmp_path / "out")}
    other = make_bundle(tmp_path / "models", shape=(4,), n_clusters=5, seed=9)
    np.save(tmp_path / "y.npy", random_rows(N_ROWS, (4,), seed=4))
    for flags, message in (
        ({"model": other}, "model graph_sha256 was"),
        ({"input": tmp_path / "y.npy"}, "input fingerprint was"),
        ({"rows_per_shard": 200}, "rows per shard was 300 and is 200"),
        ({"split": "test"}, "input split was 'train' and is 'test'"),
    ):
        status, said = label("--resume", **flags)
        assert status == 42
        assert message in said
    np.save(data, random_rows(N_ROWS, (4,), seed=4))  # the same file, other rows
    assert label("--resume")[0] == 42
    assert {name: (tmp_path / "out" / name).read_bytes() for name in names(tmp_path / "out")} == before


def test_resume_takes_a_copy_of_the_input_elsewhere(label, data, tmp_path):
    assert label("--shard", "0/2")[0] == 0
    moved = tmp_path / "elsewhere.npy"
    shutil.move(data, moved)
    status, said = label("--resume", input=moved)
    assert status == 0, said


def test_input_that_changes_meanwhile(model, data, tmp_path):
    settings = LabelSettings(
        model=model, input=data, output=tmp_path / "out", rows_per_shard=300, chunk_rows=300, device="cpu"
    )
    calls = []

    def change_in_the_third_shard():
        calls.append(None)
        if len(calls) == 4:  # once before the first shard
            np.save(tmp_path / "new.npy", random_rows(N_ROWS, (4,), seed=4))
            (tmp_path / "new.npy").rename(data)

    with pytest.raises(LabellingError, match="changed while it was being labelled"):
        run_job(settings, change_in_the_third_shard)
    assert sorted(p.name for p in (tmp_path / "out").glob("*.parquet")) == [
        "part-00000.parquet",
        "part-00001.parquet",
    ]


@pytest.mark.parametrize("order", [(0, 1, 2), (2, 0, 1)])
def test_processes_share_an_output_and_the_last_one_finishes(label, tmp_path, order):
    assert label(output="alone")[0] == 0
    for position, i in enumerate(order):
        assert not (tmp_path / "out" / "_SUCCESS").exists()
        status, said = label("--shard", f"{i}/3")
        assert status == 0, said
        assert ("still missing" in said) == (position < 2)
    assert (tmp_path / "out" / "_SUCCESS").exists()
    assert pq.read_table(tmp_path / "out").equals(pq.read_table(tmp_path / "alone"))
    status, said = label("--shard", "0/3")
    assert status == 42
    assert "pass --resume" in said


def test_more_processes_than_shards(label, tmp_path):
    for i in range(6):
        assert label("--shard", f"{i}/6")[0] == 0
    assert pq.read_table(tmp_path / "out").num_rows == N_ROWS


def test_input_that_does_not_fit_writes_nothing(label, tmp_path):
    np.save(tmp_path / "wide.npy", np.zeros((3, 5), np.uint8))
    np.save(tmp_path / "float.npy", np.zeros((3, 4)))
    (tmp_path / "cut.parquet").write_bytes(b"PAR1")
    for flags, message in (
        ({"input": tmp_path / "wide.npy"}, "its rows are uint8 [5], but"),
        ({"input": tmp_path / "float.npy"}, "its rows are float32 [4], but"),
        ({"input": tmp_path / "none.npy"}, "no such file or folder"),
        ({"input": tmp_path / "cut.parquet"}, "not a whole Parquet file"),
        ({"model": tmp_path}, "cannot read bundle"),
        ({"device": "cuda"}, "device=cuda"),
        ({"shard": "3/3"}, "must be i/n"),
        ({"max_error_share": 2}, "--max-error-share: Input should be less than or equal to 1"),
        ({"id_columns": "key"}, "have no columns"),
        ({"model": None}, "--model is missing; pass it, or set NVISA_LABEL_MODEL"),
    ):
        if flags.get("device") == "cuda" and _has_cuda():
            continue
        status, said = label(**flags)
        assert status == 42, said
        assert message in said
        assert said.count("\n") == 1
        assert not (tmp_path / "out").exists()


def _has_cuda() -> bool:
    return "CUDAExecutionProvider" in import_onnxruntime().get_available_providers()


def test_id_column_named_like_an_output_column(label, tmp_path):
    pq.write_table(
        pa.table({"x": pa.array([[1, 2, 3, 4]], pa.list_(pa.uint8())), "row": [1]}), tmp_path / "a.parquet"
    )
    status, said = label(input=tmp_path / "a.parquet", id_columns="row")
    assert status == 42
    assert "rename the id column 'row'" in said


def test_output_that_is_something_else(label, tmp_path):
    (tmp_path / "file").write_text("x")
    status, said = label(output="file")
    assert status == 42
    assert "Not a directory" in said
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "notes.txt").write_text("x")
    status, said = label(output="full")
    assert status == 42
    assert "not empty, and not a labelling output" in said
    (tmp_path / "damaged").mkdir()
    (tmp_path / "damaged" / "_plan.json").write_text("{}")
    status, said = label("--resume", output="damaged")
    assert status == 42
    assert "_plan.json" in said


def test_settings_from_file_and_environment(label, data, tmp_path, monkeypatch):
    (tmp_path / "job.yaml").write_text("rows-per-shard: 500\nchunk_rows: 7\n")
    status, said = label(config=tmp_path / "job.yaml", rows_per_shard=None)
    assert status == 0, said
    assert (tmp_path / "out" / "part-00001.parquet").exists()
    assert not (tmp_path / "out" / "part-00002.parquet").exists()
    monkeypatch.setenv("NVISA_LABEL_ROWS_PER_SHARD", "250")
    assert label(config=tmp_path / "job.yaml", rows_per_shard=None, output="by-env")[0] == 0
    assert len(list((tmp_path / "by-env").glob("*.parquet"))) == 4
    monkeypatch.setenv("NVISA_LABEL_ROWS_PER_SHRAD", "250")
    status, said = label()
    assert status == 42
    assert "NVISA_LABEL_ROWS_PER_SHRAD" in said
    monkeypatch.delenv("NVISA_LABEL_ROWS_PER_SHRAD")
    (tmp_path / "job.yaml").write_text("shards: 3\n")
    status, said = label(config=tmp_path / "job.yaml")
    assert status == 42
    assert "there is no setting 'shards'" in said


@pytest.fixture
def service(model):
    service = ClusterService()
    service.graph_sha256 = read_bundle(model).manifest.graph_sha256
    with running(service) as target:
        service.target = target
        yield service


def test_a_server_does_the_work(label, service, data, tmp_path):
    status, said = label(target=service.target)
    assert status == 0, said
    expected = np.load(data).sum(axis=1, dtype=np.int64) % 5  # the service's engine is the fake one
    np.testing.assert_array_equal(pq.read_table(tmp_path / "out")["cluster"], expected)
    assert {call.model_version for call in service.calls} == {1}


def test_a_server_says_novelty_too(label, service, data, tmp_path):
    model = make_bundle(tmp_path / "novel", shape=(4,), n_clusters=5, novelty=True)
    service.graph_sha256, service.says_novelty = read_bundle(model).manifest.graph_sha256, True
    status, said = label(model=model, target=service.target)
    assert status == 0, said
    expected = np.load(data).sum(axis=1, dtype=np.int64) % 101 / 100
    np.testing.assert_allclose(pq.read_table(tmp_path / "out")["novelty"], expected, rtol=1e-6)


def test_a_server_with_another_model_is_refused(label, service, tmp_path):
    service.graph_sha256 = "f" * 64
    status, said = label(target=service.target)
    assert status == 42
    assert "not the same model" in said
    assert not (tmp_path / "out").exists()


def test_a_server_that_is_loading_is_worth_a_retry(label, service, tmp_path):
    service.loading = True
    status, said = label(target=service.target)
    assert status == 1
    assert "UNAVAILABLE: model toy version 1 is loading; try again soon" in said
    assert not (tmp_path / "out").exists()


def test_a_server_that_goes_away_is_worth_a_retry(label, service, data, tmp_path):
    no_retry = {"grpc-retry-pushback-ms": "-1"}
    service.failures = [(grpc.StatusCode.UNAVAILABLE, no_retry)]
    status, said = label(target=service.target)
    assert status == 1
    assert "UNAVAILABLE: not now" in said
    status, said = label("--resume", target=service.target)
    assert status == 0, said
    expected = np.load(data).sum(axis=1, dtype=np.int64) % 5
    np.testing.assert_array_equal(pq.read_table(tmp_path / "out")["cluster"], expected)


def test_success_is_refused_when_counts_do_not_reconcile(label, tmp_path, monkeypatch):
    def lossy(output, plan, shard, table, counts):
        sidecar = shards.write_shard(output, plan, shard, table, counts)
        part, path = shards.part_path(output, shard), shards.sidecar_path(output, shard)
        pq.write_table(table.slice(1), part)  # a row lost, and the sidecar none the wiser
        path.write_text(sidecar.model_copy(update={"output_bytes": part.stat().st_size}).model_dump_json())
        return sidecar

    monkeypatch.setattr("serving.labelling.job.write_shard", lossy)
    status, said = label()
    assert status == 42
    assert "part-00000.parquet: has 299 rows, the plan says 300" in said
    assert not (tmp_path / "out" / "_SUCCESS").exists()


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (Stopped(signal.SIGTERM), 143),
        (Stopped(signal.SIGINT), 130),
        (OSError(28, "No space left on device"), 1),
        (PermissionError(13, "Permission denied"), 42),
        (EngineError("inference failed"), 1),
        (ClusterServiceError(grpc.StatusCode.UNAVAILABLE, "m", "t"), 1),
        (ClusterServiceError(grpc.StatusCode.RESOURCE_EXHAUSTED, "m", "t"), 1),
        (ClusterServiceError(grpc.StatusCode.DEADLINE_EXCEEDED, "m", "t"), 1),
        (ClusterServiceError(grpc.StatusCode.NOT_FOUND, "m", "t"), 42),
        (ClusterServiceError(grpc.StatusCode.INVALID_ARGUMENT, "m", "t"), 42),
    ],
)
def test_exit_statuses(error, status):
    assert exit_status(error) == status


class Terminal(io.StringIO):
    def isatty(self):
        return True


@pytest.mark.parametrize("stream", [io.StringIO(), Terminal()])
def test_progress_on_a_terminal_and_elsewhere(stream):
    with Progress(total=100, done=20, stream=stream) as progress:
        progress.say("begun")
        progress.add(30)
        progress.add(50)
    text = stream.getvalue()
    assert "begun" in text
    if stream.isatty():
        assert "100/100" in text
    else:
        assert text.splitlines()[-1].startswith("100 of 100 rows, ")
