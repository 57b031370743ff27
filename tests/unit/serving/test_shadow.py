import asyncio
import logging
import threading

import numpy as np
import pytest
from scipy.optimize import linear_sum_assignment

from serving.engine import Assignments, EngineError, FakeEngine
from serving.labels import LABELS_FILE
from serving.shadow import MOST_PAIRS, Agreement
from tests.bundles import make_bundle, random_rows
from tests.servers import GatedEngine
from tests.unit.serving.served import serving

SHADOW = {"model": "toy", "version": 2}
ORDER = np.array([3, 0, 2, 9, 1, 4, 8, 6, 7, 5])


@pytest.fixture
def path(tmp_path):
    for version in (1, 2):
        make_bundle(tmp_path, version=version)
    (tmp_path / "toy" / LABELS_FILE).write_text("stable: 1\nshadow: {version: 2}")
    return tmp_path


class Renumbered(FakeEngine):
    """Finds the clusters of a fake engine and calls most of them otherwise."""

    def assign(self, x):
        found = super().assign(x)
        return Assignments(found.probabilities[:, np.argsort(ORDER)], ORDER[found.clusters])


def engines(shadow):
    return lambda bundle, *_: shadow if bundle.manifest.version == 2 else FakeEngine(10)


async def until(condition):
    async with asyncio.timeout(30):
        while not condition():
            await asyncio.sleep(0.001)


def counted(served):
    """Rows compared, disagreeing, dropped because busy, and because it failed."""
    names = ("nvisa_shadow_rows_total", "nvisa_shadow_disagreeing_rows_total")
    dropped = "nvisa_shadow_dropped_rows_total"
    return (
        *(served.value(name, **SHADOW) for name in names),
        *(served.value(dropped, **SHADOW, reason=why) for why in ("busy", "failed")),
    )


async def assign(served, x, version=0):
    answer = await served.repository.get("toy", version).batcher.assign(x)
    np.testing.assert_array_equal(answer.clusters, FakeEngine(10).assign(x).clusters)


async def test_rows_are_counted_by_whether_the_shadow_agrees(path):
    class Other(FakeEngine):
        """Sends the even clusters of FakeEngine elsewhere, and some of the odd ones, too."""

        def assign(self, x):
            clusters = super().assign(x).clusters
            moved = np.where(clusters % 2 == 0, (clusters + 2) % 10, clusters)
            moved[x[:, 0, 0] > 200] = 9
            probabilities = np.full((len(x), 10), 0.05, np.float32)
            probabilities[np.arange(len(x)), moved] = 0.55
            return Assignments(probabilities, moved)

    async with serving(path, engines(Other(10))) as served:
        x = random_rows(300, seed=3)
        for part in (x[:1], x[1:50], x[50:]):
            await assign(served, part)
            await until(lambda: served.value("nvisa_queue_rows", **SHADOW) == 0)
            await until(lambda part=part: counted(served)[0] >= len(part))
        await until(lambda: counted(served)[0] == 300)
        stable, shadow = (engine(10).assign(x).clusters for engine in (FakeEngine, Other))
        assert counted(served) == (300, np.count_nonzero(stable != shadow), 0, 0)
        pairs = np.bincount(stable * 10 + shadow, minlength=100).reshape(10, 10)
        most = pairs[linear_sum_assignment(pairs, maximize=True)].sum()
        assert served.value("nvisa_shadow_disagreement", **SHADOW) == pytest.approx(1 - most / 300)
        assert 0 < most < 300
        assert served.value("nvisa_rows_total", **SHADOW) == 300


async def test_a_shadow_that_only_numbers_otherwise_disagrees_by_id_and_not_after_matching(path):
    async with serving(path, engines(Renumbered(10))) as served:
        assert np.isnan(served.value("nvisa_shadow_disagreement", **SHADOW))
        await assign(served, random_rows(40))
        await until(lambda: counted(served)[0] == 40)
        assert counted(served)[1] > 30
        assert served.value("nvisa_shadow_disagreement", **SHADOW) == 0


async def test_a_busy_shadow_delays_nobody_and_what_it_misses_is_counted(path):
    shadow = GatedEngine(is_open=True)
    async with serving(path, engines(shadow), max_batch_rows=16, inference_threads=1) as served:
        shadow.gate.clear()
        for rows in (40, 3, 9, 4, 1):  # one larger than the room is taken while none wait
            await assign(served, random_rows(rows), version=1)
        assert counted(served) == (0, 0, 17, 0)
        shadow.gate.set()
        await until(lambda: counted(served)[0] == 40)
        await assign(served, random_rows(5))
        await until(lambda: counted(served)[0] == 45)
        assert counted(served) == (45, 0, 17, 0)


async def test_several_calls_that_wait_are_compared_in_one_run(path):
    shadow = GatedEngine(is_open=True)
    async with serving(path, engines(shadow), inference_threads=1) as served:
        while shadow.entered.acquire(blocking=False):
            pass
        shadow.gate.clear()
        await assign(served, random_rows(2))
        assert await asyncio.to_thread(shadow.entered.acquire, timeout=30)
        for rows in (3, 4):
            await assign(served, random_rows(rows, seed=rows))
        shadow.gate.set()
        await until(lambda: counted(served)[0] == 9)
        assert counted(served) == (9, 0, 0, 0)
        assert shadow.batch_sizes[-2:] == [2, 7]


async def test_what_came_while_the_shadow_ran_still_counts_as_waiting(path):
    class Stepped(FakeEngine):
        steps, entered = threading.Semaphore(2), threading.Semaphore(0)  # two runs are the warm-up's

        def assign(self, x):
            self.entered.release()
            assert self.steps.acquire(timeout=30)
            return super().assign(x)

    shadow = Stepped(10)
    async with serving(path, engines(shadow), inference_threads=1, max_batch_rows=10) as served:
        assert shadow.entered.acquire(timeout=0)
        assert shadow.entered.acquire(timeout=0)
        await assign(served, random_rows(2))
        assert await asyncio.to_thread(shadow.entered.acquire, timeout=30)
        for rows in (3, 4):
            await assign(served, random_rows(rows))
        shadow.steps.release()
        assert await asyncio.to_thread(shadow.entered.acquire, timeout=30)
        await assign(served, random_rows(4))  # beside the 7 in the second run
        assert counted(served) == (2, 0, 4, 0)
        shadow.steps.release()
        await until(lambda: counted(served)[0] == 9)


async def test_a_shadow_that_fails_fails_nobody_and_says_so_once(path, caplog):
    class Failing(FakeEngine):
        def assign(self, x):
            if (x == 255).all():
                raise EngineError("told to fail")
            return super().assign(x)

    async with serving(path, engines(Failing(10))) as served:
        bad = np.full((3, 8, 8), 255, np.uint8)
        with caplog.at_level(logging.WARNING):
            for n in (1, 2):
                await assign(served, bad)
                await until(lambda n=n: counted(served)[3] == 3 * n)
        assert [record.message for record in caplog.records] == ["the shadow version fails"]
        await assign(served, random_rows(4))
        await until(lambda: counted(served)[0] == 4)
        assert counted(served) == (4, 0, 0, 6)


async def test_calls_of_other_versions_and_refused_ones_are_not_compared(path):
    make_bundle(path, version=3)
    async with serving(path, engines(FakeEngine(10)), max_queue_rows=5) as served:
        await assign(served, random_rows(3), version=2)
        await assign(served, random_rows(3), version=3)
        with pytest.raises(Exception, match="deadline"):
            await served.repository.get("toy").batcher.assign(random_rows(2), deadline_ns=1)
        await assign(served, random_rows(4))
        await until(lambda: counted(served)[0] == 4)
        assert counted(served) == (4, 0, 0, 0)


async def test_a_shadow_that_is_withdrawn_shows_nothing_more_and_stable_goes_on(path):
    async with serving(path, engines(FakeEngine(10)), model_control="explicit") as served:
        await assign(served, random_rows(4))
        await until(lambda: counted(served)[0] == 4)
        served.label("stable: 1")
        await served.look()
        assert counted(served) == (None,) * 4
        assert served.value("nvisa_shadow_disagreement", **SHADOW) is None
        await assign(served, random_rows(4))
        served.label("stable: 2\nshadow: {version: 1}")
        await served.look()
        await assign(served, random_rows(4))
        await until(lambda: served.value("nvisa_shadow_rows_total", model="toy", version=1) == 4)
        await served.control.unload("toy")
        assert served.of_version(1) == served.of_version(2) == []
        assert not [task for task in asyncio.all_tasks() if task.get_name() == "shadow"]


async def test_the_window_begins_anew_with_a_new_shadow_but_not_when_another_version_comes(path):
    async with serving(path, engines(Renumbered(10))) as served:
        await assign(served, random_rows(4))
        await until(lambda: counted(served)[0] == 4)
        make_bundle(path, version=3)
        await served.look()
        assert served.value("nvisa_shadow_disagreement", **SHADOW) == 0
        assert counted(served)[0] == 4
        served.label("stable: 1\nshadow: {version: 3}")
        await served.look()
        assert np.isnan(served.value("nvisa_shadow_disagreement", model="toy", version=3))
        assert counted(served) == (None,) * 4


def test_the_two_may_have_different_numbers_of_clusters():
    agreement = Agreement(2, 5, window_rows=1000)
    agreement.add(np.array([0] * 6 + [1] * 4), np.array([4] * 5 + [0] + [2] * 3 + [4]))
    assert agreement.disagreement() == pytest.approx(0.2)  # 0 is 4, 1 is 2


def test_where_there_are_too_many_clusters_to_match_there_is_no_share():
    side = int(MOST_PAIRS**0.5)
    for n, known in ((side, True), (side + 1, False)):
        agreement = Agreement(n, n, window_rows=100)
        agreement.add(np.array([0, n - 1]), np.array([1, n - 1]))
        assert agreement.disagreement() == 0 if known else np.isnan(agreement.disagreement())
