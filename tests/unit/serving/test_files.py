import os

import pytest

from serving.files import remove_leftovers, write_atomically


def test_a_file_is_whole_or_as_it_was(tmp_path):
    path = tmp_path / "a.json"
    write_atomically(path, b"old")

    def breaks(file):
        file.write(b"half")
        raise OSError(28, "No space left on device")

    with pytest.raises(OSError, match="No space left on device") as caught:
        write_atomically(path, breaks)
    assert caught.value.filename == str(path)  # not the temporary one's
    assert path.read_bytes() == b"old"
    write_atomically(path, lambda file: file.write(b"new"))
    assert path.read_bytes() == b"new"
    assert os.listdir(tmp_path) == ["a.json"]


def test_the_kind_of_error_is_kept(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"none/a\.json"):
        write_atomically(tmp_path / "none" / "a.json", b"")


def test_only_leftovers_of_this_file_are_removed(tmp_path):
    for name in (".a.123.tmp", ".ab.123.tmp", "a.json"):
        (tmp_path / name).write_bytes(b"")
    remove_leftovers(tmp_path / "a.json")
    assert sorted(os.listdir(tmp_path)) == [".ab.123.tmp", "a.json"]
