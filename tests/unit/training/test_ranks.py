"""What ranks share out; what they do together needs processes, and is tested in tests/integration."""

from __future__ import annotations

import pytest
import torch

from training.ranks import World, own_rank, under_torchrun


@pytest.mark.parametrize("size", [1, 3, 9])
def test_every_restart_belongs_to_one_rank(size):
    shares = [World(rank, size).share(7) for rank in range(size)]
    assert sorted(index for share in shares for index in share) == list(range(7))
    assert max(map(len, shares)) - min(map(len, shares)) <= 1


def test_a_world_of_one_is_left_alone():
    def fails():
        raise OSError("disk")

    world = World()
    assert world.together(lambda: 3) == 3
    assert world.gather({2: "x"}) == {2: "x"}
    with pytest.raises(OSError, match="disk"):
        world.together(fails)


def test_more_ranks_than_gpus_are_refused(monkeypatch):
    taken = []
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "set_device", taken.append)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "3")
    for rank in range(2):
        monkeypatch.setenv("LOCAL_RANK", str(rank))
        World(rank, 3).take_device()
    assert taken == [0, 1]
    monkeypatch.setenv("LOCAL_RANK", "2")
    with pytest.raises(ValueError, match=r"3 ranks on a machine with 2 GPUs: use --nproc-per-node 2"):
        World(2, 3).take_device()


def test_torchrun_is_told_from_its_environment(monkeypatch):
    monkeypatch.delenv("TORCHELASTIC_RUN_ID", raising=False)
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", "1")
    assert not under_torchrun()
    assert own_rank() == 0
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "x")
    assert under_torchrun()
    assert own_rank() == 1
