"""Images, a backbone's features, a fit, one graph from images to clusters, and that graph served and used."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time

import numpy as np
import onnx
import pyarrow.parquet as pq
import pytest
from PIL import Image

from serving.bundle import read_bundle
from serving.client import ClusterClient
from serving.client.cli import main as client_main
from serving.engine import OnnxEngine
from serving.labelling.cli import main as label_main
from tests.backbones import make_backbone, reference_features
from tests.servers import ServerProcess
from training.cli import main
from training.data import load
from training.fitted import Fitted
from training.inference import probabilities
from training.novelty import novelty

N_ROWS = 150
FIT = [
    "--epochs",
    "3",
    "--pretrain-epochs",
    "3",
    "--hidden-sizes",
    "16",
    "--latent-dim",
    "2",
    "--gmm-starts",
    "1",
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Three kinds of images, each of a colour, their features, and a fit to these."""
    folder = tmp_path_factory.mktemp("images")
    random = np.random.default_rng(0)
    kinds = random.integers(0, 3, N_ROWS)
    colours = np.array([[200, 30, 30], [30, 200, 30], [30, 30, 200]])
    noise = random.integers(-30, 30, (N_ROWS, 8, 8, 3))
    np.savez(folder / "images.npz", x=(colours[kinds][:, None, None] + noise).astype(np.uint8), y=kinds)
    backbone = make_backbone(folder / "backbone.onnx", head="classifier", opset=17)
    features = ["features", str(folder / "images.npz"), "--backbone", str(backbone), "--device", "cpu"]
    assert main([*features, "--output", str(folder / "features.parquet"), "--threads", "1"]) == 0
    fit = ["fit", str(folder / "features.parquet"), "--clusters", "3", "--label-column", "label"]
    assert main([*fit, "--output", str(folder / "run"), *FIT]) == 0
    return folder


def export(folder, version: int, *more: str) -> int:
    output = folder / "models" / "colours" / str(version)
    return main(["export", str(folder / "run"), "--output", str(output), *more])


def test_images_are_served_and_labelled(folder, tmp_path, capsys):
    assert export(folder, 1, "--backbone", str(folder / "backbone.onnx")) == 0
    assert "parity on 50 rows" in capsys.readouterr().out, "every third of 150 rows was kept as an image"
    data = load(str(folder / "images.npz"), labels=True)
    fitted = Fitted.load(folder / "run")
    expected = probabilities(fitted.model, reference_features(data.x)).argmax(1)
    bundle = read_bundle(folder / "models" / "colours" / "1")
    assert (bundle.manifest.input.dtype, bundle.manifest.input.shape) == ("uint8", (8, 8, 3))
    assert bundle.manifest.input.meaning == "image"
    with ServerProcess(folder / "models", tmp_path) as server:
        with ClusterClient(server.grpc_target) as client:
            answer = client.assign(data.x, model="colours", probabilities=True)
            shown = ["assign", "--target", server.grpc_target, "--model", "colours"]
            shown += ["--input", str(folder / "images.npz"), "--output", str(tmp_path / "client.parquet")]
            assert client_main(shown) == 0
        server.terminate()
        assert server.wait() == 0, server.log()
    np.testing.assert_array_equal(answer.clusters, expected)
    np.testing.assert_allclose(
        answer.probabilities, probabilities(fitted.model, reference_features(data.x)), atol=1e-4
    )
    np.testing.assert_array_equal(pq.read_table(tmp_path / "client.parquet")["cluster"], expected)
    label = [
        "--model",
        str(bundle.path),
        "--input",
        str(folder / "images.npz"),
        "--output",
        str(tmp_path / "l"),
    ]
    assert label_main([*label, "--device", "cpu"]) == 0
    np.testing.assert_array_equal(pq.read_table(tmp_path / "l")["cluster"], expected)


def test_images_of_all_sizes_are_resized_alike_for_the_fit_and_for_whoever_asks(folder, tmp_path):
    random = np.random.default_rng(1)
    colours = np.array([[200, 30, 30], [30, 200, 30], [30, 30, 200]])
    (tmp_path / "photos").mkdir()
    expected = []
    for index, (height, width) in enumerate(random.integers(5, 40, (60, 2))):
        noise = random.integers(-30, 30, (height, width, 3))
        image = Image.fromarray((colours[index % 3] + noise).astype(np.uint8))
        image.save(tmp_path / "photos" / f"{index:02}.png")
        expected.append(np.asarray(image.resize((10, 10), Image.Resampling.BILINEAR)))
    photos, features = str(tmp_path / "photos"), str(tmp_path / "features.parquet")
    command = ["features", photos, "--backbone", str(folder / "backbone.onnx"), "--device", "cpu"]
    command += ["--threads", "1", "--output", features]
    assert main(command) == 2, "without --resize they have to be of one size"
    assert main([*command, "--resize", "10"]) == 0
    assert main(["fit", features, "--clusters", "3", "--output", str(tmp_path / "run"), *FIT]) == 0
    bundle = tmp_path / "models" / "photos" / "1"
    more = ["--backbone", str(folder / "backbone.onnx")]
    assert main(["export", str(tmp_path / "run"), "--output", str(bundle), *more]) == 0
    assert read_bundle(bundle).manifest.input.shape == (10, 10, 3)
    clusters = OnnxEngine(read_bundle(bundle), "cpu").assign(np.stack(expected)).clusters
    label = ["--model", str(bundle), "--input", photos, "--device", "cpu", "--output"]
    assert label_main([*label, str(tmp_path / "labels"), "--resize"]) == 0
    np.testing.assert_array_equal(pq.read_table(tmp_path / "labels")["cluster"], clusters)
    assert label_main([*label, str(tmp_path / "labels"), "--resume"]) == 42, "begun with --resize"
    with ServerProcess(tmp_path / "models", tmp_path) as server:
        shown = ["assign", "--target", server.grpc_target, "--model", "photos", "--input", photos]
        assert client_main([*shown, "--resize", "--output", str(tmp_path / "client.parquet")]) == 0
    np.testing.assert_array_equal(pq.read_table(tmp_path / "client.parquet")["cluster"], clusters)


def test_the_graph_tells_its_backbone_and_not_where_it_was(folder):
    bundle = folder / "models" / "colours" / "1"
    if not bundle.exists():
        assert export(folder, 1, "--backbone", str(folder / "backbone.onnx")) == 0
    model = onnx.load(bundle / "model.onnx")
    said = {prop.key: prop.value for prop in model.metadata_props}
    assert said["nvisa.backbone"] == "backbone.onnx"
    assert said["nvisa.backbone_sha256"] == Fitted.load(folder / "run").origin.recipe.sha256
    assert str(folder).encode() not in (bundle / "model.onnx").read_bytes()


def test_novelty_of_images(folder, capsys):
    assert export(folder, 2, "--backbone", str(folder / "backbone.onnx"), "--with-novelty") == 0
    bundle = read_bundle(folder / "models" / "colours" / "2")
    data, fitted = load(str(folder / "images.npz")), Fitted.load(folder / "run")
    answer = OnnxEngine(bundle, "cpu").assign(data.x)
    expected = novelty(fitted.model, fitted.rows.ranks, reference_features(data.x))
    np.testing.assert_allclose(answer.novelty, expected, atol=1e-2)
    alone = bundle.manifest.novelty.cost_ratio
    assert export(folder, 3, "--with-novelty") == 0
    without = read_bundle(folder / "models" / "colours" / "3").manifest.novelty.cost_ratio
    # The backbone, 5 x 6 x 6 outputs of 27 products each, costs the same with and without novelty.
    assert 1 < alone < without
    body = 5 * 6 * 6 * 27
    plain = 5 * 16 + 16 * 3
    assert alone < (body + plain * without) / body


def test_another_backbone_is_refused(folder, tmp_path, capsys):
    for path, message in (
        (
            make_backbone(tmp_path / "other.onnx", head="classifier", seed=1),
            "of another backbone: other.onnx, not",
        ),
        (tmp_path / "none.onnx", "No such file"),
    ):
        assert export(folder, 4, "--backbone", str(path)) == 2
        assert message in capsys.readouterr().err
    np.save(tmp_path / "x.npy", np.random.default_rng(0).standard_normal((60, 5)).astype(np.float32))
    fit = ["fit", str(tmp_path / "x.npy"), "--clusters", "3", "--output", str(tmp_path / "run"), *FIT]
    assert main(fit) == 0
    output = ["--output", str(tmp_path / "m" / "1")]
    assert main(["export", str(tmp_path / "run"), *output, "--backbone", str(folder / "backbone.onnx")]) == 2
    assert "does not say which backbone its features are of" in capsys.readouterr().err
    assert not (tmp_path / "m").exists()
    assert not (folder / "models" / "colours" / "4").exists()


def test_a_killed_run_goes_on(folder, tmp_path):
    """SIGKILL once a part is there; what is written in the end is what an unbroken run writes."""
    x = np.random.default_rng(1).integers(0, 256, (6_000, 8, 8, 3), dtype=np.uint8)
    np.save(tmp_path / "x.npy", x)
    command = [
        sys.executable, "-m", "training.cli", "features", str(tmp_path / "x.npy"), "--batch-size", "1",
        "--backbone", str(folder / "backbone.onnx"), "--device", "cpu", "--threads", "1",
        "--output", str(tmp_path / "f.npy"),
    ]  # fmt: skip
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    parts = tmp_path / "f.npy.parts"
    while not list(parts.glob("part-*")):
        assert process.poll() is None, process.communicate()
        time.sleep(0.001)
    process.send_signal(signal.SIGKILL)
    process.communicate(timeout=60)
    assert not (tmp_path / "f.npy").exists(), "it was to be stopped before its end"
    before = {path.name: path.stat().st_mtime_ns for path in parts.glob("part-*")}
    assert json.loads((parts / "plan.json").read_text())["part_rows"] == 512
    done = subprocess.run([*command, "--resume"], capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stderr
    assert f"{len(before)} of 12 parts are there already" in done.stderr
    np.testing.assert_allclose(np.load(tmp_path / "f.npy"), reference_features(x), atol=2e-5)
