"""Progress on a pipe and on a terminal, of a run whose number of epochs turns out smaller."""

from __future__ import annotations

import io
import re

from training import progress
from training.progress import TerminalProgress

# Six epochs of at most nine; the third ends its stage, three epochs early.
LEFT = [8, 7, 3, 2, 1, 0]


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def show(stream: io.StringIO) -> str:
    shown = TerminalProgress(stream)
    shown.restart(0, 1, 9)
    for epoch, left in enumerate(LEFT):
        values = {"bound": 1.0, "epsilon_x": 1.0, "effective_clusters": 3.0, "seconds": 2.0}
        shown.epoch({"epoch": epoch, "epochs_left": left, **values})
    shown.close()
    return stream.getvalue()


def test_epochs_and_time_left_follow_the_stages(monkeypatch):
    monkeypatch.setattr(progress, "LINE_SECONDS", 0.0)
    lines = show(io.StringIO()).splitlines()
    assert [re.match(r"epoch (\d+/\d+)", line)[1] for line in lines] == [
        "1/9",
        "2/9",
        "3/6",
        "4/6",
        "5/6",
        "6/6",
    ]
    assert [re.search(r"(\d+) s left", line)[1] for line in lines] == ["16", "14", "6", "4", "2", "0"]


def test_the_last_epoch_is_always_told():
    assert [line.split(",")[0] for line in show(io.StringIO()).splitlines()] == ["epoch 1/9", "epoch 6/6"]


def test_a_bar_ends_full(monkeypatch):
    last = show(Terminal()).split("\r")[-1]
    assert re.search(r"100%.* 6/6 ", last)
