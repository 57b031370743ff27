"""`nvisa-models`: labels are changed and changed back by command, and servers take what it writes."""

from __future__ import annotations

import json
import os

import pytest

from serving.labels import LABELS_FILE
from serving.models_cli import main
from tests.bundles import make_bundle
from tests.unit.serving.served import serving


@pytest.fixture
def path(tmp_path):
    for version in (1, 2, 3):
        make_bundle(tmp_path, version=version)
    make_bundle(tmp_path, version=4, shape=(9, 9))
    return tmp_path


@pytest.fixture
def run(path, capsys):
    def run(command, *arguments, status=0):
        assert main([command, str(path), *arguments]) == status
        return capsys.readouterr()

    return run


def labels(path):
    file = path / "toy" / LABELS_FILE
    return file.read_text() if file.exists() else None


def test_labels_are_set_and_those_that_are_not_named_stay(path, run):
    assert run("label", "toy", "stable=1").out == "labels of toy:\nstable: 1\n"
    assert labels(path) == "stable: 1\n"
    run("label", "toy", "canary=2:10%", "shadow=3")
    assert labels(path) == "stable: 1\ncanary: {version: 2, share: 0.1}\nshadow: {version: 3}\n"
    run("label", "toy", "canary=2:0.25")
    run("label", "toy", "shadow=")
    assert labels(path) == "stable: 1\ncanary: {version: 2, share: 0.25}\n"
    run("label", "toy", "canary=3")  # its share stays
    assert labels(path) == "stable: 1\ncanary: {version: 3, share: 0.25}\n"
    run("label", "toy", "stable=3", "canary=")
    assert labels(path) == "stable: 3\n"


def test_a_rollback_puts_back_what_was_there_and_another_one_undoes_it(path, run):
    assert "no change by nvisa-models is on record" in run("rollback", "toy", status=1).err
    run("label", "toy", "stable=1")
    before = "# by hand\nstable: 2\n"
    (path / "toy" / LABELS_FILE).write_text(before)
    run("label", "toy", "stable=3", "canary=1:5%")
    after = labels(path)
    assert run("rollback", "toy").out == "labels of toy:\nstable: 2\n"
    assert labels(path) == before, "to the byte"
    run("rollback", "toy")
    assert labels(path) == after


def test_a_rollback_of_the_first_labels_takes_the_file_away(path, run):
    run("label", "toy", "stable=1")
    assert run("rollback", "toy").out == "labels of toy:\nnone; the largest version answers\n"
    assert labels(path) is None
    run("rollback", "toy")
    assert labels(path) == "stable: 1\n"


def test_a_rollback_to_a_version_that_is_gone_is_refused(path, run):
    run("label", "toy", "stable=1")
    run("label", "toy", "stable=2")
    (path / "toy" / "1").rename(path / "toy" / ".withdrawn-1")
    assert f"stable is version 1, which is not in {path / 'toy'}, which has 2, 3, 4" in (
        run("rollback", "toy", status=1).err
    )
    assert labels(path) == "stable: 2\n"


def test_versions_with_columns_in_another_order_take_other_rows(path, run):
    values = {"name": "table", "shape": (2,), "dtype": "float32"}
    make_bundle(path, version=1, columns=("a", "b"), **values)
    make_bundle(path, version=2, columns=("b", "a"), **values)
    make_bundle(path, version=3, **values)
    run("label", "table", "stable=1", "canary=3:10%")
    says = "which takes other rows than stable: columns in another order: number 0 is 'b', not 'a'"
    assert says in run("label", "table", "canary=2:10%", status=1).err


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["toy", "stable=9"], "stable is version 9, which is not in"),
        (["toy", "canary=2:10%"], "stable: Field required"),
        (["toy", "stable=1", "canary=2"], "canary.share: Field required"),
        (["toy", "stable=1", "canary=2:100%"], "canary.share: Input should be less than 1"),
        (["toy", "stable=1", "canary=1:10%"], "canary and stable are both version 1"),
        (["toy", "stable=1", "shadow=4"], "shadow is version 4, which takes other rows than stable"),
        (["toy", "stable=1", "stable=2"], "a label is named twice"),
        (["nope", "stable=1"], "has no model 'nope'"),
        (["../toy", "stable=1"], "has no model '../toy'"),
    ],
)
def test_what_a_server_would_refuse_is_not_written(path, run, arguments, says):
    before = {p: p.stat().st_mtime_ns for p in path.rglob("*")}
    captured = run("label", *arguments, status=1)
    assert says in captured.err
    assert captured.err.count("\n") == 1
    assert {p: p.stat().st_mtime_ns for p in path.rglob("*")} == before


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ("latest=1", "is not LABEL=VERSION with a label of stable, canary, shadow"),
        ("stable", "is not LABEL=VERSION"),
        ("stable=one", "'one' is not the number of a version"),
        ("stable=1:5%", "only the canary has a share"),
        ("canary=1:some", "'some' is not a share, such as 10% or 0.1"),
    ],
)
def test_wrong_usage_is_said(path, capsys, change, says):
    with pytest.raises(SystemExit) as caught:
        main(["label", str(path), "toy", change])
    assert caught.value.code == 2
    assert says in capsys.readouterr().err


def test_damaged_bundles_get_no_label(path, run):
    (path / "toy" / "2" / "model.onnx").write_bytes(b"cut short")
    assert "the file is damaged or was replaced" in run("label", "toy", "stable=2", status=1).err
    assert labels(path) is None


def test_a_labels_file_that_cannot_be_read_is_named_and_left_alone(path, run):
    (path / "toy" / LABELS_FILE).write_text("stable: [")
    assert "not YAML" in run("label", "toy", "stable=2", status=1).err
    assert labels(path) == "stable: ["


def test_nothing_changes_on_a_full_disk(path, run, monkeypatch):
    run("label", "toy", "stable=1")
    monkeypatch.setattr(
        os, "replace", lambda *_: (_ for _ in ()).throw(OSError(28, "No space left on device"))
    )
    assert "No space left on device" in run("label", "toy", "stable=2", status=1).err
    monkeypatch.undo()
    assert labels(path) == "stable: 1\n"
    assert [p.name for p in (path / "toy").iterdir() if p.name.endswith(".tmp")] == []


def test_list_shows_versions_labels_and_what_is_wrong(path, run):
    run("label", "toy", "stable=1", "canary=2:10%")
    lines = run("list").out.splitlines()
    assert lines[0].startswith("toy/1 [stable]: 10 clusters of uint8 [8, 8], 2026-01-01")
    assert lines[1].startswith("toy/2 [canary]: ")
    assert lines[2].startswith("toy/3: ")
    (path / "toy" / "3" / "manifest.json").unlink()
    (path / "toy" / LABELS_FILE).write_text("stable: 7")
    captured = run("list", status=1)
    assert "toy/3: cannot read bundle" in captured.out
    assert f"labels: {path / 'toy' / LABELS_FILE}: stable is version 7, which is not there" in captured.out
    said = json.loads(run("list", "--json", status=1).out)
    assert [v["version"] for v in said["versions"]] == [1, 2, 3, 4]
    assert [bool(v["problem"]) for v in said["versions"]] == [False, False, True, False]
    assert list(said["label_problems"]) == ["toy"]


def test_a_repository_that_is_not_there_is_said(path, capsys):
    assert main(["list", str(path / "none")]) == 1
    assert f"model repository {path / 'none'} is not a directory" in capsys.readouterr().err


async def test_a_server_takes_what_is_written_and_what_is_put_back(path, run):
    (path / "toy" / "4").rename(path / ".elsewhere")
    run("label", "toy", "stable=1")
    async with serving(path) as served:
        assert (await served.ask())[0] == 1
        run("label", "toy", "stable=2", "canary=3:50%")
        await served.look()
        assert {(await served.ask(key=f"call-{i}"))[0] for i in range(20)} == {2, 3}
        assert (await served.ask(label="canary"))[0] == 3
        run("rollback", "toy")
        await served.look()
        assert {(await served.ask(key=f"call-{i}"))[0] for i in range(20)} == {1}
        assert served.value("nvisa_labels_stale", model="toy") == 0
