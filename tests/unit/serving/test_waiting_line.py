import asyncio

import numpy as np
import pytest

from serving.call_queue import Call
from serving.waiting_line import WaitingLine


@pytest.fixture
async def line():
    """A line with calls of 5, 1, 3 and 2 rows, and those calls."""
    loop = asyncio.get_running_loop()
    calls = [Call(np.zeros((n, 2)), loop.create_future(), None, arrived_ns=0) for n in (5, 1, 3, 2)]
    line = WaitingLine()
    for call in calls:
        line.put(call)
    return line, calls


async def test_calls_are_let_in_in_their_order_while_there_is_room(line):
    line, calls = line
    room, entered = [8], []

    def enter(call):
        room[0] -= len(call.x)
        entered.append(call)

    line.let_in(lambda rows: rows <= room[0], enter)
    assert entered == calls[:2], "the fourth, which would fit, does not pass the third"
    room[0] = 100
    line.let_in(lambda rows: rows <= room[0], enter)
    assert entered == calls
    assert len(line) == 0


async def test_a_call_that_leaves_is_taken_out_wherever_it_stands(line):
    line, calls = line
    assert line.remove(calls[2]) == 3
    assert line.remove(calls[2]) == 0
    assert line.clear() == [calls[0], calls[1], calls[3]]
    assert len(line) == 0
