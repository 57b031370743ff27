"""Restarts spread over processes that torchrun started: rank r of N trains restarts r, r + N, ...

Ranks meet only before the training and after it. A rank that fails in between ends, whereupon torchrun ends
the others; a rank that is done waits for the others without a time limit, asking torchrun's store now and
then, so that signals reach it. What they tell each other is pickled, but never written anywhere.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from datetime import timedelta
from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:  # torch takes seconds to import, which --help should not
    from torch.distributed import Store

T = TypeVar("T")
EXCHANGE_TIMEOUT = timedelta(minutes=10)
POLL_SECONDS = 0.1
# How long a rank that knows of an error stays, for rank 0 to say it: torchrun ends all when one has gone.
LAST_WORDS_SECONDS = 1.0


class RankError(RuntimeError):
    """The other ranks cannot be reached, or one of them failed."""


class World:
    """The processes of one fit; by default this one alone.

    Attributes
    ----------
    rank, size
        Which of how many processes this is. Rank 0 speaks, and writes what is not a restart's own.
    """

    def __init__(self, rank: int = 0, size: int = 1, store: Store | None = None) -> None:
        self.rank, self.size = rank, size
        self._store = store
        self._meetings = 0

    def share(self, n_restarts: int) -> range:
        """Indices of the restarts that this rank trains."""
        return range(self.rank, n_restarts, self.size)

    def take_device(self) -> None:
        """Make the GPU of this rank's number on its machine the one that ``cuda`` means.

        Raises
        ------
        ValueError
            If the machine has fewer GPUs than ranks.
        """
        import torch

        if self.size == 1 or not torch.cuda.is_available():
            return
        local, there = int(os.environ["LOCAL_RANK"]), torch.cuda.device_count()
        if local >= there:
            raise ValueError(
                f"{os.environ['LOCAL_WORLD_SIZE']} ranks on a machine with {there} GPUs: "
                f"use --nproc-per-node {there}, or --device cpu"
            )
        torch.cuda.set_device(local)

    def together(self, action: Callable[[], T]) -> T:
        """Do something on every rank, and go on only if it went well on all.

        Raises
        ------
        Exception
            What went wrong, on rank 0.
        SystemExit
            On the others, with status 2, after rank 0 has had time to say it.
        """
        result: T | None = None
        error: Exception | None = None
        try:
            result = action()
        except Exception as raised:
            if self.size == 1:
                raise
            error = raised
        said = self.gather({self.rank: str(error)} if error is not None else {})
        if not said:
            return result  # type: ignore[return-value]
        if self.rank > 0:
            time.sleep(LAST_WORDS_SECONDS)
            raise SystemExit(2)
        raise error or ValueError("; ".join(f"rank {rank}: {said[rank]}" for rank in sorted(said)))

    def gather(self, own: Mapping[int, T]) -> dict[int, T]:
        """All ranks' entries, on every rank; waits for all to have come here.

        Raises
        ------
        RankError
            If another rank has gone.
        """
        if self._store is None:
            return dict(own)
        from torch import distributed

        self._meet(self._store)
        parts: list[Any] = [None] * self.size
        with _reachable():
            distributed.all_gather_object(parts, dict(own))
        return {key: value for part in parts for key, value in part.items()}

    def _meet(self, store: Store) -> None:
        self._meetings += 1
        keys = [f"nvisa/{self._meetings}/{rank}" for rank in range(self.size)]
        with _reachable():
            store.set(keys[self.rank], "here")
            while not store.check(keys):
                time.sleep(POLL_SECONDS)


ALONE = World()


@contextmanager
def _reachable() -> Iterator[None]:
    try:
        yield
    except RuntimeError as error:  # gloo's, and the store's, torch.distributed.DistError
        raise RankError(f"the other ranks cannot be reached: {error}") from error


def under_torchrun() -> bool:
    """Whether torchrun started this process, among others."""
    return "TORCHELASTIC_RUN_ID" in os.environ and int(os.environ.get("WORLD_SIZE", "1")) > 1


def own_rank() -> int:
    """Rank of this process; 0 outside torchrun."""
    return int(os.environ["RANK"]) if under_torchrun() else 0


@contextmanager
def joined() -> Iterator[World]:
    """The world that torchrun put this process into, or a world of its own.

    Raises
    ------
    RankError
        If the other ranks do not come within ten minutes.
    """
    if not under_torchrun():
        yield World()
        return
    from torch import distributed

    with _reachable():
        store, rank, size = next(distributed.rendezvous("env://", timeout=EXCHANGE_TIMEOUT))
        distributed.init_process_group(
            "gloo", store=store, rank=rank, world_size=size, timeout=EXCHANGE_TIMEOUT
        )
    try:
        yield World(rank, size, store)
    finally:
        distributed.destroy_process_group()
