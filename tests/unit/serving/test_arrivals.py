import asyncio

import pytest

from serving.arrivals import MOST_ALONE, MOST_TURNS, QUIET_TURNS, Arrivals


class Heard:
    """Arrivals on the running loop, and after how many turns of it they were told to have ceased."""

    def __init__(self):
        self.arrivals = Arrivals(asyncio.get_running_loop(), self._ceased)
        self.turn = 0
        self.ceased_at = []

    def _ceased(self):
        assert not self.arrivals.under_way
        self.ceased_at.append(self.turn)

    async def turns(self, n):
        for _ in range(n):
            await asyncio.sleep(0)
            self.turn += 1

    async def alone(self):
        """One call without company; the turns that it waited."""
        if not self.arrivals.note():
            assert not self.arrivals.under_way
            await self.turns(MOST_TURNS)
            return 0
        assert self.arrivals.under_way
        start, before = self.turn, len(self.ceased_at)
        await self.turns(MOST_TURNS)
        assert len(self.ceased_at) == before + 1
        return self.ceased_at[-1] - start


@pytest.fixture
async def heard():
    return Heard()


async def test_a_call_waits_for_a_few_turns_of_the_loop(heard):
    assert await heard.alone() == QUIET_TURNS - 1


async def test_calls_that_come_one_after_the_other_are_taken_together(heard):
    for _ in range(MOST_TURNS // QUIET_TURNS):
        heard.arrivals.note()
        await heard.turns(QUIET_TURNS - 1)
        assert heard.ceased_at == []
    await heard.turns(1)
    assert len(heard.ceased_at) == 1


async def test_no_call_waits_for_ever_while_others_come(heard):
    while not heard.ceased_at:
        heard.arrivals.note()
        await heard.turns(1)
    assert heard.turn <= MOST_TURNS + 1


async def test_after_waits_in_vain_more_and_more_calls_do_not_wait(heard):
    alone = 1
    for _ in range(8):
        assert await heard.alone() == QUIET_TURNS - 1
        for _ in range(alone):
            assert await heard.alone() == 0
        alone = min(2 * alone, MOST_ALONE)


async def test_company_makes_the_next_call_wait_again(heard):
    for _ in range(10):
        await heard.alone()
    while not heard.arrivals.note():
        pass
    assert heard.arrivals.note()
    await heard.turns(MOST_TURNS)
    assert await heard.alone() == QUIET_TURNS - 1
    assert await heard.alone() == 0
    assert await heard.alone() == QUIET_TURNS - 1
