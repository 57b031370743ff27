"""The weekly retrain: fit and serve, then newer data, a warm start, aligned ids and names, version 2."""

from __future__ import annotations

import json

import numpy as np

from serving.bundle import read_bundle
from serving.engine import OnnxEngine
from training.cli import main
from training.fitted import Fitted

NAMES = ["ants", "bees", "cats", "dogs"]
FIT = [
    *("--clusters", "4", "--hidden-sizes", "32", "--latent-dim", "2", "--gmm-starts", "2"),
    *("--pretrain-epochs", "40", "--epochs", "4", "--epsilon-every", "2"),
]


def write_rows(path, seed: int, shift: float) -> np.ndarray:
    noise = np.random.default_rng(seed).standard_normal((4, 60, 4))
    x = (8 * np.eye(4)[:, None] + noise + shift).reshape(-1, 4).astype(np.float32)
    np.save(path, x)
    return x


def test_ids_and_names_survive_a_refit_on_newer_data(tmp_path, capsys):
    write_rows(tmp_path / "week-1.npy", 1, 0.0)
    x = write_rows(tmp_path / "week-2.npy", 2, 0.4)
    first, second = tmp_path / "models" / "zoo" / "1", tmp_path / "models" / "zoo" / "2"

    def run(*arguments: object) -> str:
        assert main([str(argument) for argument in arguments]) == 0
        return capsys.readouterr().out

    run("fit", tmp_path / "week-1.npy", *FIT, "--output", tmp_path / "run-1")
    run("export", tmp_path / "run-1", "--output", first)
    manifest = json.loads((first / "manifest.json").read_text())
    for cluster, name in zip(manifest["clusters"], NAMES, strict=True):
        cluster["name"] = name
    (first / "manifest.json").write_text(json.dumps(manifest))

    refit = ["fit", tmp_path / "week-2.npy", *FIT, "--seed", "7"]
    run(*refit, "--warm-start", tmp_path / "run-1", "--output", tmp_path / "run-2")
    align = ["align", first, tmp_path / "run-2", "--data", tmp_path / "week-2.npy"]
    said = run(*align, "--output", tmp_path / "aligned")
    assert "of 240 reference rows have another id than in the old model" in said
    report = json.loads((tmp_path / "aligned" / "alignment.json").read_text())
    assert report["moved_before"] < 0.1, "a warm start alone keeps most ids"
    assert report["moved"] <= report["moved_before"]

    run("export", tmp_path / "aligned", "--output", second)
    old, new = read_bundle(first), read_bundle(second)
    assert [cluster.name for cluster in new.manifest.clusters] == NAMES
    moved = OnnxEngine(old, "cpu").assign(x).clusters != OnnxEngine(new, "cpu").assign(x).clusters
    assert moved.mean() == report["moved"]

    # The week after starts from the aligned run, and knows the names without being told again.
    run(*refit, "--warm-start", tmp_path / "aligned", "--output", tmp_path / "run-3", "--epochs", "1")
    assert list(Fitted.load(tmp_path / "run-3").cluster_names) == NAMES
