"""Where the paper's data sets are looked for, and what is said where they are not."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.papers import write_mnist
from training.paper.datasets import DATASETS, MissingData, find, read


def write_features(folder, name, split, rows, *, seed=0):
    random = np.random.default_rng(seed)
    x = random.standard_normal((rows, 4)).astype(np.float32)
    labels = random.integers(0, 10, rows)
    column = pa.FixedSizeListArray.from_arrays(pa.array(x.ravel()), 4)
    path = folder / f"{name}-features-some-net-{split}.parquet"
    pq.write_table(pa.table({"row": np.arange(rows), "features": column, "label": labels}), path)
    return x, labels


def test_idx_folders_are_split_and_cut_at_random_but_always_alike(tmp_path):
    write_mnist(tmp_path / "mnist")
    whole = read(DATASETS["mnist"], tmp_path)
    assert whole.train.shape == (300, 6, 6)
    assert whole.test.shape == (60, 6, 6)
    assert whole.source == "pixels"
    part, same = (read(DATASETS["mnist"], tmp_path, 50) for _ in range(2))
    np.testing.assert_array_equal(part.train, same.train)
    assert part.fingerprint == same.fingerprint != whole.fingerprint
    # Each row still has its own label.
    known = {row.tobytes(): label for row, label in zip(whole.train, whole.train_labels, strict=True)}
    assert [known[row.tobytes()] for row in part.train] == part.train_labels.tolist()
    assert len(part.test) == 60


def test_features_are_found_by_name_and_tell_their_backbone(tmp_path):
    x, labels = write_features(tmp_path, "cifar10", "train", 40)
    test, _ = write_features(tmp_path, "cifar10", "test", 20, seed=1)
    rows = read(DATASETS["cifar10"], tmp_path)
    assert rows.source == "some-net"
    np.testing.assert_array_equal(rows.train, x)
    np.testing.assert_array_equal(rows.test, test)
    np.testing.assert_array_equal(rows.train_labels, labels)
    assert rows.spec.dtype == "float32"


def test_npz_features_with_labels(tmp_path):
    x = np.ones((3, 2), np.float32)
    for split in ("train", "test"):
        np.savez(tmp_path / f"stl10-features-{split}.npz", x=x, y=np.arange(3))
    rows = read(DATASETS["stl10"], tmp_path)
    assert rows.source == "features"
    assert rows.test_labels.tolist() == [0, 1, 2]


def test_features_without_labels_cannot_be_scored(tmp_path):
    for split in ("train", "test"):
        np.savez(tmp_path / f"stl10-features-{split}.npz", x=np.ones((3, 2), np.float32))
    with pytest.raises(ValueError, match=r"STL-10: .* has no labels"):
        read(DATASETS["stl10"], tmp_path)


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("mnist", r"MNIST: no IDX files in .*/mnist; put its four files there"),
        ("cifar100", r"CIFAR-100: no .*/cifar100-features-BACKBONE-train.parquet .*nvisa-train features"),
    ],
)
def test_what_is_missing_is_named_and_what_to_put_where(tmp_path, name, said):
    with pytest.raises(MissingData, match=said):
        find(DATASETS[name], tmp_path)


def test_a_folder_without_the_test_files_is_missing(tmp_path):
    write_mnist(tmp_path / "mnist")
    find(DATASETS["mnist"], tmp_path)
    (tmp_path / "mnist" / "t10k-images-idx3-ubyte").unlink()
    with pytest.raises(MissingData, match="no IDX files"):
        find(DATASETS["mnist"], tmp_path)


def test_features_of_two_backbones_are_not_chosen_between(tmp_path):
    for name in ("a", "b"):
        for split in ("train", "test"):
            np.savez(tmp_path / f"cifar10-features-{name}-{split}.npz", x=np.ones((3, 2)))
    with pytest.raises(MissingData, match=r"several backbones \('a', 'b'\); leave one there"):
        find(DATASETS["cifar10"], tmp_path)


def test_cifar10_features_are_not_taken_for_those_of_cifar100(tmp_path):
    write_features(tmp_path, "cifar100", "train", 4)
    write_features(tmp_path, "cifar100", "test", 4)
    assert find(DATASETS["cifar100"], tmp_path).source == "some-net"
    with pytest.raises(MissingData):
        find(DATASETS["cifar10"], tmp_path)
