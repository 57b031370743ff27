"""Aligning a new run with an old bundle: matching, names, what is written, and what is refused."""

from __future__ import annotations

import json
import re
from itertools import permutations

import numpy as np
import pytest

from serving.bundle import read_bundle
from serving.engine import OnnxEngine
from tests.bundles import make_bundle
from training.align import bundle_clusters
from training.cli import main
from training.fitted import Fitted
from training.inference import probabilities
from training.matching import compare

FIT = [
    *("--epochs", "2", "--pretrain-epochs", "40", "--hidden-sizes", "32", "--latent-dim", "2"),
    *("--gmm-starts", "2"),
]
NAMES = ("ants", "bees", "cats", "dogs")


def test_same_clusters_in_another_order_are_found_again():
    old = np.array([0, 0, 1, 1, 1, 2, 2, 3])
    new = np.array([3, 3, 0, 0, 0, 1, 1, 2])
    found = compare(old, new, NAMES, 4)
    assert found.order == (3, 0, 1, 2)
    assert tuple(cluster.name for cluster in found.clusters) == NAMES
    assert (found.moved, found.moved_before) == (0, 1)
    assert [cluster.shared_rows for cluster in found.clusters] == [2, 3, 2, 1]


@pytest.mark.parametrize("seed", range(5))
def test_no_other_numbering_moves_fewer_rows(seed):
    random = np.random.default_rng(seed)
    old, new = random.integers(0, 4, (2, 60))
    found = compare(old, new, NAMES, 4)
    fewest = min((np.array(order)[new] != old).mean() for order in permutations(range(4)))
    assert found.moved == pytest.approx(fewest)
    by_cluster = sum(cluster.moved * cluster.rows for cluster in found.old_clusters)
    assert by_cluster / 60 == pytest.approx(found.moved)


def test_new_clusters_get_ids_after_the_old_ones():
    old = np.array([0] * 6 + [1] * 6)
    new = np.array([2] * 6 + [0] * 4 + [1] * 2)
    found = compare(old, new, ("cluster-2", "bees"), 3)
    assert found.order == (2, 0, 1)
    assert [cluster.name for cluster in found.clusters] == ["cluster-2", "bees", "cluster-2-new"]
    assert [cluster.old_id for cluster in found.clusters] == [0, 1, None]
    assert found.lost_ids == []
    assert found.old_clusters[1].moved == pytest.approx(1 / 3)
    lines = str(found).splitlines()
    assert lines[3].split() == ["2", "cluster-2-new", "1", "new", "2", "0"]
    assert "16.67% of 12 reference rows" in str(found)


def test_with_fewer_clusters_ids_stay_dense_and_what_disappears_is_told():
    old = np.array([0] * 3 + [1] * 4 + [2] * 2 + [3] * 5)
    new = np.array([0] * 3 + [1] * 4 + [1] * 2 + [2] * 5)
    found = compare(old, new, NAMES, 3)
    assert [cluster.name for cluster in found.clusters] == ["ants", "bees", "dogs"]
    assert [(lost.id, lost.new_id) for lost in found.lost_ids] == [(2, None), (3, 2)]
    assert found.moved == pytest.approx(7 / 14), "cats are bees now, and dogs have another id"
    text = str(found)
    assert "old cluster 2 'cats' (2 rows) has disappeared; id 2 means another cluster now" in text
    assert "old cluster 3 'dogs' has id 2 now" in text


def test_no_name_goes_to_a_cluster_that_shares_no_row():
    old = np.array([0, 0, 0, 1, 1, 1])
    new = np.array([1, 1, 1, 1, 1, 1])
    found = compare(old, new, ("ants", "bees", "cats"), 3)
    # All rows are in one new cluster; it can be one old one only, and which does not matter.
    named = [cluster.name for cluster in found.clusters if not cluster.name.startswith("cluster-")]
    assert len(named) == 1
    assert set(named) <= {"ants", "bees"}
    assert found.moved == 0.5
    assert "no reference row is in old cluster 2 'cats'" in str(found)


def test_a_cluster_that_kept_few_of_its_rows_is_pointed_out():
    old = np.array([0] * 10 + [1] * 10)
    new = np.array([0] * 4 + [1] * 3 + [2] * 3 + [1] * 10)
    assert "cluster 0 'ants' kept 40% of its rows: look at it" in str(compare(old, new, ("ants", "bees"), 3))


def test_bundle_clusters_are_those_of_the_engine(tmp_path):
    bundle = read_bundle(make_bundle(tmp_path, shape=(6,), dtype="float32"))
    x = np.random.default_rng(0).standard_normal((5000, 6)).astype(np.float32)
    np.testing.assert_array_equal(bundle_clusters(bundle, x), OnnxEngine(bundle, "cpu").assign(x).clusters)


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Rows of four clusters, and two runs on them, of four clusters and of three."""
    random = np.random.default_rng(0)
    x = 8 * np.eye(4)[:, None] + random.standard_normal((4, 30, 4))
    folder = tmp_path_factory.mktemp("align")
    np.save(folder / "x.npy", x.reshape(-1, 4).astype(np.float32))
    for seed, clusters in ((0, 4), (1, 4), (2, 3)):
        arguments = ["fit", str(folder / "x.npy"), "--clusters", str(clusters), "--seed", str(seed)]
        assert main([*arguments, "--output", str(folder / f"run-{seed}"), *FIT]) == 0
    old = folder / "models" / "zoo" / "1"
    assert main(["export", str(folder / "run-0"), "--output", str(old)]) == 0
    manifest = json.loads((old / "manifest.json").read_text())
    for cluster, name in zip(manifest["clusters"], NAMES, strict=True):
        cluster["name"] = name
    (old / "manifest.json").write_text(json.dumps(manifest))
    return folder


def files(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}


def test_aligned_run_is_written_anew_and_exports_the_names(data, tmp_path, capsys):
    before = files(data / "run-1")
    arguments = ["align", str(data / "models/zoo/1"), str(data / "run-1"), "--data", str(data / "x.npy")]
    assert main([*arguments, "--output", str(tmp_path / "aligned")]) == 0
    text = capsys.readouterr().out
    assert "reference rows have another id than in the old model" in text
    assert f"aligned run written to {tmp_path / 'aligned'}" in text
    assert files(data / "run-1") == before
    assert [path.name for path in tmp_path.iterdir()] == ["aligned"], "nothing else is left"

    x = np.load(data / "x.npy")
    old, new = Fitted.load(data / "run-0"), Fitted.load(tmp_path / "aligned")
    moved = (probabilities(new.model, x).argmax(1) != probabilities(old.model, x).argmax(1)).mean()
    report = json.loads((tmp_path / "aligned" / "alignment.json").read_text())
    assert report["moved"] == pytest.approx(moved)
    assert report["moved"] < 0.1
    assert main(["export", str(tmp_path / "aligned"), "--output", str(tmp_path / "zoo" / "2")]) == 0
    manifest = read_bundle(tmp_path / "zoo" / "2").manifest
    assert tuple(cluster.name for cluster in manifest.clusters) == NAMES

    capsys.readouterr()
    assert main([*arguments, "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == report


def test_fewer_clusters_are_written_only_when_asked_for(data, tmp_path, capsys):
    arguments = ["align", str(data / "models/zoo/1"), str(data / "run-2"), "--data", str(data / "x.npy")]
    output = ["--output", str(tmp_path / "aligned")]
    assert main([*arguments, *output]) == 2
    error = capsys.readouterr().err
    assert "the run has 3 clusters, the old model 4" in error
    assert "--allow-fewer" in error
    assert not list(tmp_path.iterdir())
    assert main(arguments) == 0, "a report alone loses nothing"
    assert main([*arguments, *output, "--allow-fewer"]) == 0
    assert set(Fitted.load(tmp_path / "aligned").names) < set(NAMES)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ["{d}/models/zoo/1", "{d}/run-1", "--data", "digits"],
            r"digits: its rows are not the model's: uint8 \[8, 8\] \(image\), not",
        ),
        (["{d}/models/zoo/1", "{d}", "--data", "{d}/x.npy"], "it has no fit.json"),
        (["{d}/models/zoo/7", "{d}/run-1", "--data", "{d}/x.npy"], "cannot read bundle"),
        (
            ["{t}/models/toy/1", "{d}/run-1", "--data", "digits"],
            "run-1: its rows are not the model's: float32",
        ),
        (
            ["{d}/models/zoo/1", "{d}/run-1", "--data", "{d}/x.npy", "--output", "{d}/run-1"],
            "run-1 exists already: pass another --output",
        ),
        (["{d}/models/zoo/1", "--data", "{d}/x.npy"], "arguments are required: NEW-RUN"),
    ],
)
def test_mistakes_are_explained_in_one_line(data, arguments, message, tmp_path, capsys):
    make_bundle(tmp_path / "models")
    filled = [part.format(d=data, t=tmp_path) for part in arguments]
    assert main(["align", *filled]) == 2
    error = capsys.readouterr().err.strip()
    assert "\n" not in error
    assert re.search(message, error), error
