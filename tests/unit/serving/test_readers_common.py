"""What holds for every source: dispatch, chunks, fingerprints, image folders."""

from __future__ import annotations

import io
import os

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import ExifTags, Image, ImageOps

from serving.readers import DataError, open_source, read_all
from serving.readers.images import rows_of_images
from serving.readers.source import input_spec

N_ROWS = 23


@pytest.fixture(scope="module")
def sources(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data")
    x = np.arange(N_ROWS * 2, dtype=np.float32).reshape(N_ROWS, 2)
    np.save(folder / "x.npy", x)
    pq.write_table(pa.table({"a": x[:, 0], "b": x[:, 1]}), folder / "x.parquet", row_group_size=5)
    rows = "\n".join(f"{a},{b}" for a, b in x)
    (folder / "x.csv").write_text(f"a,b\n{rows}\n")
    return x, [open_source(folder / f"x.{kind}") for kind in ("npy", "parquet", "csv")]


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_chunks_cover_the_range_once_in_order(sources, data):
    x, opened = sources
    start = data.draw(st.integers(0, N_ROWS))
    stop = data.draw(st.integers(start, N_ROWS))
    size = data.draw(st.integers(1, N_ROWS + 2))
    for source in opened:
        chunks = list(source.chunks(start, stop, size))
        assert [(c.start, len(c)) for c in chunks] == [
            (first, min(size, stop - first)) for first in range(start, stop, size)
        ]
        for chunk in chunks:
            np.testing.assert_array_equal(chunk.x, x[chunk.start : chunk.start + len(chunk)])
            assert chunk.x.flags.c_contiguous


@pytest.mark.parametrize(("start", "stop", "size"), [(-1, 3, 1), (3, 2, 1), (0, N_ROWS + 1, 1), (0, 1, 0)])
def test_ranges_outside_the_source(sources, start, stop, size):
    for source in sources[1]:
        with pytest.raises(ValueError, match="are not within"):
            source.chunks(start, stop, size)


def test_nothing_there_or_of_no_known_format(tmp_path):
    with pytest.raises(DataError, match="no such file or folder"):
        open_source(tmp_path / "x.npy")
    (tmp_path / "notes.txt").write_text("x")
    with pytest.raises(DataError, match="format not supported; supported: IDX"):
        open_source(tmp_path / "notes.txt")
    with pytest.raises(DataError, match=r"no data found, only \['notes.txt'\]"):
        open_source(tmp_path)


def test_fingerprint_follows_content_not_name_or_time(tmp_path):
    def fingerprint(name, x):
        np.save(tmp_path / name, x)
        os.utime(tmp_path / name, ns=(1, len(name)))
        return open_source(tmp_path / name).fingerprint

    first = fingerprint("a.npy", np.zeros(3))
    assert fingerprint("another.npy", np.zeros(3)) == first
    assert fingerprint("a.npy", np.array([0.0, 0.0, 1.0])) != first


def test_stat_fingerprint_follows_size_and_time(tmp_path):
    path = tmp_path / "a.npy"
    np.save(path, np.zeros(3))
    os.utime(path, ns=(5, 5))
    first = open_source(path).stat_fingerprint
    assert open_source(path).stat_fingerprint == first
    os.utime(path, ns=(5, 6))
    assert open_source(path).stat_fingerprint != first


def test_fingerprint_of_a_folder_sees_rows_move_between_files(tmp_path):
    prints = set()
    for cut in (1, 2):
        for name, part in (("a", [1.0, 2.0, 3.0][:cut]), ("b", [1.0, 2.0, 3.0][cut:])):
            pq.write_table(pa.table({"v": part}), tmp_path / f"{name}.parquet")
        prints.add(open_source(tmp_path).fingerprint)
    assert len(prints) == 2


@pytest.fixture
def image_folder(tmp_path):
    rng = np.random.default_rng(0)
    for name in ("b/2.png", "b/10.png", "a/9.PNG"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (4, 6), dtype=np.uint8)).save(tmp_path / name)
    (tmp_path / "b" / "notes.txt").write_text("passed over")
    return tmp_path


def test_image_folder_is_sorted_by_path_and_keeps_grey(image_folder):
    source = open_source(image_folder)
    (chunk,) = source.chunks()
    assert chunk.ids.to_pylist() == [{"path": "a/9.PNG"}, {"path": "b/10.png"}, {"path": "b/2.png"}]
    assert source.input.shape == (4, 6)
    for row, name in enumerate(chunk.ids["path"].to_pylist()):
        np.testing.assert_array_equal(chunk.x[row], np.asarray(Image.open(image_folder / name)))


def test_folders_that_images_lie_in_can_be_their_labels(image_folder):
    source = open_source(image_folder, label_column="folder")
    assert source.label_names == ("a", "b")
    (chunk,) = source.chunks()
    assert (chunk.labels.dtype, chunk.labels.tolist()) == (np.int64, [0, 1, 1])
    assert not open_source(image_folder).has_labels
    assert not open_source(image_folder, label_column="folder", read_labels=False).has_labels
    with pytest.raises(DataError, match="no columns but the id 'path' and the label 'folder'"):
        open_source(image_folder, label_column="class")
    (image_folder / "split" / "test").mkdir(parents=True)
    Image.new("L", (6, 4)).save(image_folder / "split" / "test" / "1.png")
    with pytest.raises(DataError, match="all images lie in folders named 'test', which is no label"):
        open_source(image_folder / "split", label_column="folder", split="test")
    Image.new("L", (6, 4)).save(image_folder / "loose.png")
    with pytest.raises(DataError, match=r"loose.png: lies in no folder of its own below"):
        open_source(image_folder, label_column="folder")


@pytest.mark.parametrize(
    ("mode", "shape"), [("1", (4, 6)), ("LA", (4, 6)), ("P", (4, 6, 3)), ("RGBA", (4, 6, 3))]
)
def test_image_modes(tmp_path, mode, shape):
    Image.new(mode, (6, 4)).save(tmp_path / "x.png")
    assert open_source(tmp_path).input.shape == shape


def test_sixteen_bit_images_are_refused(tmp_path):
    Image.fromarray(np.full((4, 6), 40_000, np.uint16)).save(tmp_path / "x.png")
    with pytest.raises(DataError, match="not 8 bits per channel"):
        open_source(tmp_path)


def test_odd_image_is_named_in_training(image_folder):
    Image.new("L", (6, 5)).save(image_folder / "b" / "11.png")
    Image.new("RGB", (6, 4)).save(image_folder / "b" / "12.png")
    source = open_source(image_folder)
    with pytest.raises(
        DataError,
        match=r"2 of 5 rows cannot be used: row 2 \(b/11.png\): the image is 6x5 grey, not 6x4 grey; "
        r"row 3 \(b/12.png\): the image is 6x4 colour, not 6x4 grey; repair or remove them, or bring all images",
    ):
        read_all(source)
    (image_folder / "b" / "11.png").unlink()
    with pytest.raises(DataError, match=r"6x4 colour, not 6x4 grey; repair or remove them$"):
        read_all(open_source(image_folder))


def resized(image, shape):
    mode = "RGB" if len(shape) == 3 else "L"
    return np.asarray(image.convert(mode).resize((shape[1], shape[0]), Image.Resampling.BILINEAR))


@pytest.mark.parametrize("kind", ["JPEG", "WEBP"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_photographs_are_turned_upright(tmp_path, kind, orientation):
    y, x = np.mgrid[:32, :48]
    upright = Image.fromarray((4 * x + 2 * y).astype(np.uint8)).convert("RGB")
    # From EXIF's own words: where the stored row 0 and column 0 are in the picture as it is seen.
    stored = {
        1: np.asarray(upright),  # top, left
        2: np.asarray(upright)[:, ::-1],  # top, right
        3: np.asarray(upright)[::-1, ::-1],  # bottom, right
        4: np.asarray(upright)[::-1],  # bottom, left
        5: np.asarray(upright).swapaxes(0, 1),  # left, top
        6: np.asarray(upright)[:, ::-1].swapaxes(0, 1),  # right, top
        7: np.asarray(upright)[::-1, ::-1].swapaxes(0, 1),  # right, bottom
        8: np.asarray(upright)[::-1].swapaxes(0, 1),  # left, bottom
    }[orientation]
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = orientation
    file = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(stored)).save(file, kind, quality=95, exif=exif)
    (tmp_path / f"x.{kind.lower()}").write_bytes(file.getvalue())
    (chunk,) = open_source(tmp_path).chunks()
    assert chunk.x.shape == (1, 32, 48, 3)
    assert np.abs(chunk.x[0].astype(int) - np.asarray(upright)).max() < 16
    # The same of an image that the caller has opened, and of its copy that lies as it is to be seen.
    opened = Image.open(file)
    np.testing.assert_array_equal(rows_of_images([opened]), chunk.x)
    np.testing.assert_array_equal(rows_of_images([ImageOps.exif_transpose(opened)]), chunk.x)


@pytest.mark.filterwarnings("ignore:Corrupt EXIF data")
@pytest.mark.parametrize("broken", [b"XX*\0\0\0\0\x08", b"MM\0*\0\0\0\x08\xff\xff", b""])
def test_broken_exif_harms_no_image(tmp_path, broken):
    for kind in ("jpeg", "webp"):
        Image.new("RGB", (6, 4)).save(tmp_path / f"x.{kind}", exif=b"Exif\0\0" + broken)
    (chunk,) = open_source(tmp_path).chunks()
    assert chunk.errors == {}
    assert chunk.x.shape == (2, 4, 6, 3)


@pytest.fixture
def many_sizes():
    """Images, grey and in colour, one of them 6 wide and 4 high."""
    rng = np.random.default_rng(0)
    shapes = [(4, 6, 3), (8, 12), (9, 5, 3), (1, 1, 3), (40, 70, 3)]
    return [Image.fromarray(rng.integers(0, 256, shape, dtype=np.uint8)) for shape in shapes]


def encoded(image):
    file = io.BytesIO()
    image.save(file, "PNG")
    return file.getvalue()


@pytest.mark.parametrize("kind", ["folder", "parquet"])
def test_images_of_other_sizes_are_brought_to_the_expected_one_if_asked(tmp_path, many_sizes, kind):
    images = [encoded(image) for image in many_sizes]
    if kind == "folder":
        for index, data in enumerate(images):
            (tmp_path / f"{index}.png").write_bytes(data)
    else:
        pq.write_table(pa.table({"image": pa.array(images, pa.binary())}), tmp_path / "x.parquet")
    spec = input_spec("uint8", (4, 6, 3))
    (chunk,) = open_source(tmp_path, expected=spec, resize=True).chunks()
    assert chunk.errors == {}
    np.testing.assert_array_equal(chunk.x, [resized(image, spec.shape) for image in many_sizes])
    np.testing.assert_array_equal(chunk.x[0], np.asarray(many_sizes[0]))
    (chunk,) = open_source(tmp_path, expected=spec).chunks()
    assert sorted(chunk.errors) == [1, 2, 3, 4]


def test_resizing_turns_no_colour_into_grey_and_mends_nothing(tmp_path, many_sizes):
    for index, data in enumerate([*map(encoded, many_sizes), b"no image"]):
        (tmp_path / f"{index}.png").write_bytes(data)
    (chunk,) = open_source(tmp_path, expected=input_spec("uint8", (4, 6)), resize=True).chunks()
    assert sorted(chunk.errors) == [0, 2, 3, 4, 5]
    assert "6x4 colour, not 6x4 grey" in chunk.errors[0]
    np.testing.assert_array_equal(chunk.x[1], resized(many_sizes[1], (4, 6)))


def test_what_has_no_images_cannot_be_resized(tmp_path):
    np.save(tmp_path / "x.npy", np.zeros((2, 4, 6), np.uint8))
    pq.write_table(pa.table({"a": [1.0, 2.0]}), tmp_path / "x.parquet")
    for name in ("x.npy", "x.parquet"):
        with pytest.raises(DataError, match="nothing to resize"):
            open_source(tmp_path / name, expected=input_spec("uint8", (4, 6)), resize=True)


def test_split_folders_of_images(tmp_path):
    for name, n in (("train", 3), ("test", 2)):
        (tmp_path / name).mkdir()
        for i in range(n):
            Image.new("L", (2, 2)).save(tmp_path / name / f"{i}.png")
    assert open_source(tmp_path).n_rows == 3
    assert open_source(tmp_path, split="test").n_rows == 2
    (tmp_path / "test" / "0.png").unlink()
    (tmp_path / "test" / "1.png").unlink()
    with pytest.raises(DataError, match="no files for split 'test'"):
        open_source(tmp_path, split="test")


def test_folder_of_two_kinds(image_folder):
    pq.write_table(pa.table({"v": [1.0]}), image_folder / "x.parquet")
    with pytest.raises(DataError, match="both Parquet and image files"):
        open_source(image_folder)
