"""Parquet and CSV."""

from __future__ import annotations

import gzip
import io
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from serving.manifest import InputSpec
from serving.readers import DataError, open_source, read_all
from serving.readers.columns import ColumnChoice, assign_roles


def png(x: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(x).save(buffer, "PNG")
    return buffer.getvalue()


def parquet(path: Path, row_group_size: int = 1000, **columns) -> Path:
    pq.write_table(pa.table(columns), path, row_group_size=row_group_size)
    return path


def csv(path: Path, text: str) -> Path:
    path.write_text(text, "latin-1")
    return path


def colour_images(n: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (n, 5, 4, 3), dtype=np.uint8)


@pytest.mark.parametrize("struct", [True, False])
def test_image_column_with_labels_and_ids(tmp_path, struct):
    x = colour_images(6)
    encoded = [png(image) for image in x]
    column = [{"bytes": e, "path": None} for e in encoded] if struct else encoded
    path = parquet(tmp_path / "a.parquet", image=column, label=[3, 1, 4, 1, 5, 9], key=list("abcdef"))
    source = open_source(path, label_column="label", id_columns=["key"])
    assert (source.input.dtype, source.input.shape) == ("uint8", (5, 4, 3))
    chunk = list(source.chunks(2, 6, chunk_rows=3))[1]
    assert chunk.start == 5
    np.testing.assert_array_equal(chunk.x, x[5:])
    np.testing.assert_array_equal(chunk.labels, [9])
    assert chunk.ids.to_pylist() == [{"key": "f"}]


def test_bad_images_are_rows_errors(tmp_path):
    grey = np.arange(20, dtype=np.uint8).reshape(5, 4)
    good = png(colour_images(1)[0])
    column = [None, good, good[:-30], b"no image", png(grey), png(colour_images(1)[0][:4]), b""]
    source = open_source(parquet(tmp_path / "a.parquet", image=pa.array(column, pa.binary())))
    (chunk,) = source.chunks()
    assert chunk.errors.keys() == {0, 2, 3, 5, 6}
    assert chunk.errors[0] == "the image is missing"
    assert "corrupt image" in chunk.errors[2]
    assert chunk.errors[3] == "corrupt image: not an image"
    assert chunk.errors[5] == "the image is 4x4 colour, not 4x5 colour"
    np.testing.assert_array_equal(chunk.x[1], colour_images(1)[0])
    np.testing.assert_array_equal(chunk.x[4], np.repeat(grey[..., None], 3, axis=2))  # grey among colour
    assert not chunk.x[[0, 2, 3, 5, 6]].any()


def test_expected_input_decides_over_the_first_image(tmp_path):
    grey = np.arange(20, dtype=np.uint8).reshape(5, 4)
    path = parquet(tmp_path / "a.parquet", image=[png(grey), png(colour_images(1)[0])])
    assert open_source(path).input.shape == (5, 4)
    colour = InputSpec(dtype="uint8", shape=(5, 4, 3), meaning="image")
    source = open_source(path, expected=colour)
    assert source.input.shape == (5, 4, 3)
    assert next(source.chunks()).errors == {}
    other = InputSpec(dtype="uint8", shape=(9, 9), meaning="image")
    assert open_source(path, expected=other).input.shape == (5, 4)


def test_no_image_can_be_read(tmp_path):
    path = parquet(tmp_path / "a.parquet", image=[b"x", b"y"])
    with pytest.raises(DataError, match="column 'image': none of the first images can be read"):
        open_source(path)


LIST_TYPES = {
    "list": pa.list_(pa.float64()),
    "large list": pa.large_list(pa.float32()),
    "fixed": pa.list_(pa.float32(), 6),
    "bytes": pa.list_(pa.uint8()),
    "nested": pa.list_(pa.list_(pa.uint8(), 3), 2),
    "half nested": pa.list_(pa.list_(pa.float32(), 3)),
    "integers": pa.list_(pa.int64(), 6),
}


@pytest.mark.parametrize("kind", LIST_TYPES)
def test_list_columns(tmp_path, kind):
    nested = "nested" in kind
    x = np.arange(24).reshape((4, 2, 3) if nested else (4, 6))
    column = pa.array(x.tolist(), LIST_TYPES[kind])
    source = open_source(parquet(tmp_path / "a.parquet", row_group_size=3, v=column, other=["a"] * 4))
    dtype = "uint8" if kind in ("bytes", "nested") else "float32"
    assert (source.input.dtype, source.input.shape) == (dtype, x.shape[1:])
    np.testing.assert_array_equal(read_all(source)[0], x)
    np.testing.assert_array_equal(np.concatenate([c.x for c in source.chunks(1, 4, 2)]), x[1:])


def test_tensor_column(tmp_path):
    x = np.arange(24, dtype=np.float32).reshape(4, 2, 3)
    column = pa.FixedShapeTensorArray.from_numpy_ndarray(x)
    np.testing.assert_array_equal(read_all(open_source(parquet(tmp_path / "a.parquet", v=column)))[0], x)


@pytest.mark.parametrize("kind", [pa.list_(pa.float32()), pa.list_(pa.float32(), 2)])
def test_bad_lists_are_row_errors(tmp_path, kind):
    rows = [[1.0, 2.0], None, [3.0, None], [np.nan, 1.0], [4.0, 5.0]]
    ragged = [] if pa.types.is_fixed_size_list(kind) else [[1.0], []]
    source = open_source(parquet(tmp_path / "a.parquet", v=pa.array(rows + ragged, kind)))
    (chunk,) = source.chunks()
    assert chunk.errors.keys() == {1, 2, 3} | set(range(5, 5 + len(ragged)))
    np.testing.assert_array_equal(chunk.x[[0, 4]], [[1, 2], [4, 5]])
    assert not chunk.x[sorted(chunk.errors)].any()


def test_ragged_nested_lists(tmp_path):
    column = pa.array([[[1, 2], [3, 4]], [[1, 2], [3]], [[5, 6], [7, 8]]], pa.list_(pa.list_(pa.uint8())))
    (chunk,) = open_source(parquet(tmp_path / "a.parquet", v=column)).chunks()
    assert chunk.errors.keys() == {1}
    np.testing.assert_array_equal(chunk.x, [[[1, 2], [3, 4]], [[0, 0], [0, 0]], [[5, 6], [7, 8]]])


def test_numeric_columns_in_order_without_label_and_ids(tmp_path):
    path = parquet(
        tmp_path / "a.parquet", b=[1, 2, None], a=[0.5, np.nan, 2.5], flag=[True, False, True],
        text=["u", "v", "w"], kind=["cat", "dog", "cat"], key=[7, 8, 9],
    )  # fmt: skip
    source = open_source(path, label_column="kind", id_columns=["key", "text"])
    (chunk,) = source.chunks()
    np.testing.assert_array_equal(chunk.x[0], [1, 0.5, 1])
    assert chunk.errors.keys() == {1, 2}
    assert "column 'a'" in chunk.errors[1]
    assert "column 'b'" in chunk.errors[2]
    np.testing.assert_array_equal(chunk.labels, [0, 1, 0])
    assert source.label_names == ("cat", "dog")
    assert chunk.ids.column_names == ["key", "text"]
    chosen = open_source(path, feature_columns=["a", "key"])
    np.testing.assert_array_equal(next(chosen.chunks()).x[0], [0.5, 7])


@pytest.mark.parametrize("name", ["label", "Labels", "y", "target", "class"])
def test_a_label_never_becomes_a_feature_unseen(tmp_path, name):
    path = parquet(tmp_path / "a.parquet", **{"a": [1.0, 2.0], name: [0, 1]})
    with pytest.raises(DataError, match=f"column '{name}' looks like a label .* --label-column"):
        open_source(path)
    assert open_source(path, label_column=name, read_labels=False).input.shape == (1,)
    assert not open_source(path, label_column=name, read_labels=False).has_labels
    assert open_source(path, feature_columns=["a", name]).input.shape == (2,)


def test_an_id_never_becomes_a_feature_unseen(tmp_path):
    path = parquet(tmp_path / "a.parquet", a=[1.0, 2.0], id=[0, 1])
    with pytest.raises(DataError, match=r"column 'id' looks like an id .* --id-columns"):
        open_source(path)
    assert open_source(path, id_columns=["id"]).input.shape == (1,)


@pytest.mark.parametrize(
    ("columns", "choice", "message"),
    [
        ({"a": ["x"]}, {}, "no image, list or numeric column"),
        ({"a": [1.0]}, {"label_column": "b"}, r"no column \['b'\]; it has \['a'\]"),
        ({"a": [[1.0]], "b": [[1.0]]}, {}, r"\['a', 'b'\] could each be the row"),
        (
            {"a": [1.0], "b": ["x"]},
            {"feature_columns": ["a", "b"]},
            r"hold no .* or images: \['b \(string\)'\]",
        ),
        ({"a": [1.0], "b": [[1.0]]}, {"feature_columns": ["a", "b"]}, "do not make up a row"),
        ({"a": [1.0], "b": [1]}, {"feature_columns": ["a"], "label_column": "a"}, "also as label or id"),
    ],
)
def test_columns_that_do_not_fit(tmp_path, columns, choice, message):
    path = parquet(tmp_path / "a.parquet", **columns)
    with pytest.raises(DataError, match=message):
        open_source(path, **choice)


def test_labels_that_are_missing_or_fractions(tmp_path):
    for column, message in (([0, None], "row 1 has no label"), ([0.5, 1.0], "not whole numbers")):
        path = parquet(tmp_path / "a.parquet", a=[1.0, 2.0], label=column)
        with pytest.raises(DataError, match=message):
            read_all(open_source(path, label_column="label"))


def test_dictionary_labels_have_one_code_over_all_row_groups(tmp_path):
    names = ["b", "a", "c", "a", "b"]
    column = pa.array(names).dictionary_encode()
    path = parquet(tmp_path / "a.parquet", row_group_size=2, a=np.arange(5.0), label=column)
    _, labels = read_all(open_source(path, label_column="label"))
    np.testing.assert_array_equal(labels, [1, 0, 2, 0, 1])


def test_parquet_folder_of_parts_with_splits(tmp_path):
    for name, first, n in (("train-00000-of-2", 0, 4), ("train-00001-of-2", 4, 3), ("test-00000", 50, 2)):
        parquet(tmp_path / f"{name}.parquet", row_group_size=2, a=np.arange(first, first + n, dtype=float))
    (tmp_path / "_hidden.parquet").write_text("not read")
    source = open_source(tmp_path)
    assert source.n_rows == 7
    for start in range(8):
        rows = [chunk.x[:, 0] for chunk in source.chunks(start, 7, chunk_rows=3)]
        np.testing.assert_array_equal(np.concatenate([np.empty(0), *rows]), np.arange(start, 7))
        assert all(len(row) == 3 for row in rows[:-1])
    np.testing.assert_array_equal(read_all(open_source(tmp_path, split="test"))[0][:, 0], [50, 51])


def test_parquet_parts_that_differ(tmp_path):
    parquet(tmp_path / "a.parquet", a=[1.0])
    parquet(tmp_path / "b.parquet", a=["x"])
    with pytest.raises(DataError, match=r"b.parquet: has other columns or types than a.parquet"):
        open_source(tmp_path)


def test_truncated_and_damaged_parquet(tmp_path):
    path = parquet(tmp_path / "a.parquet", a=np.random.default_rng(0).normal(size=5000))
    whole = path.read_bytes()
    for part in (whole[: len(whole) // 2], whole[:3], b""):
        path.write_bytes(part)
        with pytest.raises(DataError, match=r"a.parquet: not a whole Parquet file"):
            open_source(path)
    path.write_bytes(whole[:8] + b"\xff" * 400 + whole[408:])
    source = open_source(path)
    with pytest.raises(DataError, match=r"a.parquet: not a whole Parquet file"):
        read_all(source)


def test_flipped_bits_that_still_decode_are_found_by_the_checksum(tmp_path):
    path = tmp_path / "a.parquet"
    table = pa.table({"a": np.random.default_rng(0).normal(size=1000).astype(np.float32)})
    for checksum in (False, True):
        pq.write_table(table, path, write_page_checksum=checksum, compression="none", use_dictionary=False)
        data = bytearray(path.read_bytes())
        data[len(data) // 2] ^= 1
        path.write_bytes(bytes(data))
        chunks = open_source(path).chunks()
        if checksum:
            with pytest.raises(DataError, match="CRC checksum verification failed"):
                list(chunks)
        else:
            assert not np.array_equal(next(chunks).x[:, 0], table["a"])


def test_empty_parquet(tmp_path):
    path = parquet(tmp_path / "a.parquet", a=pa.array([], pa.float64()))
    with pytest.raises(DataError, match="holds no rows"):
        open_source(path)


def test_csv_reads_numbers_labels_and_ids_as_written(tmp_path):
    text = "key,b,a,kind,flag\n007,1,2.5,x,true\nNA,3,-1e3,y,false\n"
    source = open_source(csv(tmp_path / "a.csv", text), label_column="kind", id_columns=["key"])
    (chunk,) = source.chunks()
    np.testing.assert_array_equal(chunk.x, [[1, 2.5, 1], [3, -1000, 0]])
    assert chunk.ids.to_pylist() == [{"key": "007"}, {"key": "NA"}]
    np.testing.assert_array_equal(chunk.labels, [0, 1])


def test_csv_gzipped_with_integer_labels(tmp_path):
    (tmp_path / "a.csv.gz").write_bytes(gzip.compress(b"a,label\n1,4\n2,5\n"))
    x, labels = read_all(open_source(tmp_path / "a.csv.gz", label_column="label"))
    np.testing.assert_array_equal(x, [[1], [2]])
    np.testing.assert_array_equal(labels, [4, 5])


def test_bad_csv_cells_are_row_errors_also_far_down(tmp_path):
    n = 150_000  # the inference of types looks at the first megabyte only
    lines = [f"{i},{i}.5" for i in range(n)]
    lines[1], lines[2], lines[n - 2] = "1,", " 2 ,nan", "oops,1"
    source = open_source(csv(tmp_path / "a.csv", "a,b\n" + "\n".join(lines) + "\n"))
    assert source.n_rows == n
    errors = {c.start + row: e for c in source.chunks(chunk_rows=50_000) for row, e in c.errors.items()}
    assert errors.keys() == {1, 2, n - 2}
    assert "column 'b'" in errors[1]
    assert errors[n - 2] == "column 'a' holds 'oops', which is not a number"
    (chunk,) = source.chunks(n - 3, n)
    np.testing.assert_array_equal(chunk.x[:, 1], [n - 2.5, 0, n - 0.5])


def test_a_cell_that_is_no_number_takes_no_column_away(tmp_path):
    text = "a,b,note,date,code\n1,2,x,2024-01-01,A1\n3,?,5,2024-01-02,7\n,4,y,2024-01-03,B2\n"
    source = open_source(csv(tmp_path / "a.csv", text))
    assert (source.features, source.left_out) == (("a", "b"), ("note", "date", "code"))
    (chunk,) = source.chunks()
    np.testing.assert_array_equal(chunk.x[0], [1, 2])
    assert chunk.errors.keys() == {1, 2}
    assert chunk.errors[1] == "column 'b' holds '?', which is not a number"
    # Whoever says that it is something else is right.
    source = open_source(tmp_path / "a.csv", id_columns=["b"], label_column="note")
    assert (source.features, source.left_out) == (("a",), ("date", "code"))
    assert next(source.chunks()).ids.to_pylist() == [{"b": "2"}, {"b": "?"}, {"b": "4"}]


def test_csv_chunks_forward_back_and_interleaved(tmp_path):
    text = "a\n" + "\n".join(map(str, range(1000))) + "\n"
    source = open_source(csv(tmp_path / "a.csv", text))
    for start, stop in ((10, 20), (20, 25), (500, 1000), (0, 3), (999, 1000), (7, 7)):
        rows = [chunk.x[:, 0] for chunk in source.chunks(start, stop, chunk_rows=7)]
        np.testing.assert_array_equal(np.concatenate([np.empty(0), *rows]), np.arange(start, stop))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "not a readable CSV file: Empty CSV file"),
        ("a,b\n", "holds no rows"),
        ("a,b\n1,2\n3\n", "Row #3: Expected 2 columns, got 1"),
        ("0.5,1.5\n2.5,3.5\n", "has no header: its first line is 0.5,1.5"),
        ("a,a\n1,2\n", r"more than one column named \['a'\]"),
        ("a\nx\n", "no image, list or numeric column"),
        (",a\n0,1\n1,2\n", "column '' looks like an id"),
        ("a,été\n1,2\n", "the header is not UTF-8: b'.xe9'"),
        ("a,b\n1,été\n", "column 'b' is not UTF-8"),
    ],
)
def test_csv_that_cannot_be_read(tmp_path, text, message):
    with pytest.raises(DataError, match=message):
        open_source(csv(tmp_path / "a.csv", text))


def test_csv_columns_numbered_by_a_data_frame(tmp_path):
    x, _ = read_all(open_source(csv(tmp_path / "a.csv", "0,1,2\n5,6,7\n")))
    np.testing.assert_array_equal(x, [[5, 6, 7]])


def test_csv_labels_that_turn_to_text(tmp_path):
    text = "a,label\n" + "1,2\n" * 300_000 + "1,oops\n"
    source = open_source(csv(tmp_path / "a.csv", text), label_column="label")
    with pytest.raises(DataError, match=r"label column 'label', rows .* to 300000: .*oops"):
        read_all(source)


MODEL = InputSpec(dtype="float32", shape=(2,), meaning="features", columns=("a", "b"))


@pytest.mark.parametrize("kind", ["csv", "parquet"])
def test_a_models_columns_are_found_by_name_and_the_rest_is_left_out(tmp_path, kind):
    columns = {"b": [2.0, 4.0], "label": [0, 1], "id": [7, 8], "a": [1.0, 3.0], "note": ["x", "y"]}
    if kind == "csv":
        lines = [",".join(columns), *(",".join(map(str, row)) for row in zip(*columns.values(), strict=True))]
        path = csv(tmp_path / "a.csv", "\n".join(lines) + "\n")
    else:
        path = parquet(tmp_path / "a.parquet", **columns)
    with pytest.raises(DataError, match="looks like a label"):
        open_source(path)
    source = open_source(path, expected=MODEL, id_columns=["id"])
    assert (source.features, source.left_out) == (("a", "b"), ("label", "note"))
    assert source.input == MODEL
    (chunk,) = source.chunks()
    np.testing.assert_array_equal(chunk.x, [[1, 2], [3, 4]])
    assert [row["id"] for row in chunk.ids.to_pylist()] == (["7", "8"] if kind == "csv" else [7, 8])
    same = open_source(path, expected=MODEL, feature_columns=["b", "a"])
    np.testing.assert_array_equal(read_all(same)[0], [[1, 2], [3, 4]])
    others = open_source(path, expected=MODEL, feature_columns=["id", "b"])
    np.testing.assert_array_equal(read_all(others)[0], [[7, 2], [8, 4]])
    assert others.input.columns == (), "the user's word, not the model's columns"
    with pytest.raises(
        DataError, match="has 'b' in the place of the model's 'a', and the model has a column"
    ):
        open_source(path, expected=MODEL, feature_columns=["b", "id"])
    with pytest.raises(DataError, match=r"named twice, or also as label or id: \['a'\]$"):
        open_source(path, expected=MODEL, id_columns=["id", "a"])
    with pytest.raises(DataError, match=r"named twice, or also as label or id: \['b'\]$"):
        open_source(path, expected=MODEL, feature_columns=["a", "b", "b"])


def test_a_table_that_lacks_a_models_column_is_refused_and_a_column_of_lists_is_not(tmp_path):
    path = parquet(tmp_path / "a.parquet", a=[1.0], B=[2.0], label=[0])
    with pytest.raises(
        DataError, match=r"no column \['b'\], which the model was fitted on; it has \['a', 'B'"
    ):
        open_source(path, expected=MODEL)
    lists = parquet(tmp_path / "b.parquet", embedding=[[1.0, 2.0]], label=[0])
    source = open_source(lists, expected=MODEL)
    np.testing.assert_array_equal(read_all(source)[0], [[1, 2]])
    assert source.input.columns == ()
    with pytest.raises(DataError, match="named twice, or also as label or id"):
        open_source(parquet(tmp_path / "c.parquet", a=[1.0], b=[2.0]), expected=MODEL, label_column="b")
    tags = parquet(tmp_path / "d.parquet", a=[1.0], C=[2.0], tags=[[1, 2]])
    with pytest.raises(DataError, match=r"no column \['b'\], which the model was fitted on"):
        open_source(tags, expected=MODEL)


def test_a_models_column_with_hardly_a_number_spoils_its_rows_and_one_without_is_refused(tmp_path):
    path = csv(tmp_path / "a.csv", "a,b\noops,1\n?,2\n3,4\n")
    source = open_source(path, expected=MODEL)
    (chunk,) = source.chunks()
    assert chunk.errors.keys() == {0, 1}
    np.testing.assert_array_equal(chunk.x[2], [3, 4])
    with pytest.raises(DataError, match=r"hold no numbers, lists or images: \['a \(string\)'\]"):
        open_source(csv(tmp_path / "b.csv", "a,b\noops,1\n"), expected=MODEL)


def test_a_table_of_twenty_thousand_columns_opens_in_a_moment(tmp_path):
    names = tuple(f"c{i}" for i in range(20_000))
    schema = pa.schema([(name, pa.float32()) for name in reversed(names)])
    looks = 0

    class Name(str):
        def __eq__(self, other):
            nonlocal looks
            looks += 1
            return str.__eq__(self, other)

        __hash__ = str.__hash__

    expected = tuple(map(Name, names))
    roles = assign_roles(tmp_path, schema, ColumnChoice(label=None, expected=expected))
    assert roles.features == names
    assert looks < 20 * len(names), "each name is looked up, not compared with all"
