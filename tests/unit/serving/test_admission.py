import asyncio

import numpy as np
import pytest

from serving.admission import Admission
from serving.call_queue import Call, CallQueue
from serving.limits import BatchLimits
from serving.run_times import RunTimes


class Waiting:
    """A queue and who may join it; a full batch of 10 rows takes a second, of which two run at once."""

    def __init__(self, **limits):
        self.queue = CallQueue()
        self.run_times = RunTimes()
        limits = {"max_queue_rows": 80, "max_batch_rows": 10, "threads": 2} | limits
        self.admission = Admission(self.queue, self.run_times, BatchLimits(**limits))

    def put(self, *sizes):
        for n in sizes:
            future = asyncio.get_running_loop().create_future()
            self.queue.put(Call(np.zeros((n, 2)), future, None, arrived_ns=0))


async def test_an_empty_queue_has_room_for_anything():
    waiting = Waiting(max_queue_seconds=0.001)
    waiting.run_times.add(10, 1.0)
    assert waiting.admission.has_room(80)
    assert waiting.admission.has_room_for_the_line(80)
    assert not waiting.admission.is_full()


async def test_rows_are_bounded_and_those_of_the_line_by_less():
    waiting = Waiting()
    waiting.put(50)
    assert waiting.admission.has_room(30)
    assert not waiting.admission.has_room(31)
    assert waiting.admission.has_room_for_the_line(20)
    assert not waiting.admission.has_room_for_the_line(21)


async def test_the_wait_is_foreseen_once_a_full_batch_has_shown_what_it_takes():
    waiting = Waiting()
    waiting.put(40)
    waiting.run_times.add(1, 1.0)
    assert waiting.admission.wait_seconds() == 0
    waiting.run_times.add(10, 1.0)
    assert waiting.admission.wait_seconds() == pytest.approx(2.0)


async def test_a_call_that_would_wait_too_long_has_no_room():
    waiting = Waiting(max_queue_seconds=2.0)
    waiting.run_times.add(10, 1.0)
    waiting.put(*[4] * 9)
    assert waiting.admission.has_room(30)
    assert not waiting.admission.has_room_for_the_line(1)
    waiting.put(4)
    assert waiting.admission.has_room(1)
    waiting.put(1)
    assert not waiting.admission.has_room(1)
    assert waiting.admission.is_full()
    error = waiting.admission.overload("this call has 1")
    assert str(error) == (
        "the queue is full: the 41 rows in it take 2 s, and a call may wait 2 s; this call has 1"
    )
    assert error.retry_after == pytest.approx(2.05)


async def test_of_a_slow_model_a_full_batch_for_each_thread_may_wait():
    waiting = Waiting(max_queue_seconds=2.0)
    waiting.run_times.add(10, 100.0)
    waiting.put(*[1] * 19)
    assert waiting.admission.has_room(5)
    assert not waiting.admission.is_full()
    waiting.put(1)
    assert not waiting.admission.has_room(5)
    assert waiting.admission.is_full()


async def test_of_a_slow_model_a_few_calls_may_wait_whatever_their_size():
    waiting = Waiting(max_queue_seconds=2.0)
    waiting.run_times.add(10, 100.0)
    waiting.put(*[9] * 7)
    assert waiting.admission.has_room(9)
    waiting.put(9)
    assert not waiting.admission.has_room(1)


async def test_it_is_full_when_a_call_like_those_that_wait_does_not_fit():
    waiting = Waiting(max_queue_rows=6400)
    waiting.put(*[90] * 70)
    assert not waiting.admission.is_full()
    waiting.put(10, 10)  # room for 80
    assert waiting.admission.is_full()


async def test_one_large_call_does_not_make_it_full_for_small_ones():
    waiting = Waiting(max_queue_rows=6400)
    waiting.put(6300)
    assert not waiting.admission.is_full()
    waiting.put(1)
    assert waiting.admission.is_full()
