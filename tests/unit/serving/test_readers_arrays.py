"""IDX, NPY and NPZ."""

from __future__ import annotations

import gzip
import struct
from pathlib import Path

import numpy as np
import pytest

from serving.readers import DataError, open_source, read_all

CODES = {"uint8": 0x08, "int8": 0x09, "int16": 0x0B, "int32": 0x0C, "float32": 0x0D, "float64": 0x0E}


def idx_bytes(x: np.ndarray) -> bytes:
    header = struct.pack(">BBBB", 0, 0, CODES[x.dtype.name], x.ndim) + struct.pack(f">{x.ndim}I", *x.shape)
    return header + x.astype(x.dtype.newbyteorder(">")).tobytes()


def images(n: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (n, 4, 3), dtype=np.uint8)


@pytest.fixture
def mnist_folder(tmp_path: Path) -> Path:
    for prefix, n, seed in (("train", 7, 0), ("t10k", 5, 1)):
        labels = np.arange(n, dtype=np.uint8)
        (tmp_path / f"{prefix}-images-idx3-ubyte.gz").write_bytes(gzip.compress(idx_bytes(images(n, seed))))
        (tmp_path / f"{prefix}-labels-idx1-ubyte.gz").write_bytes(gzip.compress(idx_bytes(labels)))
    return tmp_path


@pytest.mark.parametrize(("split", "n", "seed"), [("train", 7, 0), ("test", 5, 1)])
def test_idx_folder_takes_the_split_and_its_labels(mnist_folder, split, n, seed):
    source = open_source(mnist_folder, split=split)
    x, labels = read_all(source)
    np.testing.assert_array_equal(x, images(n, seed))
    np.testing.assert_array_equal(labels, np.arange(n))
    assert (source.n_rows, source.input.dtype, source.input.shape) == (n, "uint8", (4, 3))
    assert source.input.meaning == "image"


def test_idx_folder_with_dotted_unpacked_names(tmp_path):
    (tmp_path / "t10k-images.idx3-ubyte").write_bytes(idx_bytes(images(3)))
    (tmp_path / "t10k-labels.idx1-ubyte").write_bytes(idx_bytes(np.array([2, 0, 1], np.uint8)))
    x, labels = read_all(open_source(tmp_path, split="test"))
    np.testing.assert_array_equal(x, images(3))
    np.testing.assert_array_equal(labels, [2, 0, 1])


def test_idx_labels_can_be_left_unread(mnist_folder):
    (mnist_folder / "train-labels-idx1-ubyte.gz").write_bytes(b"damaged")
    source = open_source(mnist_folder, read_labels=False)
    assert not source.has_labels
    assert next(source.chunks()).labels is None
    assert [file.name for file in source.files] == ["train-images-idx3-ubyte.gz"]


def test_idx_folder_without_the_split(mnist_folder):
    (mnist_folder / "t10k-images-idx3-ubyte.gz").unlink()
    with pytest.raises(DataError, match=r"no t10k-images-idx3-ubyte\[.gz\] for split 'test', only"):
        open_source(mnist_folder, split="test")


@pytest.mark.parametrize("dtype", ["int8", "int16", "int32", "float32", "float64"])
def test_other_idx_types_become_float32(tmp_path, dtype):
    x = np.array([[1, -2, 3], [4, 5, -6]], dtype)
    (tmp_path / "x.idx").write_bytes(idx_bytes(x))
    source = open_source(tmp_path / "x.idx")
    assert source.input.dtype == "float32"
    np.testing.assert_array_equal(read_all(source)[0], x.astype(np.float32))


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda b: b[:-1], "truncated: shape"),
        (lambda b: b + b"\0", "too long: shape"),
        (lambda b: b[:9], "truncated within its header"),
        (lambda b: b"\x89PNG" + b[4:], "not an IDX file: it begins with 0x89504e47"),
        (lambda b: b"", "not an IDX file"),
        (lambda b: b[:4] + struct.pack(">3I", 2**32 - 1, 2**32 - 1, 2**32 - 1), "truncated: shape"),
    ],
)
@pytest.mark.parametrize("packed", [False, True])
def test_damaged_idx(tmp_path, damage, message, packed):
    data = damage(idx_bytes(images(3)))
    path = tmp_path / ("x-idx3-ubyte" + (".gz" if packed else ""))
    path.write_bytes(gzip.compress(data) if packed else data)
    with pytest.raises(DataError, match=message) as error:
        open_source(path)
    assert str(path) in str(error.value)


def test_truncated_gzip(tmp_path):
    path = tmp_path / "x-idx3-ubyte.gz"
    path.write_bytes(gzip.compress(idx_bytes(images(50)))[:-30])
    with pytest.raises(DataError, match="not a whole gzip file"):
        open_source(path)


def test_idx_labels_as_input_and_labels_of_another_number(mnist_folder):
    with pytest.raises(DataError, match="pass the images file instead"):
        open_source(mnist_folder / "train-labels-idx1-ubyte.gz")
    (mnist_folder / "train-labels-idx1-ubyte.gz").write_bytes(gzip.compress(idx_bytes(np.zeros(6, np.uint8))))
    with pytest.raises(DataError, match=r"labels have shape \(6,\) for 7 rows"):
        open_source(mnist_folder)


@pytest.mark.parametrize(
    ("dtype", "becomes"),
    [("uint8", "uint8"), ("float32", "float32"), ("float64", "float32"), ("float16", "float32"),
     ("int64", "float32"), ("bool", "float32"), (">f4", "float32"), (">i2", "float32")],
)  # fmt: skip
def test_npy_types(tmp_path, dtype, becomes):
    x = np.array([[0, 1], [1, 0], [1, 1]]).astype(dtype)
    np.save(tmp_path / "x.npy", x)
    source = open_source(tmp_path / "x.npy")
    read, labels = read_all(source)
    assert (source.input.dtype, read.dtype.name, labels) == (becomes, becomes, None)
    np.testing.assert_array_equal(read, x.astype(becomes))


def test_npy_of_one_dimension_is_one_feature_per_row(tmp_path):
    np.save(tmp_path / "x.npy", np.array([1.5, 2.5]))
    np.testing.assert_array_equal(read_all(open_source(tmp_path / "x.npy"))[0], [[1.5], [2.5]])


def test_npy_in_fortran_order(tmp_path):
    x = np.asfortranarray(np.arange(12.0).reshape(4, 3))
    np.save(tmp_path / "x.npy", x)
    chunk = list(open_source(tmp_path / "x.npy").chunks(chunk_rows=3))[1]
    np.testing.assert_array_equal(chunk.x, x[3:])
    assert chunk.x.flags.c_contiguous


@pytest.mark.parametrize(
    ("x", "message"),
    [
        (np.array([{"a": 1}], object), "Python objects, which are never unpickled"),
        (np.array(["a", "b"]), "values of type <U1"),
        (np.zeros((2, 2), complex), "values of type complex128"),
        (np.zeros((0, 3)), "no rows or no values"),
        (np.zeros((3, 0)), "no rows or no values"),
        (np.float64(3), "a single number"),
        (np.zeros(2, [("a", "f4")]), "values of type"),
    ],
)
def test_npy_that_cannot_be_rows(tmp_path, x, message):
    np.save(tmp_path / "x.npy", x, allow_pickle=True)
    with pytest.raises(DataError, match=message):
        open_source(tmp_path / "x.npy")


def test_damaged_npy(tmp_path):
    path = tmp_path / "x.npy"
    np.save(path, np.zeros((10, 10)))
    whole = path.read_bytes()
    path.write_bytes(whole[:-8])
    with pytest.raises(DataError, match=r"truncated: shape .* takes 800 bytes, 792 are there"):
        open_source(path)
    for start in (b"", whole[:20], b"PAR1" + whole[4:]):
        path.write_bytes(start)
        with pytest.raises(DataError, match="not a readable NPY file"):
            open_source(path)


def test_rows_with_nan_are_errors_and_zero(tmp_path):
    x = np.arange(12.0).reshape(4, 3)
    x[1, 2], x[3, 0], x[3, 1] = np.nan, np.inf, 1e300
    np.save(tmp_path / "x.npy", x)
    source = open_source(tmp_path / "x.npy")
    (chunk,) = source.chunks()
    assert set(chunk.errors) == {1, 3}
    assert "1 of 3 values" in chunk.errors[1]
    assert "first value 2" in chunk.errors[1]
    assert "2 of 3 values" in chunk.errors[3]
    np.testing.assert_array_equal(chunk.x, [[0, 1, 2], [0, 0, 0], [6, 7, 8], [0, 0, 0]])
    with pytest.raises(DataError, match=r"2 of 4 rows cannot be used: row 1: .*; row 3: "):
        read_all(source)


@pytest.mark.parametrize(
    ("names", "split"),
    [(("x", "y"), "train"), (("X", "labels"), "train"), (("data", "target"), "train"),
     (("x_test", "y_test"), "test"), (("train_images", "train_labels"), "train")],
)  # fmt: skip
def test_npz_by_common_names(tmp_path, names, split):
    path = tmp_path / "a.npz"
    np.savez(path, **{names[0]: images(3), names[1]: np.array([[2], [0], [1]])})
    x, labels = read_all(open_source(path, split=split))
    np.testing.assert_array_equal(x, images(3))
    np.testing.assert_array_equal(labels, [2, 0, 1])


def test_npz_by_names_given(tmp_path):
    path = tmp_path / "a.npz"
    np.savez(
        path, x=np.zeros((3, 2)), z=images(3), truth=np.array([5.0, 6.0, 7.0]), key=np.array(["a", "b", "c"])
    )
    source = open_source(path, feature_columns=["z"], label_column="truth", id_columns=["key"])
    chunk = list(source.chunks(chunk_rows=2))[1]
    np.testing.assert_array_equal(chunk.x, images(3)[2:])
    np.testing.assert_array_equal(chunk.labels, [7])
    assert chunk.ids.to_pylist() == [{"key": "c"}]


def test_npz_that_cannot_be_read(tmp_path):
    path = tmp_path / "a.npz"
    np.savez(path, a=images(3), b=images(3))
    with pytest.raises(DataError, match=r"holds the arrays \['a', 'b'\].*--feature-columns"):
        open_source(path)
    with pytest.raises(DataError, match=r"no array 'c'; it holds \['a', 'b'\]"):
        open_source(path, feature_columns=["c"])
    np.savez(path, x=np.array([{}, {}], object))
    with pytest.raises(DataError, match="not a readable NPZ file"):
        open_source(path)
    np.savez(path, x=images(3), y=np.array([0.5, 1.0, 2.0]))
    with pytest.raises(DataError, match="not whole numbers"):
        open_source(path)
    path.write_bytes(path.read_bytes()[:-40])
    with pytest.raises(DataError, match="not a readable NPZ file"):
        open_source(path)


def test_columns_named_where_there_are_none(tmp_path):
    np.save(tmp_path / "x.npy", images(2))
    with pytest.raises(DataError, match=r"NPY files have no columns, but \['label', 'id'\] were named"):
        open_source(tmp_path / "x.npy", label_column="label", id_columns=["id"])
