"""Runs one after the other, or a few at a time in processes of their own, with the time that is left."""

from __future__ import annotations

import fcntl
import multiprocessing
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch

from training.paper.order import Order
from training.paper.render import acc, duration
from training.paper.runs import carry_out, finished

# Read by the numerical libraries when they are first imported, in a new process.
_THREADS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "NUMBA_NUM_THREADS")

Say = Callable[[str], None]


class LostProcess(ArithmeticError):
    """A process that carried out runs is gone."""


class BusyError(ValueError):
    """Another command works on the same table."""


def carry_out_all(orders: Sequence[Order], n_jobs: int, say: Say) -> list[str]:
    """Carry out the orders that have no result yet.

    Parameters
    ----------
    n_jobs
        Processes; this one does the work if it is 1. Each gets its share of the cores as threads.

    Returns
    -------
    list of str
        What went wrong, a line for each run that failed. A run that diverged has not failed.

    Raises
    ------
    ValueError
        If a result is there of other hyper-parameters, before anything was run.
    LostProcess
        If one of the processes was killed, for want of memory perhaps.
    """
    results = {order: finished(order) for order in orders}
    outlook = Outlook(n_jobs)
    for order, known in results.items():
        if known is not None:
            outlook.learn(order, known["seconds"])
    todo = [order for order, known in results.items() if known is None]
    say(f"{len(orders)} runs, {len(orders) - len(todo)} of them there already")
    failures: list[str] = []

    def settle(order: Order, outcome: Callable[[], dict[str, Any]]) -> None:
        try:
            document = outcome()
        except BrokenProcessPool as error:
            raise LostProcess(
                "a process was killed, for want of memory perhaps: the same command goes on; try fewer --jobs"
            ) from error
        except Exception as error:
            failures.append(f"{order.job.name}: {type(error).__name__}: {error}")
            say(f"failed: {failures[-1]}")
            todo.remove(order)
            return
        todo.remove(order)
        outlook.learn(order, document["seconds"] + document.get("scoring_seconds", 0))
        say(
            f"{len(orders) - len(todo)}/{len(orders)} {order.job.name}: ACC {acc([document], 'test')}, "
            f"{duration(document['seconds'])}; {outlook.tell(todo)}"
        )

    if n_jobs == 1:
        for order in list(todo):
            settle(order, lambda order=order: carry_out(order, _said_of(order, say)))  # type: ignore[misc]
    elif todo:
        with _pool(n_jobs) as pool:
            running: dict[Future[dict[str, Any]], Order] = {
                pool.submit(_carry_out_aside, order): order for order in todo
            }
            while running:
                done, _ = wait(running, return_when=FIRST_COMPLETED)
                for future in done:
                    settle(running.pop(future), future.result)
    return failures


class Outlook:
    """How long what is left will take, from what similar runs took."""

    def __init__(self, n_jobs: int) -> None:
        self._n_jobs = n_jobs
        self._seconds: dict[tuple[str, str], list[float]] = {}

    def learn(self, order: Order, seconds: float) -> None:
        """Take the time of a run."""
        self._seconds.setdefault((order.dataset, order.method), []).append(seconds)

    def seconds(self, left: Sequence[Order]) -> float | None:
        """Time for the runs that are left; ``None`` if nothing is known.

        A run takes what its method took on the same data, or else on other data, or else the mean of all.
        """
        if not self._seconds:
            return None
        everything = float(np.mean([np.mean(times) for times in self._seconds.values()]))
        total = 0.0
        for order in left:
            own = self._seconds.get((order.dataset, order.method)) or [
                s for (_, method), times in self._seconds.items() if method == order.method for s in times
            ]
            total += float(np.mean(own)) if own else everything
        return total / min(self._n_jobs, max(1, len(left)))

    def tell(self, left: Sequence[Order]) -> str:
        """The same for a person."""
        seconds = self.seconds(left)
        return f"about {duration(seconds)} left" if left and seconds is not None else "none left"


@contextmanager
def only_one(folder: Path) -> Iterator[None]:
    """Hold a table's folder for this process; the operating system lets go when it ends, however it ends.

    Raises
    ------
    BusyError
        If another process holds it.
    """
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise BusyError(
                f"another nvisa-train paper works on {folder}: wait for it, or use --output"
            ) from error
        yield
    finally:
        os.close(descriptor)


@contextmanager
def _pool(n_jobs: int) -> Iterator[ProcessPoolExecutor]:
    threads = max(1, (os.cpu_count() or 1) // n_jobs)
    before = {name: os.environ.get(name) for name in _THREADS}
    os.environ.update(dict.fromkeys(_THREADS, str(threads)))
    pool = ProcessPoolExecutor(
        n_jobs,
        multiprocessing.get_context("spawn"),
        initializer=_begin_process,
        initargs=(os.getpid(), threads),
    )
    try:
        yield pool
    except BaseException:
        # A run on its way is repeated or gone on with by the next command; nobody waits for it now.
        for process in list((pool._processes or {}).values()):
            process.terminate()
        pool.shutdown(cancel_futures=True)
        raise
    finally:
        for name, value in before.items():
            os.environ.pop(name, None) if value is None else os.environ.update({name: value})
    pool.shutdown()


def _begin_process(parent: int, threads: int) -> None:
    torch.set_num_threads(threads)
    # Ctrl-C reaches all processes of a terminal; the one that was called ends the others.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with, args=(parent,), daemon=True).start()


def _end_with(parent: int) -> None:
    """End this process when the command that started it is gone, killed perhaps."""
    while os.getppid() == parent:
        time.sleep(0.5)
    os._exit(1)


def _carry_out_aside(order: Order) -> dict[str, Any]:
    return carry_out(order, _said_of(order, lambda message: print(message, file=sys.stderr, flush=True)))


def _said_of(order: Order, say: Say) -> Say:
    return lambda message: say(f"{order.job.name}: {message}")
