import json
import os

import numpy as np
import pytest

from serving.bundle import (
    GRAPH_FILE,
    MANIFEST_FILE,
    BundleError,
    find_bundles,
    parse_version,
    read_bundle,
    sha256,
    write_bundle,
)
from serving.manifest import InputSpec, columns_difference
from tests.bundles import make_bundle


@pytest.fixture
def bundle(tmp_path):
    return read_bundle(make_bundle(tmp_path / "models"))


def change(path, **fields):
    manifest = json.loads((path / MANIFEST_FILE).read_text())
    (path / MANIFEST_FILE).write_text(json.dumps(manifest | fields))


def test_what_is_written_is_read_and_nothing_else_is_there(bundle, tmp_path):
    path = write_bundle(tmp_path / "other" / "toy" / "1", bundle.manifest, bundle.graph)
    again = read_bundle(path)
    assert (again.manifest, again.graph) == (bundle.manifest, bundle.graph)
    assert sorted(os.listdir(path)) == [MANIFEST_FILE, GRAPH_FILE]
    assert os.listdir(path.parent) == ["1"]


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({"schema_version": 4}, "schema_version: Input should be 1, 2 or 3"),
        ({"schema_version": 2}, "what is said takes schema_version 1"),
        ({"schema_version": 3}, "what is said takes schema_version 1"),
        ({"outputs": ["probabilities", "cluster", "novelty"]}, "novelty takes an output of that name"),
        ({"surprise": 1}, "surprise: Extra inputs are not permitted"),
        ({"n_clusters": 9}, "clusters must list the ids 0..8 in order"),
        ({"name": "../toy"}, "name: String should match"),
        ({"version": 0}, "version: "),
        ({"graph_sha256": "0" * 64}, "SHA-256 is .*, the manifest says 000"),
        ({"reference": {}}, "reference.cluster_shares: Field required"),
    ],
)
def test_a_manifest_that_does_not_fit_is_refused_by_field(bundle, fields, says):
    change(bundle.path, **fields)
    with pytest.raises(BundleError, match=says) as caught:
        read_bundle(bundle.path)
    assert str(bundle.path) in str(caught.value)


def test_novelty_takes_the_second_version_of_the_schema_and_nothing_else_does(bundle, tmp_path):
    assert "novelty" not in json.loads((bundle.path / MANIFEST_FILE).read_text())
    with_novelty = read_bundle(make_bundle(tmp_path / "other", novelty=True))
    assert with_novelty.manifest.novelty.cost_ratio == 1.5
    document = json.loads((with_novelty.path / MANIFEST_FILE).read_text())
    assert (document["schema_version"], document["novelty"]["score"]) == (2, "toy")
    change(with_novelty.path, schema_version=1)
    with pytest.raises(BundleError, match="what is said takes schema_version 2"):
        read_bundle(with_novelty.path)


def test_columns_take_the_third_version_of_the_schema_and_no_more_than_they_name(bundle, tmp_path):
    assert "columns" not in json.loads((bundle.path / MANIFEST_FILE).read_text())["input"]
    names = ("a", "b", "c")
    path = make_bundle(tmp_path / "other", shape=(3,), dtype="float32", novelty=True, columns=names)
    named = read_bundle(path)
    assert named.manifest.input.columns == names
    document = json.loads((path / MANIFEST_FILE).read_text())
    assert (document["schema_version"], document["input"]["columns"]) == (3, ["a", "b", "c"])
    change(path, schema_version=2)
    with pytest.raises(BundleError, match="what is said takes schema_version 3"):
        read_bundle(path)
    for columns, says in ((["a", "b"], "names 2 values of a row of shape"), (["a", "b", "a"], "twice")):
        change(path, input=document["input"] | {"columns": columns})
        with pytest.raises(BundleError, match=says):
            read_bundle(path)


@pytest.mark.parametrize(
    ("expected", "found", "says"),
    [
        ("abc", "abc", ""),
        ("abc", "", ""),
        ("", "abc", ""),
        ("abc", "bac", "columns in another order: number 0 is 'b', not 'a'"),
        ("abc", "abd", "other columns, without ['c'] and with ['d']"),
        ("abc", "ab", "other columns, without ['c']"),
        ("ab", "abc", "other columns, with ['c']"),
    ],
)
def test_columns_are_compared_where_both_are_known(expected, found, says):
    assert columns_difference(expected, found) == says


def test_long_names_fit_into_a_message_of_grpc():
    names = [f"{i} " + "問" * 500 for i in range(40)]
    said = columns_difference(names[:20], names[20:])
    assert said.startswith("other columns, without ['0 問")
    assert "and 14 more with [" in said.replace(" and with", " with")
    assert 9 * len(said) < 8192, "percent-encoded"


def test_rows_differ_in_type_and_shape_before_columns():
    spec = InputSpec(dtype="float32", shape=(2,), meaning="features", columns=("a", "b"))
    assert spec.difference(spec.model_copy(update={"columns": ()})) == ""
    assert spec.difference(spec.model_copy(update={"columns": ("b", "a")})).startswith("columns in another")
    image = InputSpec(dtype="uint8", shape=(8, 8), meaning="image")
    assert spec.difference(image) == "uint8 [8, 8] (image), not float32 [2] (features)"


@pytest.mark.parametrize("name", [GRAPH_FILE, MANIFEST_FILE])
def test_a_missing_or_cut_file_is_named(bundle, name):
    path = bundle.path / name
    path.write_bytes(path.read_bytes()[:-10])
    with pytest.raises(BundleError, match=name):
        read_bundle(bundle.path)
    path.unlink()
    with pytest.raises(BundleError, match=f"No such file or directory: .*{name}"):
        read_bundle(bundle.path)


def test_a_version_is_never_overwritten_and_a_failed_write_leaves_nothing(bundle, tmp_path):
    before = read_bundle(bundle.path)
    with pytest.raises(BundleError, match="already exists"):
        write_bundle(bundle.path, bundle.manifest, bundle.graph)
    assert read_bundle(bundle.path) == before
    with pytest.raises(BundleError, match="must end in toy/1"):
        write_bundle(tmp_path / "toy" / "2", bundle.manifest, bundle.graph)
    with pytest.raises(BundleError, match="not the hash"):
        write_bundle(tmp_path / "toy" / "1", bundle.manifest, bundle.graph + b" ")
    (tmp_path / "file").write_text("")
    with pytest.raises(BundleError, match="Not a directory"):
        write_bundle(tmp_path / "file" / "toy" / "1", bundle.manifest, bundle.graph)
    assert sorted(os.listdir(tmp_path)) == ["file", "models"]


def test_a_full_disk_leaves_nothing(bundle, tmp_path, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("serving.bundle.write_synced", full)
    with pytest.raises(BundleError, match="No space left on device"):
        write_bundle(tmp_path / "toy" / "1", bundle.manifest, bundle.graph)
    assert os.listdir(tmp_path / "toy") == []


def test_bundles_are_found_by_name_and_number_and_all_else_is_passed_over(tmp_path):
    for name in ("b/2", "b/10", "a/1", "a/01", "a/latest", "a/.staging-x", ".hidden/1", "no name/1"):
        (tmp_path / name).mkdir(parents=True)
    (tmp_path / "README").write_text("")
    found = [path.relative_to(tmp_path).as_posix() for path in find_bundles(tmp_path)]
    assert found == ["a/1", "b/2", "b/10"]


def test_a_repository_that_cannot_be_read_is_a_bundle_error(tmp_path, monkeypatch):
    def denied(self):
        raise PermissionError(13, "Permission denied", str(self))

    monkeypatch.setattr(type(tmp_path), "iterdir", denied)
    with pytest.raises(BundleError, match=f"{tmp_path}: Permission denied"):
        find_bundles(tmp_path)


@pytest.mark.parametrize("text", ["0", "01", "-1", "1.0", "", "v1", "1\n", "9" * 19])
def test_no_other_text_is_a_version(text):
    assert parse_version(text) is None


def test_rows_are_little_endian_and_sized():
    spec = InputSpec(dtype="float32", shape=(2, 3), meaning="features")
    assert (spec.numpy_dtype, spec.row_size, spec.row_bytes) == (np.dtype("<f4"), 6, 24)
    assert sha256(b"") == "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"
