import asyncio
import threading
import time

import numpy as np
import pytest

from serving.batcher import Batcher
from serving.engine import Assignments, EngineError, FakeEngine
from serving.errors import DeadlinePassed, InvalidInput, NotReady, Overloaded
from serving.limits import BatchLimits
from serving.manifest import InputSpec
from serving.metrics import Metrics
from tests.servers import GatedEngine

SPEC = InputSpec(dtype="float32", shape=(2,), meaning="features")


@pytest.fixture
async def start(manifest):
    """Start batchers on an engine; they must end with the test, and without calls left behind."""
    batchers = []
    metrics = Metrics()

    def start(engine, **limits):
        model = metrics.for_model(manifest, low_confidence=0.5, drift_window_rows=1000)
        batcher = Batcher(engine, SPEC, BatchLimits(**limits), model)
        batcher.registry = metrics.registry
        batchers.append((batcher, engine))
        return batcher

    yield start
    for batcher, engine in batchers:
        if isinstance(engine, GatedEngine):
            engine.gate.set()
        await batcher.close()


def rows(n, first=0):
    """``n`` rows; the fake engine's cluster of row i is ``first + i`` modulo 10."""
    x = np.zeros((n, 2), np.float32)
    x[:, 0] = np.arange(first, first + n)
    return x


def sample(batcher, name, **labels):
    return batcher.registry.get_sample_value(name, {"model": "toy", "version": "1", **labels})


async def entered(engine, times=1):
    """Wait until the engine has been called ``times`` more times."""
    for _ in range(times):
        while not engine.entered.acquire(blocking=False):
            await asyncio.sleep(0.001)


async def waiting(batcher, n):
    """Wait until ``n`` rows wait."""
    while sample(batcher, "nvisa_queue_rows") != n:
        await asyncio.sleep(0.001)


async def test_a_lone_call_runs_at_once_and_alone(start):
    engine = FakeEngine()
    answer = await start(engine).assign(rows(3, first=5))
    assert answer.clusters.tolist() == [5, 6, 7]
    np.testing.assert_allclose(answer.confidences, 0.9)
    assert answer.probabilities.shape == (3, 10)
    assert answer.queue_ns > 0
    assert answer.inference_ns > 0
    assert engine.batch_sizes == [3]


async def test_calls_that_come_while_the_model_is_busy_share_one_run(start):
    engine = GatedEngine()
    batcher = start(engine)
    first = asyncio.create_task(batcher.assign(rows(1)))
    await entered(engine)
    others = [asyncio.create_task(batcher.assign(rows(2, first=i))) for i in range(10)]
    await waiting(batcher, 20)
    engine.gate.set()
    await first
    for i, answer in enumerate(await asyncio.gather(*others)):
        assert answer.clusters.tolist() == [i % 10, (i + 1) % 10]
    assert engine.batch_sizes == [1, 20]


async def test_a_batch_is_bounded_in_rows_not_in_calls(start):
    engine = GatedEngine()
    batcher = start(engine, max_batch_rows=4)
    calls = [asyncio.create_task(batcher.assign(rows(3, first=i))) for i in range(3)]
    await entered(engine)
    engine.gate.set()
    answers = await asyncio.gather(*calls)
    assert [answer.clusters[0] for answer in answers] == [0, 1, 2]
    assert engine.batch_sizes == [3, 3, 3]


async def test_a_call_larger_than_a_batch_is_split_and_put_together_in_order(start):
    engine = FakeEngine()
    batcher = start(engine, max_batch_rows=4, threads=3)
    answer = await batcher.assign(rows(11))
    assert answer.clusters.tolist() == [i % 10 for i in range(11)]
    assert answer.probabilities.shape == (11, 10)
    assert sorted(engine.batch_sizes) == [3, 4, 4]


async def test_parts_that_return_in_another_order_are_put_together_in_the_rows_order(start):
    class SlowStart(GatedEngine):
        """Holds back the batch with row 0 until the others are done."""

        def assign(self, x):
            if x[0, 0] == 0:
                return super().assign(x)
            answer = FakeEngine.assign(self, x)
            if len(self.batch_sizes) == 2:
                self.gate.set()
            return answer

    engine = SlowStart()
    answer = await start(engine, max_batch_rows=4, threads=2).assign(rows(12))
    assert answer.clusters.tolist() == [i % 10 for i in range(12)]


async def test_a_full_batch_is_prepared_while_the_model_runs_but_no_other(start):
    engine = GatedEngine()
    batcher = start(engine, max_batch_rows=4)
    calls = [asyncio.create_task(batcher.assign(rows(4))) for _ in range(3)]
    await entered(engine)
    await waiting(batcher, 4)  # one runs, one is prepared, one waits
    engine.gate.set()
    await asyncio.gather(*calls)

    engine.gate.clear()
    calls = [asyncio.create_task(batcher.assign(rows(4)))]
    await entered(engine, 3)
    calls += [asyncio.create_task(batcher.assign(rows(3)))]
    await waiting(batcher, 3)  # not full: it stays open for company
    engine.gate.set()
    await asyncio.gather(*calls)


async def test_a_full_batch_is_prepared_for_each_thread(start):
    engine = GatedEngine()
    batcher = start(engine, max_batch_rows=4, threads=2)
    calls = [asyncio.create_task(batcher.assign(rows(4, first=i))) for i in range(7)]
    await entered(engine, 2)
    await waiting(batcher, 12)  # two run, two are prepared, three wait
    engine.gate.set()
    assert [answer.clusters[0] for answer in await asyncio.gather(*calls)] == list(range(7))


async def test_batches_are_padded_to_the_next_bucket_and_the_padding_is_counted(start):
    class Recorder(FakeEngine):
        padding = None

        def assign(self, x):
            self.padding = x[3:]
            return super().assign(x)

    engine = Recorder()
    batcher = start(engine, max_batch_rows=16, buckets=(1, 4, 16))
    assert len((await batcher.assign(rows(1))).clusters) == 1
    assert (await batcher.assign(rows(3, first=4))).clusters.tolist() == [4, 5, 6]
    assert engine.batch_sizes == [1, 4]
    assert not engine.padding.any()
    assert sample(batcher, "nvisa_padding_rows_total") == 1
    assert sample(batcher, "nvisa_rows_total") == 4
    assert sum(sample(batcher, "nvisa_cluster_rows_total", cluster=str(k)) for k in range(10)) == 4


async def test_a_full_queue_refuses_with_a_time_to_come_back(start):
    engine = GatedEngine()
    batcher = start(engine, max_queue_rows=10)
    running = asyncio.create_task(batcher.assign(rows(1)))
    await entered(engine)
    queued = asyncio.create_task(batcher.assign(rows(8)))
    await waiting(batcher, 8)
    with pytest.raises(Overloaded, match="8 rows wait of at most 10; this call has 3") as caught:
        await batcher.assign(rows(3))
    assert caught.value.retry_after > 0
    assert sample(batcher, "nvisa_dropped_rows_total", reason="overload") == 3
    fits = asyncio.create_task(batcher.assign(rows(2)))
    await waiting(batcher, 10)
    engine.gate.set()
    assert [len(a.clusters) for a in await asyncio.gather(running, queued, fits)] == [1, 8, 2]


async def test_a_call_that_would_wait_too_long_is_refused_and_one_that_may_wait_is_not(start):
    engine = GatedEngine(is_open=True)
    batcher = start(engine, max_batch_rows=4, max_queue_seconds=1e-9)
    await batcher.assign(rows(4))  # now it is known what a full batch takes
    await entered(engine)
    engine.gate.clear()
    running = asyncio.create_task(batcher.assign(rows(1)))
    await entered(engine)
    submitted = asyncio.create_task(batcher.assign(rows(4)))
    for _ in range(5):  # into the queue, and out of it to the thread
        await asyncio.sleep(0)
    assert sample(batcher, "nvisa_queue_rows") == 0
    queued = [asyncio.create_task(batcher.assign(rows(1))) for _ in range(8)]
    await waiting(batcher, 8)  # so few calls may wait for any time
    with pytest.raises(Overloaded, match=r"the 8 rows in it take .* s, and a call may wait 1e-09 s"):
        await batcher.assign(rows(1))
    in_line = asyncio.create_task(batcher.assign(rows(2), wait_for_room=True))
    await asyncio.sleep(0)
    assert sample(batcher, "nvisa_queue_rows") == 8
    engine.gate.set()
    answers = await asyncio.gather(running, submitted, *queued, in_line)
    assert [len(answer.clusters) for answer in answers] == [1, 4, *[1] * 8, 2]


async def test_calls_are_refused_unread_while_no_room_is_left_for_such_as_wait(start):
    engine = GatedEngine()
    batcher = start(engine, max_queue_rows=9)
    assert batcher.overload() is None
    running = asyncio.create_task(batcher.assign(rows(1)))
    await entered(engine)
    queued = [asyncio.create_task(batcher.assign(rows(3))) for _ in range(3)]
    await waiting(batcher, 9)
    assert "9 rows wait of at most 9; this call was not read" in str(batcher.overload())
    assert sample(batcher, "nvisa_dropped_rows_total", reason="overload") == 3
    engine.gate.set()
    await asyncio.gather(running, *queued)
    assert batcher.overload() is None


@pytest.mark.parametrize("wait_for_room", [False, True])
async def test_a_call_larger_than_the_queue_is_refused_at_once(start, wait_for_room):
    engine = FakeEngine()
    batcher = start(engine, max_queue_rows=10, max_batch_rows=8)
    with pytest.raises(InvalidInput, match="the call has 11 rows, the server takes at most 10; split it"):
        await batcher.assign(rows(11), wait_for_room=wait_for_room)
    assert len((await batcher.assign(rows(10))).clusters) == 10
    assert engine.batch_sizes == [8, 2]


async def test_callers_that_wait_for_room_are_let_in_first_in_first_out(start):
    engine = GatedEngine()
    batcher = start(engine, max_queue_rows=8, max_batch_rows=4)
    order = []

    async def call(n, first):
        answer = await batcher.assign(rows(n, first), wait_for_room=True)
        order.append(first)
        return answer.clusters[0] == first % 10

    calls = [asyncio.create_task(call(n, first)) for first, n in enumerate([4, 4, 6, 1, 1, 7, 1, 8, 2])]
    await entered(engine)
    await waiting(batcher, 7)  # one runs, one is prepared, two wait here, the others in the line
    engine.gate.set()
    assert all(await asyncio.gather(*calls))
    assert order == list(range(9))


async def test_beside_callers_that_wait_for_room_others_find_some(start):
    engine = GatedEngine()
    batcher = start(engine, max_queue_rows=80, max_batch_rows=1)
    calls = [asyncio.create_task(batcher.assign(rows(10), wait_for_room=True)) for _ in range(20)]
    await entered(engine)
    await waiting(batcher, 68)
    calls.append(asyncio.create_task(batcher.assign(rows(12))))
    await waiting(batcher, 80)
    with pytest.raises(Overloaded):
        await batcher.assign(rows(1))
    engine.gate.set()
    assert sum(len(answer.clusters) for answer in await asyncio.gather(*calls)) == 212


async def test_a_caller_that_leaves_the_line_is_counted_and_lets_the_next_one_in(start):
    engine = GatedEngine()
    batcher = start(engine, max_queue_rows=8)
    running = asyncio.create_task(batcher.assign(rows(1)))
    await entered(engine)
    queued = asyncio.create_task(batcher.assign(rows(5)))
    await waiting(batcher, 5)
    leaves = asyncio.create_task(batcher.assign(rows(6), wait_for_room=True))
    stays = asyncio.create_task(batcher.assign(rows(2), wait_for_room=True))
    await asyncio.sleep(0.01)
    assert sample(batcher, "nvisa_queue_rows") == 5
    leaves.cancel()
    await waiting(batcher, 7)
    assert sample(batcher, "nvisa_dropped_rows_total", reason="cancelled") == 6
    engine.gate.set()
    assert [len(a.clusters) for a in await asyncio.gather(running, queued, stays)] == [1, 5, 2]


async def test_a_caller_whose_deadline_passes_in_the_line_is_told_and_never_computed(start):
    engine = GatedEngine()
    batcher = start(engine, max_queue_rows=8)
    running = asyncio.create_task(batcher.assign(rows(1)))
    await entered(engine)
    queued = asyncio.create_task(batcher.assign(rows(8)))
    await waiting(batcher, 8)
    soon = time.perf_counter_ns() + 1
    late = asyncio.create_task(batcher.assign(rows(3), deadline_ns=soon, wait_for_room=True))
    await asyncio.sleep(0)
    engine.gate.set()
    with pytest.raises(DeadlinePassed):
        await late
    await asyncio.gather(running, queued)
    assert engine.batch_sizes == [1, 8]
    assert sample(batcher, "nvisa_dropped_rows_total", reason="expired") == 3


async def test_close_answers_those_that_wait_for_room(start):
    engine = GatedEngine()
    batcher = start(engine, max_queue_rows=8, max_batch_rows=4)
    calls = [asyncio.create_task(batcher.assign(rows(8), wait_for_room=True)) for _ in range(3)]
    await entered(engine)
    closing = asyncio.create_task(batcher.close())
    await asyncio.sleep(0)
    with pytest.raises(NotReady):
        await batcher.assign(rows(1), wait_for_room=True)
    engine.gate.set()
    assert [len(answer.clusters) for answer in await asyncio.gather(*calls)] == [8, 8, 8]
    await closing


async def test_if_its_task_dies_those_in_the_line_are_told(start):
    engine = GatedEngine()
    batcher = start(engine, max_queue_rows=4)
    running = asyncio.create_task(batcher.assign(rows(1)))
    await entered(engine)
    queued = asyncio.create_task(batcher.assign(rows(4)))
    await waiting(batcher, 4)
    in_line = asyncio.create_task(batcher.assign(rows(4), wait_for_room=True))
    await asyncio.sleep(0)
    batcher.task.cancel()
    for call in (queued, in_line):
        with pytest.raises(NotReady):
            await call
    running.cancel()


async def test_a_cancelled_call_never_reaches_the_model_and_frees_its_place(start):
    engine = GatedEngine()
    batcher = start(engine, max_queue_rows=10)
    running = asyncio.create_task(batcher.assign(rows(1)))
    await entered(engine)
    gone = asyncio.create_task(batcher.assign(rows(10)))
    await waiting(batcher, 10)
    gone.cancel()
    await waiting(batcher, 0)
    stays = asyncio.create_task(batcher.assign(rows(10)))
    await waiting(batcher, 10)
    engine.gate.set()
    await asyncio.gather(running, stays)
    assert engine.batch_sizes == [1, 10]
    assert gone.cancelled()
    assert sample(batcher, "nvisa_dropped_rows_total", reason="cancelled") == 10


async def test_a_call_that_leaves_while_it_runs_does_not_disturb_its_neighbours(start):
    engine = GatedEngine()
    batcher = start(engine)
    first = asyncio.create_task(batcher.assign(rows(1)))
    await entered(engine)
    leaves, stays = (asyncio.create_task(batcher.assign(rows(2, first=i))) for i in (3, 7))
    await waiting(batcher, 4)
    engine.gate.set()
    await first
    await entered(engine)
    leaves.cancel()
    assert (await stays).clusters.tolist() == [7, 8]


async def test_an_expired_call_is_answered_but_never_computed(start):
    engine = GatedEngine()
    batcher = start(engine)
    running = asyncio.create_task(batcher.assign(rows(1)))
    await entered(engine)
    late = asyncio.create_task(batcher.assign(rows(2), deadline_ns=time.perf_counter_ns() + 1))
    in_time = asyncio.create_task(batcher.assign(rows(3), deadline_ns=time.perf_counter_ns() + 10**12))
    await waiting(batcher, 5)
    engine.gate.set()
    with pytest.raises(DeadlinePassed):
        await late
    assert len((await in_time).clusters) == 3
    await running
    assert engine.batch_sizes == [1, 3]
    assert sample(batcher, "nvisa_dropped_rows_total", reason="expired") == 2


async def test_an_engine_that_raises_fails_its_own_calls_and_no_others(start):
    class Fragile(FakeEngine):
        def assign(self, x):
            if x[0, 0] == 1:
                raise EngineError("broken")
            return super().assign(x)

    batcher = start(Fragile(), max_batch_rows=4)
    with pytest.raises(EngineError, match="broken"):
        await batcher.assign(rows(2, first=1))
    assert (await batcher.assign(rows(1, first=2))).clusters.tolist() == [2]
    assert sample(batcher, "nvisa_failed_executions_total") == 1
    assert sample(batcher, "nvisa_executions_total") == 1


async def test_a_split_call_fails_as_a_whole_and_leaves_nothing_in_the_queue(start):
    class FailsFirst(GatedEngine):
        def assign(self, x):
            super().assign(x)
            raise EngineError("broken")

    engine = FailsFirst()
    batcher = start(engine, max_batch_rows=2)
    call = asyncio.create_task(batcher.assign(rows(100)))
    await entered(engine)
    engine.gate.set()
    with pytest.raises(EngineError):
        await call
    await waiting(batcher, 0)
    await batcher.close()
    assert len(engine.batch_sizes) < 5


async def test_an_engine_that_answers_the_wrong_number_of_rows_is_found_out(start):
    class Short(FakeEngine):
        def assign(self, x):
            return super().assign(x[:-1])

    with pytest.raises(EngineError, match="2 answers for 3 rows"):
        await start(Short()).assign(rows(3))


async def test_a_cluster_that_cannot_be_is_found_out_and_the_batcher_lives(start):
    class Off(FakeEngine):
        cluster = -1

        def assign(self, x):
            answer = super().assign(x)
            return Assignments(answer.probabilities, np.full_like(answer.clusters, self.cluster))

    engine = Off()
    batcher = start(engine)
    with pytest.raises(EngineError, match="cluster -1"):
        await batcher.assign(rows(2))
    engine.cluster = 10
    with pytest.raises(IndexError):
        await batcher.assign(rows(2))
    engine.cluster = 9
    assert (await batcher.assign(rows(2))).clusters.tolist() == [9, 9]


async def test_a_row_without_finite_probabilities_fails_only_its_own_call(start):
    class Overflows(GatedEngine):
        def assign(self, x):
            answer = super().assign(x)
            probabilities = answer.probabilities.copy()
            probabilities[x[:, 0] >= 1e6] = np.nan
            return Assignments(probabilities, answer.clusters)

    engine = Overflows()
    batcher = start(engine)
    first = asyncio.create_task(batcher.assign(rows(1)))
    await entered(engine)
    huge = rows(3)
    huge[1, 0] = 1e6
    bad, good = (asyncio.create_task(batcher.assign(x)) for x in (huge, rows(2, first=4)))
    await waiting(batcher, 5)
    engine.gate.set()
    await first
    with pytest.raises(InvalidInput, match=r"row 1: .* too large"):
        await bad
    assert (await good).clusters.tolist() == [4, 5]
    assert engine.batch_sizes == [1, 5]


async def test_a_delay_lets_a_batch_fill_and_a_full_one_does_not_wait_for_it(start):
    engine = FakeEngine()
    batcher = start(engine, max_batch_rows=4, max_queue_delay=1000.0)
    early = asyncio.create_task(batcher.assign(rows(3)))
    await waiting(batcher, 3)
    await asyncio.gather(early, batcher.assign(rows(1)))
    assert engine.batch_sizes == [4]


async def test_a_delay_ends(start):
    engine = FakeEngine()
    await start(engine, max_queue_delay=0.002).assign(rows(3))
    assert engine.batch_sizes == [3]


class Placed(FakeEngine):
    """Remembers which batches were run on the event loop, and takes its time."""

    def __init__(self, seconds=0.0):
        super().__init__()
        self.seconds = seconds
        self.inline = []

    def assign(self, x):
        self.inline.append(threading.current_thread() is threading.main_thread())
        time.sleep(self.seconds)
        return super().assign(x)


async def test_runs_that_have_shown_to_be_short_are_made_on_the_event_loop(start):
    engine = Placed()
    batcher = start(engine, inline_seconds=10.0)
    for i in range(4):
        assert (await batcher.assign(rows(3, first=i))).clusters.tolist() == [i, i + 1, i + 2]
    assert (await batcher.assign(rows(9))).clusters.tolist() == list(range(9))  # how long may that take?
    assert (await batcher.assign(rows(8))).clusters.tolist() == list(range(8))
    assert engine.inline == [False, True, True, True, False, True]
    assert sample(batcher, "nvisa_executions_total") == 6
    assert sample(batcher, "nvisa_rows_total") == 4 * 3 + 9 + 8


@pytest.mark.parametrize(("seconds", "limit"), [(0.02, 0.01), (0.0, 0.0)])
async def test_runs_that_take_long_never_hold_up_the_event_loop_and_with_zero_none_does(
    start, seconds, limit
):
    engine = Placed(seconds)
    batcher = start(engine, inline_seconds=limit)
    for _ in range(10):
        await batcher.assign(rows(2))
    assert engine.inline == [False] * 10


async def test_a_run_on_the_event_loop_that_fails_fails_its_own_calls_and_no_others(start):
    class Fragile(FakeEngine):
        def assign(self, x):
            if x[0, 0] == 1:
                raise EngineError("broken")
            return super().assign(x)

    batcher = start(Fragile(), inline_seconds=10.0)
    await batcher.assign(rows(2))
    with pytest.raises(EngineError, match="broken"):
        await batcher.assign(rows(2, first=1))
    assert (await batcher.assign(rows(2, first=2))).clusters.tolist() == [2, 3]
    assert sample(batcher, "nvisa_failed_executions_total") == 1


async def test_while_more_wait_also_short_runs_are_made_in_threads(start):
    engine = Placed()
    batcher = start(engine, inline_seconds=10.0, max_batch_rows=2)
    await batcher.assign(rows(2))
    assert (await batcher.assign(rows(40))).clusters.tolist() == [i % 10 for i in range(40)]
    assert len(engine.inline) == 21
    assert sum(engine.inline) <= 1  # the last one, if any
    await batcher.assign(rows(2))
    assert engine.inline[-1]


async def test_calls_that_are_read_one_after_the_other_share_one_run(start):
    engine = FakeEngine()
    batcher = start(engine)

    async def arrive():
        calls = []
        for i in range(6):
            calls.append(asyncio.create_task(batcher.assign(rows(1, first=i))))
            for _ in range(4):
                await asyncio.sleep(0)
        return [answer.clusters[0] for answer in await asyncio.gather(*calls)]

    assert await arrive() == list(range(6))
    assert engine.batch_sizes == [6]


async def test_close_answers_what_is_in_and_refuses_what_comes(start):
    engine = GatedEngine()
    batcher = start(engine)
    calls = [asyncio.create_task(batcher.assign(rows(2)))]
    await entered(engine)
    calls += [asyncio.create_task(batcher.assign(rows(3)))]
    await waiting(batcher, 3)
    closing = asyncio.create_task(batcher.close())
    await asyncio.sleep(0)
    with pytest.raises(NotReady, match="shutting down"):
        await batcher.assign(rows(1))
    engine.gate.set()
    assert [len(answer.clusters) for answer in await asyncio.gather(*calls)] == [2, 3]
    await closing


async def test_if_its_task_dies_those_that_wait_are_told_and_so_is_who_watches(start):
    engine = GatedEngine()
    batcher = start(engine)
    running = asyncio.create_task(batcher.assign(rows(1)))
    await entered(engine)
    queued = asyncio.create_task(batcher.assign(rows(1)))
    await waiting(batcher, 1)
    batcher.task.cancel()
    with pytest.raises(NotReady):
        await queued
    assert batcher.task.done()
    with pytest.raises(NotReady):
        await batcher.assign(rows(1))
    running.cancel()


async def test_every_row_keeps_its_own_novelty_through_padding_splitting_and_mixing(start):
    rng = np.random.default_rng(0)
    engine = FakeEngine(novelty=True)
    batcher = start(engine, max_batch_rows=16, threads=3, buckets=(4, 16))

    async def caller():
        n, first = int(rng.integers(1, 60)), int(rng.integers(0, 1000))
        answer = await batcher.assign(rows(n, first))
        expected = np.arange(first, first + n)
        np.testing.assert_allclose(answer.novelty, expected % 101 / 100, rtol=1e-6)
        np.testing.assert_array_equal(answer.clusters, expected % 10)
        return n

    total = sum(await asyncio.gather(*(caller() for _ in range(100))))
    assert sum(engine.batch_sizes) > total, "some batches were padded"
    assert sample(batcher, "nvisa_padding_rows_total") == sum(engine.batch_sizes) - total


async def test_without_novelty_there_is_none(start):
    assert (await start(FakeEngine(), max_batch_rows=4).assign(rows(9))).novelty is None


async def test_an_engine_that_says_the_wrong_number_of_novelties_is_found_out(start):
    class Short(FakeEngine):
        def assign(self, x):
            answer = super().assign(x)
            return Assignments(answer.probabilities, answer.clusters, answer.novelty[:-1])

    with pytest.raises(EngineError, match="2 values of novelty for 3 rows"):
        await start(Short(novelty=True)).assign(rows(3))


async def test_a_row_without_finite_probabilities_leaves_the_others_their_novelty(start):
    class Overflows(GatedEngine):
        def assign(self, x):
            answer = super().assign(x)
            probabilities = answer.probabilities.copy()
            probabilities[x[:, 0] >= 1e6] = np.nan
            return Assignments(probabilities, answer.clusters, answer.novelty)

    engine = Overflows(novelty=True)
    batcher = start(engine)
    first = asyncio.create_task(batcher.assign(rows(1)))
    await entered(engine)
    huge = rows(3)
    huge[1, 0] = 1e6
    bad, good = (asyncio.create_task(batcher.assign(x)) for x in (huge, rows(2, first=4)))
    await waiting(batcher, 5)
    engine.gate.set()
    await first
    with pytest.raises(InvalidInput, match=r"row 1"):
        await bad
    np.testing.assert_allclose((await good).novelty, [0.04, 0.05], rtol=1e-6)


async def test_every_row_is_answered_rightly_when_many_callers_mix(start):
    rng = np.random.default_rng(0)
    batcher = start(FakeEngine(), max_batch_rows=16, threads=3, buckets=(4, 16))

    async def caller(i):
        n, first = int(rng.integers(1, 60)), int(rng.integers(0, 1000))
        if i % 7 == 0:
            task = asyncio.create_task(batcher.assign(rows(n, first)))
            await asyncio.sleep(0)
            task.cancel()
            return
        answer = await batcher.assign(rows(n, first))
        np.testing.assert_array_equal(answer.clusters, np.arange(first, first + n) % 10)

    await asyncio.gather(*(caller(i) for i in range(300)))
    assert sample(batcher, "nvisa_queue_rows") == 0
