"""CIFAR's and STL-10's own files, written here byte by byte as their descriptions say."""

from __future__ import annotations

import pickle
from pathlib import Path

import numpy as np
import pytest

from serving.readers import DataError, open_source, read_all
from training.data import load


def images(n: int, side: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (n, side, side, 3), dtype=np.uint8)


def cifar(path: Path, x: np.ndarray, *labels: list[int]) -> None:
    """Labels, then 1024 red, 1024 green and 1024 blue bytes, row by row."""
    content = b""
    for index, image in enumerate(x):
        content += bytes(column[index] for column in labels)
        for channel in range(3):
            content += b"".join(bytes(row) for row in image[:, :, channel])
    path.write_bytes(content)


def stl(folder: Path, name: str, x: np.ndarray, labels: list[int] | None) -> None:
    """Each channel column by column; labels from 1."""
    content = b"".join(
        bytes(
            image[row, column, channel] for channel in range(3) for column in range(96) for row in range(96)
        )
        for image in x
    )
    (folder / f"{name}_X.bin").write_bytes(content)
    if labels is not None:
        (folder / f"{name}_y.bin").write_bytes(bytes(labels))


@pytest.fixture
def cifar10(tmp_path):
    for batch in range(1, 4):
        cifar(tmp_path / f"data_batch_{batch}.bin", images(2, 32, batch), [batch, 9])
    cifar(tmp_path / "test_batch.bin", images(3, 32, 9), [4, 5, 6])
    (tmp_path / "batches.meta.txt").write_text("airplane\nautomobile\n")
    return tmp_path


@pytest.fixture
def cifar100(tmp_path):
    cifar(tmp_path / "train.bin", images(3, 32), [19, 3, 0], [99, 7, 42])
    cifar(tmp_path / "test.bin", images(2, 32, 1), [1, 2], [11, 12])
    (tmp_path / "fine_label_names.txt").write_text("apple\n")
    return tmp_path


@pytest.fixture
def stl10(tmp_path):
    stl(tmp_path, "train", images(3, 96), [1, 10, 5])
    stl(tmp_path, "test", images(2, 96, 1), [2, 3])
    stl(tmp_path, "unlabeled", images(4, 96, 2), None)
    (tmp_path / "class_names.txt").write_text("airplane\n")
    (tmp_path / "fold_indices.txt").write_text("0 1\n")
    return tmp_path


def test_cifar10_batches_in_order(cifar10):
    source = open_source(cifar10)
    x, labels = read_all(source)
    np.testing.assert_array_equal(x, np.concatenate([images(2, 32, batch) for batch in (1, 2, 3)]))
    np.testing.assert_array_equal(labels, [1, 9, 2, 9, 3, 9])
    assert source.input.meaning == "image"
    x, labels = read_all(open_source(cifar10, split="test"))
    np.testing.assert_array_equal(x, images(3, 32, 9))
    np.testing.assert_array_equal(labels, [4, 5, 6])
    x, labels = read_all(open_source(cifar10 / "data_batch_2.bin"))
    np.testing.assert_array_equal(labels, [2, 9])


@pytest.mark.parametrize(
    ("column", "labels"), [(None, [99, 7, 42]), ("fine", [99, 7, 42]), ("coarse", [19, 3, 0])]
)
def test_cifar100_has_two_labels(column, labels, cifar100):
    x, found = read_all(open_source(cifar100, label_column=column))
    np.testing.assert_array_equal(x, images(3, 32))
    np.testing.assert_array_equal(found, labels)
    x, _ = read_all(open_source(cifar100, split="test"))
    np.testing.assert_array_equal(x, images(2, 32, 1))


def test_stl10_leaves_the_unlabelled_images_unless_named(stl10):
    x, labels = read_all(open_source(stl10))
    np.testing.assert_array_equal(x, images(3, 96))
    np.testing.assert_array_equal(labels, [0, 9, 4])
    x, labels = read_all(open_source(stl10, split="test"))
    np.testing.assert_array_equal(x, images(2, 96, 1))
    x, labels = read_all(open_source(stl10 / "unlabeled_X.bin"))
    np.testing.assert_array_equal(x, images(4, 96, 2))
    assert labels is None


def test_labels_are_not_read_where_nobody_asks(stl10):
    (stl10 / "train_y.bin").write_bytes(b"")
    assert load(str(stl10)).labels is None
    np.testing.assert_array_equal(load(str(stl10), memory="mapped").x, images(3, 96))


def test_chunks_and_fingerprints_are_of_the_split(cifar10):
    source = open_source(cifar10)
    found = np.concatenate([chunk.x for chunk in source.chunks(1, 6, 2)])
    np.testing.assert_array_equal(found, read_all(source)[0][1:])
    before = source.fingerprint
    cifar(cifar10 / "test_batch.bin", images(3, 32, 8), [4, 5, 6])
    assert open_source(cifar10).fingerprint == before
    cifar(cifar10 / "data_batch_3.bin", images(2, 32, 8), [4, 5])
    assert open_source(cifar10).fingerprint != before


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (
            lambda f: (f / "train.bin").write_bytes(b"x" * 3073),
            "3073 bytes are not a whole number of CIFAR-100's",
        ),
        (lambda f: (f / "train.bin").write_bytes(b""), "0 bytes are not a whole number"),
        (lambda f: (f / "train.bin").unlink(), "no file of CIFAR-100 for split 'train'"),
    ],
)
def test_damaged_files_are_named(damage, message, cifar100):
    damage(cifar100)
    with pytest.raises(DataError, match=message):
        open_source(cifar100)


def test_labels_that_do_not_fit(cifar100, tmp_path):
    with pytest.raises(DataError, match="no column of labels 'kind'; it has coarse and fine"):
        open_source(cifar100, label_column="kind")
    with pytest.raises(DataError, match="no columns"):
        open_source(cifar100, id_columns=["id"])


def test_stl10_labels_that_do_not_fit(stl10):
    (stl10 / "train_y.bin").write_bytes(bytes([1, 2]))
    with pytest.raises(DataError, match=r"labels have shape \(2,\) for 3 rows"):
        open_source(stl10)
    (stl10 / "train_y.bin").write_bytes(bytes([0, 1, 2]))
    with pytest.raises(DataError, match="holds the label 0"):
        open_source(stl10)


@pytest.mark.parametrize("names", [("train", "test", "meta"), ("data_batch_1", "test_batch", "batches.meta")])
def test_pickles_are_refused_and_never_opened(names, tmp_path):
    class Bomb:
        def __reduce__(self):
            return (Path.touch, (tmp_path / "exploded",))

    for name in names:
        (tmp_path / name).write_bytes(pickle.dumps({b"data": Bomb()}))
    for path in (tmp_path, tmp_path / names[0]):
        with pytest.raises(DataError, match=r"a pickle, which can run code.*binary version"):
            open_source(path)
    assert not (tmp_path / "exploded").exists()
