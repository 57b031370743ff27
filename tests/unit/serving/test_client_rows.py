"""What the client makes of arrays, Arrow data and images."""

from __future__ import annotations

import io
import json
import subprocess
import sys

import numpy as np
import pyarrow as pa
import pytest
from PIL import Image

from serving.client.rows import as_rows

IMAGES = np.random.default_rng(0).integers(0, 256, (4, 3, 5), dtype=np.uint8)
FEATURES = np.random.default_rng(1).normal(size=(4, 3)).astype(np.float32)


def encoded(image, kind="PNG"):
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, kind)
    return buffer.getvalue()


LISTS = pa.FixedSizeListArray.from_arrays(pa.array(FEATURES.ravel()), 3)
PNGS = [encoded(image) for image in IMAGES]


@pytest.mark.parametrize(
    ("given", "rows"),
    [
        (FEATURES, FEATURES),
        (FEATURES.astype(">f8"), FEATURES),
        (np.asfortranarray(IMAGES), IMAGES),
        (FEATURES.tolist(), FEATURES),
        (LISTS, FEATURES),
        (pa.chunked_array([LISTS.slice(0, 1), LISTS.slice(1)]), FEATURES),
        (pa.FixedShapeTensorArray.from_numpy_ndarray(IMAGES), IMAGES),
        (pa.table({name: FEATURES[:, j] for j, name in enumerate("abc")}), FEATURES),
        (pa.record_batch({"embedding": LISTS, "note": ["a", "b", "c", "d"]}), FEATURES),
        (pa.table({"image": [{"bytes": data, "path": None} for data in PNGS]}), IMAGES),
        (pa.array(PNGS), IMAGES),
        (PNGS, IMAGES),
        ([Image.fromarray(image) for image in IMAGES], IMAGES),
        (tuple(Image.fromarray(image).convert("RGB") for image in IMAGES), np.stack([IMAGES] * 3, -1)),
        ([Image.fromarray(IMAGES[0]).convert("RGB"), PNGS[1]], np.stack([IMAGES[:2]] * 3, -1)),
    ],
)
def test_rows_come_out_as_they_are_sent(given, rows):
    made, _ = as_rows(given)
    assert made.dtype == (np.uint8 if rows.dtype == np.uint8 else np.dtype("<f4"))
    assert made.flags.c_contiguous
    np.testing.assert_array_equal(made, rows)


class Frame:
    """A table of some other library, of which only Arrow's PyCapsule interface is known."""

    def __init__(self, **columns):
        self._table = pa.table(columns)

    def __arrow_c_stream__(self, requested_schema=None):
        return self._table.__arrow_c_stream__(requested_schema)


def test_columns_of_numbers_have_names_whatever_table_they_are_of():
    columns = {name: FEATURES[:, j] for j, name in enumerate("cab")}
    for table in (pa.table(columns), pa.record_batch(columns), Frame(**columns)):
        made, names = as_rows(table)
        np.testing.assert_array_equal(made, FEATURES)
        assert names == ("c", "a", "b")
    for nameless in (FEATURES, LISTS, pa.table({"embedding": LISTS}), PNGS):
        assert as_rows(nameless)[1] == ()


def test_the_index_of_a_data_frame_is_no_part_of_a_row():
    table = pa.table({"a": [1.0, 2.0], "b": [3.0, 4.0], "customer": [7, 8]})
    for index in (["customer"], [{"kind": "range", "name": None, "start": 0, "stop": 2, "step": 1}]):
        framed = table.replace_schema_metadata({"pandas": json.dumps({"index_columns": index})})
        rows, names = as_rows(framed)
        assert names == (("a", "b") if index == ["customer"] else ("a", "b", "customer"))
        assert rows.shape == (2, len(names))


def test_a_table_without_pyarrow_says_what_to_install():
    code = (
        "import sys; sys.modules['pyarrow'] = None\n"
        "from serving.client.rows import as_rows\n"
        "class Frame: __arrow_c_stream__ = lambda *_: None\n"
        "try: as_rows(Frame())\n"
        "except ImportError as error: print(error)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "pip install 'nvisa[data]'" in done.stdout


@pytest.mark.parametrize(
    ("given", "says"),
    [
        (np.int64([[1]]), "x has dtype int64; convert it"),
        (["a", "b"], "x has dtype <U1"),
        (3.0, "x is a single number"),
        (pa.schema([("a", pa.float32())]), "Schema is no Arrow array and hands out no table"),
        (
            np.array([[1.0, 2.0], [1e39, 0.0]]),
            r"row 1 has a value beyond float32's largest.*\(1 such rows of 2\)",
        ),
        (pa.array([[1.0, 2.0], None, [3.0]]), r"row 1: a list that is null.*\(2 such rows of 3\)"),
        (pa.table({"a": [1.0, float("nan")]}), "row 1: "),
        (pa.table({"label": [1], "a": [1.0]}), "column 'label' looks like a label"),
        (pa.table({"a": ["x"]}), "no image, list or numeric column"),
        (pa.table({"a": pa.array([], pa.float32())}), "no rows"),
        (pa.array([PNGS[0], b"junk"]), "row 1: corrupt image: not an image"),
        ([PNGS[0], b"junk"], "image 1: corrupt image: not an image"),
        ([b"junk"], "image 0: corrupt image"),
        (
            [Image.fromarray(IMAGES[0]), Image.fromarray(IMAGES[0][:2])],
            "image 1: the image is 5x2 grey, not 5x3",
        ),
        ([Image.new("F", (2, 2))], "image 0: the image has mode F"),
    ],
)
def test_what_cannot_be_rows_is_named(given, says):
    with pytest.raises(ValueError, match=says):
        as_rows(given)


def test_arrays_need_neither_pyarrow_nor_pillow():
    code = (
        "import sys; sys.modules['pyarrow'] = sys.modules['PIL'] = None\n"
        "import numpy as np; from serving.client import ClusterClient\n"
        "from serving.client.rows import as_rows; print(as_rows(np.ones((2, 3)))[0].shape)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "(2, 3)"
