"""Bound runs give what plain runs give. On the CPU here; tests/gpu has the same with CUDA graphs."""

from __future__ import annotations

import gc
import threading
import time
import weakref
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from serving.bound_runs import BoundRuns, Output
from serving.bundle import read_bundle
from serving.manifest import CLUSTER, INPUT_NAME, NOVELTY, PROBABILITIES
from serving.runtime import open_session
from tests.bundles import make_bundle, random_rows

OUTPUTS = [
    Output(PROBABILITIES, (10,), np.float32),
    Output(CLUSTER, (), np.int64),
    Output(NOVELTY, (), np.float32),
]


@pytest.fixture(scope="module", params=["uint8", "float32"])
def session_and_dtype(request, tmp_path_factory):
    path = make_bundle(tmp_path_factory.mktemp("bound"), dtype=request.param, novelty=True)
    return open_session(read_bundle(path).graph, "cpu", 1), request.param


@pytest.fixture
def bound(session_and_dtype):
    return bound_runs(*session_and_dtype)


def bound_runs(session, dtype, **more):
    return BoundRuns(
        session,
        "cpu",
        input_name=INPUT_NAME,
        row_shape=(8, 8),
        dtype=dtype,
        outputs=OUTPUTS,
        sizes=(1, 4, 16),
        **more,
    )


def plain(session, x):
    return session.run([output.name for output in OUTPUTS], {INPUT_NAME: x})


def test_every_size_gives_what_a_plain_run_gives_again_and_again(session_and_dtype, bound):
    session, dtype = session_and_dtype
    kept = []
    for seed in range(6):
        for size in (1, 4, 16):
            x = random_rows(size, dtype=dtype, seed=seed)
            kept.append((bound.run(x), plain(session, x)))
    for found, expected in kept:  # only now: later runs must not have written into earlier results
        for a, b in zip(found, expected, strict=True):
            np.testing.assert_array_equal(a, b)
            assert a.dtype == b.dtype


def test_other_sizes_are_run_without_buffers(session_and_dtype, bound):
    session, dtype = session_and_dtype
    x = random_rows(5, dtype=dtype)
    for a, b in zip(bound.run(x), plain(session, x), strict=True):
        np.testing.assert_array_equal(a, b)


def test_threads_do_not_mix_their_batches(session_and_dtype, bound):
    session, dtype = session_and_dtype
    batches = [random_rows(16, dtype=dtype, seed=seed) for seed in range(60)]
    with ThreadPoolExecutor(4) as threads:
        for found, x in zip(threads.map(bound.run, batches), batches, strict=True):
            np.testing.assert_array_equal(found[1], plain(session, x)[1])


class Watched:
    """A session that notes which thread runs it."""

    def __init__(self, session):
        self.session, self.threads = session, set()

    def io_binding(self):
        return self.session.io_binding()

    def run(self, *args):
        self.threads.add(threading.current_thread())
        return self.session.run(*args)

    def run_with_iobinding(self, *args):
        self.threads.add(threading.current_thread())
        return self.session.run_with_iobinding(*args)


def test_with_graphs_one_thread_runs_all_models_whoever_asks(session_and_dtype):
    session, dtype = session_and_dtype
    models = [Watched(session), Watched(session)]
    runs = [bound_runs(model, dtype, graphs=True) for model in models]
    batches = [random_rows(size, dtype=dtype, seed=size) for size in (1, 5, 16, 4) * 5]
    with ThreadPoolExecutor(4) as threads:
        for run in runs:
            for found, x in zip(threads.map(run.run, batches), batches, strict=True):
                np.testing.assert_array_equal(found[0], plain(session, x)[0])
    [thread] = models[0].threads
    assert models[1].threads == {thread}
    assert thread.name == "CUDA graphs"
    assert thread.daemon
    with pytest.raises(Exception, match="Got invalid dimensions"):
        runs[0].run(random_rows(3, (9, 9), dtype))
    # The thread waits on, and holds nothing.
    gone = [weakref.ref(thing) for thing in (*models, *runs)]
    del models, runs, run
    end = time.monotonic() + 10
    while any(thing() is not None for thing in gone):
        gc.collect()
        assert time.monotonic() < end
