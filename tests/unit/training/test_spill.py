"""Data sets of every format as arrays that are read in any order."""

from __future__ import annotations

import os
import resource

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from serving.readers import DataError, open_source, read_all
from training import data
from training.rows import is_mapped
from training.spill import mapped


@pytest.fixture
def x() -> np.ndarray:
    return np.random.default_rng(0).normal(size=(20_000, 3)).astype(np.float32)


@pytest.fixture
def table(x, tmp_path):
    columns = {f"c{j}": x[:, j] for j in range(3)} | {"label": np.arange(len(x)) % 7}
    pq.write_table(pa.table(columns), tmp_path / "x.parquet", row_group_size=90)
    return tmp_path / "x.parquet"


def test_parquet_of_many_row_groups_is_written_once_to_a_file_without_a_name(x, table, tmp_path):
    assert pq.ParquetFile(table).metadata.num_row_groups == 223
    before, said = sorted(tmp_path.iterdir()), []
    rows, labels = mapped(open_source(table, label_column="label"), tmp_path, said.append)
    assert sorted(tmp_path.iterdir()) == before
    assert is_mapped(rows)
    np.testing.assert_array_equal(rows, x)
    np.testing.assert_array_equal(labels, np.arange(len(x)) % 7)
    assert "writing 0.2 MiB of rows to a temporary file in" in said[0]


@pytest.mark.parametrize("dtype", ["<f8", ">f4", "<f2"])
def test_npy_is_used_in_place(x, tmp_path, dtype):
    np.save(tmp_path / "x.npy", x.astype(dtype))
    rows, labels = mapped(open_source(tmp_path / "x.npy"))
    assert is_mapped(rows)
    assert rows.dtype == dtype
    assert labels is None
    np.testing.assert_array_equal(rows.astype("f4"), read_all(open_source(tmp_path / "x.npy"))[0])


def test_columns_side_by_side_are_written_row_by_row(x, tmp_path):
    np.save(tmp_path / "x.npy", np.asfortranarray(x))
    source = open_source(tmp_path / "x.npy")
    assert source.array is None
    rows = mapped(source, tmp_path)[0]
    assert rows.flags.c_contiguous
    np.testing.assert_array_equal(rows, x)


def test_idx_is_used_in_place_with_its_labels(tmp_path):
    images = np.random.default_rng(0).integers(0, 256, (50, 4, 4), dtype=np.uint8)
    header = np.array([0x803, 50, 4, 4], ">i4").tobytes()
    (tmp_path / "train-images-idx3-ubyte").write_bytes(header + images.tobytes())
    (tmp_path / "train-labels-idx1-ubyte").write_bytes(
        np.array([0x801, 50], ">i4").tobytes() + bytes(range(50))
    )
    loaded = data.load(str(tmp_path), labels=True, memory="mapped")
    assert is_mapped(loaded.x)
    np.testing.assert_array_equal(loaded.x, images)
    np.testing.assert_array_equal(loaded.labels, np.arange(50))
    assert data.load(str(tmp_path), memory="mapped").labels is None


def test_auto_loads_what_fits(table, tmp_path, monkeypatch):
    assert not is_mapped(data.load(str(table), label_column="label", memory="auto").x)
    monkeypatch.setattr(data, "free_ram", lambda: 20_000 * 3 * 4 * 2 - 2)
    left = data.load(str(table), label_column="label", memory="auto", scratch=tmp_path)
    assert is_mapped(left.x)
    whole = data.load(str(table), label_column="label")
    np.testing.assert_array_equal(left.x, whole.x)
    assert (left.fingerprint, left.spec) == (whole.fingerprint, whole.spec)


def test_rows_that_cannot_be_read_are_named(tmp_path):
    pq.write_table(pa.table({"a": [1.0, None, 3.0], "b": [1.0, 2.0, float("nan")]}), tmp_path / "x.parquet")
    with pytest.raises(DataError, match=r"2 of 3 rows cannot be used: row 1: .*'a'; row 2: .*'b'"):
        mapped(open_source(tmp_path / "x.parquet"), tmp_path)
    np.save(
        tmp_path / "x.npy", np.where(np.arange(9000)[:, None] == 8500, np.inf, np.arange(9000.0)[:, None])
    )
    with pytest.raises(ValueError, match="row 8500 contains NaN or infinity"):
        data.check_fit(data.load(str(tmp_path / "x.npy"), memory="mapped").x, 2)


def test_a_disk_without_room_is_noticed_before_anything_is_decoded(table, tmp_path, monkeypatch):
    source = open_source(table, label_column="label")
    monkeypatch.setattr(source, "chunks", lambda: pytest.fail("decoded"))
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, hard))
    try:
        with pytest.raises(DataError, match=rf"rows to {tmp_path}: File too large; make room, name another"):
            mapped(source, tmp_path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_a_disk_that_fills_up_meanwhile_says_so_too(table, tmp_path, monkeypatch):
    monkeypatch.delattr(os, "posix_fallocate")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, hard))
    try:
        with pytest.raises(DataError, match="File too large; make room"):
            mapped(open_source(table, label_column="label"), tmp_path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_a_folder_that_is_not_there_is_an_error(table, tmp_path):
    with pytest.raises(DataError, match="No such file or directory; make room, name another folder"):
        mapped(open_source(table, label_column="label"), tmp_path / "no")
