import asyncio
import logging

import pytest

from serving.metrics import Metrics
from serving.reloading import CredentialError, Reloaded
from serving.start_error import StartError


def number(contents):
    try:
        return int(b"".join(contents))
    except ValueError:
        raise CredentialError("not a number") from None


@pytest.fixture
def metrics():
    return Metrics()


@pytest.fixture
def paths(tmp_path):
    (tmp_path / "a").write_bytes(b"1")
    (tmp_path / "b").write_bytes(b"2")
    return tmp_path / "a", tmp_path / "b"


@pytest.fixture
def reloaded(paths, metrics):
    return Reloaded("numbers", paths, number, metrics)


@pytest.fixture
def counted(metrics):
    def counted():
        get = metrics.registry.get_sample_value
        reloads = [
            get("nvisa_credential_reloads_total", {"credential": "numbers", "outcome": outcome}) or 0
            for outcome in ("success", "failure")
        ]
        return (*reloads, get("nvisa_credentials_stale", {"credential": "numbers"}))

    return counted


def test_what_has_not_changed_is_not_read_again(reloaded, counted):
    before = reloaded.value
    reloaded.check()
    assert reloaded.value is before
    assert counted() == (0, 0, 0)


def test_a_change_of_either_file_is_taken(reloaded, paths, counted):
    paths[0].write_bytes(b"3")
    reloaded.check()
    assert reloaded.value == 32
    paths[1].write_bytes(b"4")
    reloaded.check()
    assert reloaded.value == 34
    assert counted() == (2, 0, 0)


def test_the_same_bytes_cut_in_another_place_are_a_change(reloaded, paths, counted):
    paths[0].write_bytes(b"12")
    paths[1].write_bytes(b"")
    reloaded.check()
    assert counted() == (1, 0, 0)


def test_what_cannot_be_used_is_said_once_and_the_old_stays(reloaded, paths, counted, caplog):
    with caplog.at_level(logging.INFO):
        paths[0].write_bytes(b"x")
        reloaded.check()
        reloaded.check()
        assert (reloaded.value, counted()) == (12, (0, 1, 1))
        paths[0].unlink()
        reloaded.check()
        reloaded.check()
        assert (reloaded.value, counted()) == (12, (0, 2, 1))
        paths[0].write_bytes(b"1" * ((1 << 20) + 1))
        reloaded.check()
        assert (reloaded.value, counted()) == (12, (0, 3, 1))
    whys = [record.why for record in caplog.records]
    assert whys[0] == "not a number"
    assert whys[1].endswith("No such file or directory")
    assert "more than 1048576 bytes" in whys[2]
    assert len(whys) == 3


@pytest.mark.parametrize("then", [b"1", b"7"])
def test_it_recovers_by_the_old_content_and_by_new(reloaded, paths, counted, then):
    paths[0].write_bytes(b"x")
    reloaded.check()
    paths[0].write_bytes(then)
    reloaded.check()
    assert reloaded.value == int(then + b"2")
    assert counted() == (int(then != b"1"), 1, 0)


def test_at_start_it_is_an_error_that_names_the_files(paths, metrics, tmp_path):
    with pytest.raises(StartError, match=r"numbers, .*none: cannot read .*none: No such file"):
        Reloaded("numbers", [tmp_path / "none"], number, metrics)
    paths[0].write_bytes(b"x")
    with pytest.raises(StartError, match=r"numbers, .*a, .*b: not a number"):
        Reloaded("numbers", paths, number, metrics)


async def test_a_watch_sees_changes_and_ends_only_by_a_fault_of_the_program(reloaded, paths):
    watch = asyncio.create_task(reloaded.watch(0.001))
    paths[0].write_bytes(b"5")
    while reloaded.value != 52:
        assert not watch.done()
        await asyncio.sleep(0.001)
    reloaded._parse = lambda contents: 1 / 0
    paths[0].write_bytes(b"6")
    with pytest.raises(ZeroDivisionError):
        await watch
