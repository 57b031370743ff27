"""``nvisa-train features``: order, formats, labels, bad images, resuming, and where features come from."""

from __future__ import annotations

import io
import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from tests.backbones import make_backbone, reference_features
from training import features as features_module
from training.cli import main
from training.data import load, open_data
from training.extractor import Extractor
from training.fitted import Fitted
from training.origin import origin_file, read_beside

INT, TEXT = pa.int64(), pa.string()
FIT = [
    "--epochs",
    "1",
    "--pretrain-epochs",
    "1",
    "--hidden-sizes",
    "8",
    "--latent-dim",
    "2",
    "--gmm-starts",
    "1",
]


def images_of(n: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (n, 8, 8, 3), dtype=np.uint8)


def encoded(image: np.ndarray) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(image).save(stream, "PNG")
    return stream.getvalue()


def write_table(path, images, *, broken=(), kind=INT) -> None:
    labels = [index % 3 for index in range(len(images))]
    data = [b"broken" if index in broken else encoded(image) for index, image in enumerate(images)]
    names = ["bird", "cat", "ape"]
    column = labels if kind == INT else [names[label] for label in labels]
    path.parent.mkdir(exist_ok=True)
    pq.write_table(
        pa.table({"image": [{"bytes": each} for each in data], "kind": pa.array(column, kind)}), path
    )


@pytest.fixture(autouse=True)
def small_parts(monkeypatch):
    monkeypatch.setattr(features_module, "PART_ROWS", 10)


@pytest.fixture
def backbone(tmp_path):
    return make_backbone(tmp_path / "backbone.onnx")


def run(*arguments, status: int = 0) -> None:
    assert main(["features", *map(str, arguments), "--device", "cpu", "--threads", "1"]) == status


@pytest.mark.parametrize("kind", [INT, TEXT], ids=str)
@pytest.mark.parametrize("suffix", ["parquet", "npz", "npy"])
def test_features_of_a_table_in_order_with_labels_and_fit_reads_them(
    kind, suffix, backbone, tmp_path, capsys
):
    x = images_of(33)
    write_table(tmp_path / "images" / "train.parquet", x, kind=kind)
    write_table(tmp_path / "images" / "test.parquet", x[:7], kind=kind)
    output = tmp_path / "out" / f"train.{suffix}"
    output.parent.mkdir()
    shared = [tmp_path / "images", "--backbone", backbone, "--label-column", "kind", "--batch-size", "4"]
    run(*shared, "--output", output)
    assert "33 rows of 5 features" in capsys.readouterr().out
    column = {"parquet": "label", "npz": "y", "npy": None}[suffix]
    data = load(str(output), label_column=column, labels=True)
    np.testing.assert_allclose(data.x, reference_features(x), atol=2e-5)
    if column:
        # Text is numbered in alphabetical order: ape, bird, cat.
        expected = np.arange(33) % 3 if kind == INT else np.array([1, 2, 0])[np.arange(33) % 3]
        np.testing.assert_array_equal(data.labels, expected)
    if suffix == "parquet":
        assert pq.read_table(output)["row"].to_pylist() == list(range(33))
    run(*shared, "--output", tmp_path / "out" / f"test.{suffix}", "--split", "test")
    assert load(str(tmp_path / "out" / f"test.{suffix}"), label_column=column).x.shape == (7, 5)
    assert main(["fit", str(output), "--clusters", "3", "--output", str(tmp_path / "run"), *FIT]) == 0
    origin = Fitted.load(tmp_path / "run").origin
    np.testing.assert_array_equal(origin.examples, x)
    np.testing.assert_allclose(origin.features, reference_features(x), atol=2e-5)


def test_every_form_of_images_gives_the_same_features(backbone, tmp_path):
    grey = np.random.default_rng(0).integers(0, 256, (12, 8, 6), dtype=np.uint8)
    np.save(tmp_path / "x.npy", grey)
    header = b"\0\0\x08\x03" + b"".join(n.to_bytes(4, "big") for n in grey.shape)
    (tmp_path / "mnist").mkdir()
    (tmp_path / "mnist" / "train-images-idx3-ubyte").write_bytes(header + grey.tobytes())
    labels = b"\0\0\x08\x01" + (12).to_bytes(4, "big") + bytes(range(12))
    (tmp_path / "mnist" / "train-labels-idx1-ubyte").write_bytes(labels)
    (tmp_path / "folder").mkdir()
    for index, image in enumerate(grey):
        Image.fromarray(image).save(tmp_path / "folder" / f"{index:02}.png")
    for form in ("x.npy", "mnist", "folder"):
        run(tmp_path / form, "--backbone", backbone, "--output", tmp_path / f"{form}.parquet")
        found = load(str(tmp_path / f"{form}.parquet"))
        np.testing.assert_allclose(found.x, reference_features(grey), atol=2e-5)
    paths = pq.read_table(tmp_path / "folder.parquet")["path"].to_pylist()
    assert paths == [f"{index:02}.png" for index in range(12)]
    assert pq.read_table(tmp_path / "mnist.parquet")["label"].to_pylist() == list(range(12))


def test_a_stopped_run_goes_on_where_it_was(backbone, tmp_path, monkeypatch, capsys):
    np.save(tmp_path / "x.npy", images_of(33))
    shared = [tmp_path / "x.npy", "--backbone", backbone, "--output", tmp_path / "f.npy"]
    seen = []
    original = Extractor.__call__

    def counted(self, x):
        if len(x) != 3 and len(x) != 1:  # not its own check
            seen.append(len(x))
            if sum(seen) > 20 and "--resume" not in arguments:
                raise KeyboardInterrupt
        return original(self, x)

    monkeypatch.setattr(Extractor, "__call__", counted)
    arguments = [*shared, "--batch-size", "10"]
    run(*arguments, status=130)
    assert "go on with --resume" in capsys.readouterr().err
    assert not (tmp_path / "f.npy").exists()
    run(*arguments, status=2)
    assert "pass --resume to go on" in capsys.readouterr().err
    seen.clear()
    arguments.append("--resume")
    run(*arguments)
    assert seen == [10], "two parts were there, and the last has three rows"
    np.testing.assert_allclose(np.load(tmp_path / "f.npy"), reference_features(images_of(33)), atol=2e-5)
    assert not (tmp_path / "f.npy.parts").exists()
    run(*arguments)  # finished: nothing to do
    assert seen == [10]
    np.save(tmp_path / "x.npy", images_of(33, seed=1))
    run(*arguments, status=2)
    assert "of other images or another backbone" in capsys.readouterr().err


def test_parts_of_another_backbone_are_not_mixed_in(backbone, tmp_path, capsys):
    write_table(tmp_path / "t" / "x.parquet", images_of(33), broken=[30])
    shared = [tmp_path / "t" / "x.parquet", "--output", tmp_path / "f.npy", "--backbone"]
    run(*shared, backbone, status=2)
    run(*shared, make_backbone(tmp_path / "other.onnx", seed=1), "--resume", status=2)
    assert "was begun with another recipe" in capsys.readouterr().err


def test_bad_images_are_named_and_nothing_is_lost(backbone, tmp_path, capsys):
    x = images_of(33)
    write_table(tmp_path / "t" / "x.parquet", x, broken=[12, 17])
    shared = [tmp_path / "t" / "x.parquet", "--backbone", backbone, "--output", tmp_path / "f.parquet"]
    shared += ["--label-column", "kind"]
    run(*shared, status=2)
    error = capsys.readouterr().err
    assert "2 of the rows 10 to 19 cannot be read: row 12: corrupt image: not an image; row 17: " in error
    assert "--resume --drop-unreadable" in error
    assert len(list((tmp_path / "f.parquet.parts").glob("part-*"))) == 1
    run(*shared, "--resume", "--drop-unreadable")
    assert "31 rows of 5 features; 2 images that cannot be read are left out" in capsys.readouterr().out
    kept = np.delete(np.arange(33), [12, 17])
    table = pq.read_table(tmp_path / "f.parquet")
    np.testing.assert_array_equal(table["row"], kept)
    np.testing.assert_array_equal(table["label"], kept % 3)
    np.testing.assert_allclose(load(str(tmp_path / "f.parquet")).x, reference_features(x[kept]), atol=2e-5)


def test_features_of_another_backbone_are_refused(backbone, tmp_path, capsys):
    np.save(tmp_path / "x.npy", images_of(33))
    other = make_backbone(tmp_path / "other.onnx", seed=1)
    for name, which in (("a", backbone), ("b", other)):
        run(tmp_path / "x.npy", "--backbone", which, "--output", tmp_path / f"{name}.npy")
    fit = ["fit", str(tmp_path / "a.npy"), "--clusters", "3", "--output", str(tmp_path / "run"), *FIT]
    assert main(fit) == 0
    for command in (
        ["evaluate", str(tmp_path / "run"), "--data", str(tmp_path / "b.npy")],
        [
            *fit[:1],
            str(tmp_path / "b.npy"),
            *fit[2:5],
            str(tmp_path / "new"),
            *FIT,
            "--warm-start",
            str(tmp_path / "run"),
        ],
    ):
        assert main(command) == 2
        error = capsys.readouterr().err
        assert "of another backbone: other.onnx, not backbone.onnx: sha256 is" in error
    assert not (tmp_path / "new").exists()


def test_a_file_that_was_replaced_is_not_taken_for_the_backbones(backbone, tmp_path):
    np.save(tmp_path / "x.npy", images_of(12))
    run(tmp_path / "x.npy", "--backbone", backbone, "--output", tmp_path / "f.npy")
    assert read_beside([tmp_path / "f.npy"]).backbone == "backbone.onnx"
    np.save(tmp_path / "f.npy", np.zeros((12, 5), np.float32))
    with pytest.raises(ValueError, match="of other features than"):
        load(str(tmp_path / "f.npy"))
    origin_file(tmp_path / "f.npy").unlink()
    assert load(str(tmp_path / "f.npy")).origin is None


def test_mistakes(backbone, tmp_path, capsys):
    np.save(tmp_path / "x.npy", images_of(12))
    np.save(tmp_path / "floats.npy", np.zeros((12, 4), np.float32))
    x, output = tmp_path / "x.npy", tmp_path / "f.npy"
    for arguments, message in (
        ([x, "--backbone", backbone, "--output", tmp_path / "f.csv"], "must end in .npy, .npz, .parquet"),
        ([tmp_path / "floats.npy", "--backbone", backbone, "--output", output], "takes uint8 images"),
        ([x, "--backbone", backbone, "--output", x], "exists already"),
        ([x, "--backbone", tmp_path / "no.onnx", "--output", output], "No such file"),
        ([x, "--backbone", backbone, "--output", output, "--std", "1,0,1"], "must be positive"),
        ([x, "--backbone", backbone, "--output", output, "--device", "cuda"], "no CUDA provider"),
    ):
        assert main(["features", *map(str, arguments)]) == 2
        assert message in capsys.readouterr().err
    assert not output.exists()


def test_progress_tells_what_is_done(backbone, tmp_path, capsys):
    np.save(tmp_path / "x.npy", images_of(33))
    run(tmp_path / "x.npy", "--backbone", backbone, "--output", tmp_path / "f.npy")
    said = capsys.readouterr().err
    assert "5 features: 'map', a map of 5 x 6 x 6, averaged; on cpu" in said
    assert "33 of 33 rows" in said


def test_the_origin_tells_the_data_and_the_recipe(backbone, tmp_path):
    np.save(tmp_path / "x.npy", images_of(12))
    run(tmp_path / "x.npy", "--backbone", backbone, "--output", tmp_path / "f.npy")
    length = int.from_bytes(origin_file(tmp_path / "f.npy").read_bytes()[:8], "little")
    header = json.loads(origin_file(tmp_path / "f.npy").read_bytes()[8 : 8 + length])
    meta = json.loads(header["__metadata__"]["meta"])
    assert meta["data"] == "x.npy"
    assert meta["fingerprint"] == open_data(str(tmp_path / "x.npy")).fingerprint
    assert meta["recipe"]["size"] == [12, 12]
