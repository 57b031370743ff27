"""The HTML page: well-formed, complete, and true to its numbers."""

import struct
import zlib
from html.parser import HTMLParser

import numpy as np
import pytest

from training.report import ClusterRow, Section, cluster_rows, write_html


class Page(HTMLParser):
    """Collects the tags of a page, and complains if they do not nest."""

    def __init__(self, text):
        super().__init__()
        self.open, self.tags, self.text = [], [], ""
        self.feed(text)
        assert not self.open

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in {"meta", "img"}:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open and self.open[-1] != "style":
            self.text += data


def white_png(path):
    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", 1, 1, 8, 0, 0, 0, 0)
    path.write_bytes(
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", header)
        + chunk(b"IDAT", zlib.compress(b"\0\xff"))
        + chunk(b"IEND", b"")
    )


def test_the_page_shows_pictures_numbers_and_clusters(tmp_path):
    white_png(tmp_path / "a b.png")
    white_png(tmp_path / "history.png")
    clusters = cluster_rows(
        np.array([0, 0, 2, 2]), np.array([0.5, 1.0, 0.9, 0.9]), 3, ["cats", "<dogs>", "eels"]
    )
    path = write_html(
        tmp_path / "report.html",
        "Run <one> & two",
        {
            "rows": 12345,
            "ACC": 0.98765,
            "NMI": None,
            "labels": False,
            "learning rate": 1e-5,
            "preset": "quick",
        },
        [
            Section("Samples", "What the model draws.", "a b.png", alt="tiles"),
            ("History", "Curves.", "history.png"),
        ],
        clusters,
    )
    page = Page(path.read_text("utf-8"))
    images = [attributes for tag, attributes in page.tags if tag == "img"]
    assert [(image["src"], image["alt"]) for image in images] == [
        ("a%20b.png", "tiles"),
        ("history.png", "History"),
    ]
    for expected in ("Run <one> & two", "12,345", "0.9877", "–", "no", "1e-05", "quick", "<dogs>", "0.750"):
        assert expected in page.text
    assert not [attributes for _, attributes in page.tags if "http" in str(attributes)]
    assert "script" not in {tag for tag, _ in page.tags}
    anchors = {
        attributes["href"][1:] for tag, attributes in page.tags if attributes.get("href", "").startswith("#")
    }
    assert anchors <= {attributes.get("id") for _, attributes in page.tags}


def test_the_page_refuses_a_picture_that_is_not_there(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"has no gone\.png"):
        write_html(tmp_path / "report.html", "t", {}, [("h", "e", "gone.png")])
    assert not (tmp_path / "report.html").exists()


def test_cluster_rows_add_up():
    rows = cluster_rows(np.array([1, 1, 1, 3]), np.array([0.3, 0.6, 0.9, 1.0]), 5)
    assert [row.rows for row in rows] == [0, 3, 0, 1, 0]
    assert sum(row.share for row in rows) == pytest.approx(1)
    assert rows[1].mean_confidence == pytest.approx(0.6)
    assert rows[4] == ClusterRow(4, "cluster 4", 0, 0.0, None)
