"""Bundles that come, change and go while others are served: control and repository, without a port."""

from __future__ import annotations

import asyncio
import gc
import logging
import shutil
import weakref
from contextlib import asynccontextmanager

import pytest

from serving.bundle import GRAPH_FILE, MANIFEST_FILE
from serving.engine import FakeEngine
from serving.errors import InvalidInput, NotReady, Refused, UnknownModel
from serving.labels import LABELS_FILE
from serving.models import ModelState
from tests.bundles import make_bundle
from tests.servers import GatedEngine
from tests.unit.serving.served import ROWS, Served, expected, numbered, serving


@pytest.fixture
def path(tmp_path):
    make_bundle(tmp_path / "models")
    return tmp_path / "models"


async def test_a_new_version_becomes_the_default_beside_the_old_one(path):
    async with serving(path) as served:
        make_bundle(path, version=2)
        await served.look(1)
        assert (await served.ask())[0] == 1, "it has been seen once: it may still be written to"
        await served.look(1)
        assert await served.ask() == (2, expected(2))
        assert await served.ask(1) == (1, expected(1))
        assert served.value("nvisa_model_loads_total", model="toy", version=2, outcome="success") == 1
        assert served.value("nvisa_model_state", model="toy", version=2, state="ready") == 1
        await served.look(3)
        assert served.value("nvisa_model_loads_total", model="toy", version=2, outcome="success") == 1


async def test_a_new_model_is_found_and_one_that_went_is_unknown_and_shows_nothing(path):
    async with serving(path) as served:
        make_bundle(path, name="more", version=7)
        await served.look()
        assert (await served.ask(name="more"))[0] == 7
        make_bundle(path, version=2)
        await served.look()
        await served.ask(2)
        shutil.rmtree(path / "toy" / "2")
        await served.look(1)
        assert (await served.ask())[0] == 2, "it may be on its way to be replaced"
        await served.look(1)
        assert (await served.ask())[0] == 1
        with pytest.raises(UnknownModel, match="no version 2; it has 1"):
            served.repository.get("toy", 2)
        assert served.of_version(2) == []
        assert served.of_version(1) != []
        shutil.rmtree(path / "toy")
        await served.look()
        with pytest.raises(UnknownModel, match="no model 'toy'; this server has more"):
            served.repository.get("toy")
        assert served.value("nvisa_labels_stale", model="toy") is None


async def test_what_is_being_copied_is_not_tried_and_then_refused_once(path, tmp_path, caplog):
    whole = make_bundle(tmp_path / "elsewhere", version=2)
    half = path / "toy" / "2"
    half.mkdir()
    async with serving_after_start(path, half, whole) as served:
        with caplog.at_level(logging.ERROR):
            await served.look(1)
            (half / GRAPH_FILE).write_bytes((whole / GRAPH_FILE).read_bytes()[:100])
            await served.look(1)
            assert caplog.records == [], "it differs from the look before"
            await served.look(3)
        assert [record.message for record in caplog.records] == ["bundle refused"]
        assert (await served.ask())[0] == 1
        assert served.repository.find("toy", 2).state is ModelState.FAILED
        with pytest.raises(NotReady, match=r"manifest\.json"):
            served.repository.get("toy", 2)
        assert served.value("nvisa_model_loads_total", model="toy", version=2, outcome="failure") == 1
        assert served.value("nvisa_model_state", model="toy", version=2, state="failed") == 1
        shutil.copy(whole / MANIFEST_FILE, half)
        shutil.copy(whole / GRAPH_FILE, half)
        await served.look()
        assert await served.ask() == (2, expected(2))


@asynccontextmanager
async def serving_after_start(path, half, whole):
    """Serve version 1; ``half``, a folder of version 2, appears when it serves."""
    half.rmdir()
    async with serving(path) as served:
        half.mkdir()
        yield served


async def test_a_failed_version_that_goes_is_forgotten(path):
    async with serving(path) as served:
        (path / "toy" / "2").mkdir()
        await served.look()
        assert served.of_version(2) != []
        (path / "toy" / "2").rmdir()
        await served.look()
        assert served.of_version(2) == []
        assert [model.version for model in served.repository.models()] == [1]


async def test_damage_to_what_serves_disturbs_nothing_and_is_said_once(path, caplog):
    graph = path / "toy" / "1" / GRAPH_FILE
    content = graph.read_bytes()
    async with serving(path) as served:
        for damage in (lambda: graph.write_bytes(content[:50]), graph.unlink):
            damage()
            caplog.clear()
            with caplog.at_level(logging.ERROR):
                await served.look(4)
            assert [record.message for record in caplog.records] == ["bundle refused"]
            assert await served.ask() == (1, expected(1))
            assert served.value("nvisa_model_stale", model="toy", version=1) == 1
        assert served.value("nvisa_model_loads_total", model="toy", version=1, outcome="failure") == 2
        graph.write_bytes(content)
        await served.look()
        assert served.value("nvisa_model_stale", model="toy", version=1) == 0
        assert await served.ask() == (1, expected(1))


async def test_a_bundle_replaced_in_place_is_switched_to(path, tmp_path):
    async with serving(path) as served:
        await served.ask()
        other = make_bundle(tmp_path / "elsewhere", n_clusters=4)
        shutil.rmtree(path / "toy" / "1")
        shutil.copytree(other, path / "toy" / "1")
        await served.look()
        assert served.repository.get("toy").manifest.n_clusters == 4
        # Its counters are another model's: they begin again, and none is shown twice.
        rows = [s.value for s in served.of_version(1) if s.name == "nvisa_rows_total"]
        assert rows == [0]
        assert len({(s.name, str(s.labels)) for s in served.of_version(1)}) == len(served.of_version(1))


async def test_a_new_default_that_takes_other_rows_is_said(tmp_path, caplog):
    make_bundle(tmp_path, shape=(2,), dtype="float32", columns=("a", "b"))
    async with serving(tmp_path) as served:
        for version, columns in ((2, ("a", "b")), (3, ("b", "a"))):
            make_bundle(tmp_path, version=version, shape=(2,), dtype="float32", columns=columns)
            await served.look()
    (warning,) = [r for r in caplog.records if r.message == "the new default version takes other rows"]
    assert (warning.model, warning.version) == ("toy", 3)
    assert "columns in another order" in warning.difference


async def test_calls_in_flight_are_answered_by_the_version_that_they_began_with(path):
    gated = GatedEngine(is_open=True)

    def build(bundle, *_):
        return gated if bundle.manifest.version == 1 else numbered(bundle)

    async with serving(path, build, inference_threads=1, max_queue_rows=10) as served:
        gated.gate.clear()
        while gated.entered.acquire(blocking=False):
            pass
        old = served.repository.get("toy")
        running = asyncio.create_task(old.batcher.assign(ROWS))
        assert await asyncio.to_thread(gated.entered.acquire, timeout=30)
        queued = [asyncio.create_task(old.batcher.assign(ROWS)) for _ in range(2)]
        # A message of a stream that waits for room in the queue is in flight as well.
        streamed = asyncio.create_task(old.batcher.assign(ROWS, wait_for_room=True))
        await asyncio.sleep(0)
        make_bundle(path, version=2)
        await served.look()
        shutil.rmtree(path / "toy" / "1")
        await served.look(1)
        unloading = asyncio.create_task(served.look(1))
        while served.repository.version(("toy", 1)) is not None:
            await asyncio.sleep(0.001)
        assert await served.ask() == (2, expected(2)), "others are answered meanwhile"
        assert not unloading.done()
        gated.gate.set()
        answers = await asyncio.gather(running, *queued, streamed)
        await unloading
        correct = FakeEngine(10).assign(ROWS).clusters.tolist()
        assert [answer.clusters.tolist() for answer in answers] == [correct] * 4
        assert not served.repository.died.done()


async def test_a_caller_that_still_waits_for_room_when_the_queue_is_empty_is_let_in(path):
    gated = GatedEngine(is_open=True)
    settings = {"model_control": "explicit", "inference_threads": 1, "max_queue_rows": 5}
    async with serving(path, lambda *_: gated, **settings) as served:
        gated.gate.clear()
        while gated.entered.acquire(blocking=False):
            pass
        batcher = served.repository.get("toy").batcher
        calls = [asyncio.create_task(batcher.assign(ROWS))]
        assert await asyncio.to_thread(gated.entered.acquire, timeout=30)
        calls += [asyncio.create_task(batcher.assign(ROWS, wait_for_room=True)) for _ in range(2)]
        await asyncio.sleep(0.001)
        assert served.value("nvisa_queue_rows", model="toy", version=1) == 5
        gated.gate.set()
        while served.value("nvisa_queue_rows", model="toy", version=1):
            await asyncio.sleep(0)
        await served.control.unload("toy")
        assert [len(answer.clusters) for answer in await asyncio.gather(*calls)] == [5, 5, 5]


async def test_an_unload_does_not_wait_for_a_model_that_hangs_longer_than_the_grace(path, caplog):
    gated = GatedEngine(is_open=True)
    async with serving(path, lambda *_: gated, model_control="explicit", grace_seconds=0.2) as served:
        gated.gate.clear()
        while gated.entered.acquire(blocking=False):
            pass
        running = asyncio.create_task(served.ask())
        assert await asyncio.to_thread(gated.entered.acquire, timeout=30)
        await served.control.unload("toy")
        assert "calls in flight were cut off" in caplog.text
        gated.gate.set()
        running.cancel()
        with pytest.raises(asyncio.CancelledError):
            await running


async def test_an_engine_is_freed_when_its_version_is_unloaded_not_when_the_garbage_is_collected(path):
    built = []

    def build(bundle, *_):
        engine = numbered(bundle)
        built.append(weakref.ref(engine))
        return engine

    async with serving(path, build, model_control="explicit") as served:
        await served.ask()
        gc.collect()
        gc.disable()
        try:
            for _ in range(3):
                await served.control.unload("toy")
                await asyncio.to_thread(lambda: None)
                assert [engine() for engine in built] == [None] * len(built)
                await served.control.load("toy")
                assert await served.ask() == (1, expected(1))
        finally:
            gc.enable()
    assert len(built) == 4


@pytest.mark.parametrize("away", ["gone", "empty"])
async def test_a_repository_that_is_away_changes_nothing(path, away, caplog):
    async with serving(path) as served:
        hidden = path.with_name("hidden")
        path.rename(hidden)
        if away == "empty":
            path.mkdir()
        with caplog.at_level(logging.ERROR):
            await served.look(3)
        assert [record.message for record in caplog.records] == [
            "the model repository cannot be read; what is loaded goes on"
        ]
        assert served.value("nvisa_repository_unreadable") == 1
        assert await served.ask() == (1, expected(1))
        if away == "empty":
            path.rmdir()
        hidden.rename(path)
        await served.look()
        assert served.value("nvisa_repository_unreadable") == 0
        assert served.value("nvisa_model_loads_total", model="toy", version=1, outcome="success") == 1


async def test_whatever_a_bundle_makes_the_loader_raise_the_server_goes_on(path):
    def build(bundle, *_):
        if bundle.manifest.version == 2:
            raise MemoryError("too large")
        return numbered(bundle)

    async with serving(path, build) as served:
        make_bundle(path, version=2)
        await served.look()
        with pytest.raises(NotReady, match="MemoryError: too large"):
            served.repository.get("toy", 2)
        assert (await served.ask())[0] == 1


async def test_told_to_stop_it_does_not_wait_for_a_bundle_that_loads(path):
    loading = GatedEngine()

    def build(bundle, *_):
        return loading if bundle.manifest.version == 2 else numbered(bundle)

    async with serving(path, build) as served:
        make_bundle(path, version=2)
        await served.look(1)
        look = asyncio.create_task(served.look(1))
        assert await asyncio.to_thread(loading.entered.acquire, timeout=30)
        assert served.repository.find("toy", 2).state is ModelState.LOADING
        with pytest.raises(NotReady, match="version 2 is loading"):
            served.repository.get("toy", 2)
        assert await served.ask() == (1, expected(1))
        served.control.close()
        with pytest.raises(NotReady, match="stopping"):
            await look
        with pytest.raises(NotReady, match="stopping"):
            await served.look()
    loading.gate.set()


async def test_labels_say_which_version_answers_and_moving_one_back_is_a_rollback(path):
    for version in (2, 3):
        make_bundle(path, version=version)
    (path / "toy" / LABELS_FILE).write_text("stable: 1")
    async with serving(path, model_control="explicit") as served:
        assert (await served.ask())[0] == 1
        served.label("stable: 2\ncanary: {version: 3, share: 0.5}")
        await served.look(1)
        assert (await served.ask())[0] == 1
        await served.look(1)
        by_key = {key: (await served.ask(key=key))[0] for key in map(str, range(50))}
        assert set(by_key.values()) == {2, 3}
        assert by_key == {key: (await served.ask(key=key))[0] for key in by_key}
        assert (await served.ask(label="stable"))[0] == 2
        assert (await served.ask(label="canary"))[0] == 3
        assert served.repository.find("toy").version == 2
        assert served.repository.labels_of(served.repository.find("toy", 3)) == ["canary"]
        share = {"stable": (2, 0.5), "canary": (3, 0.5)}
        for label, (version, value) in share.items():
            assert served.value("nvisa_label_share", model="toy", version=version, label=label) == value
        with pytest.raises(UnknownModel, match="'toy' has no label 'shadow'; it has stable, canary"):
            served.repository.get("toy", label="shadow")
        with pytest.raises(InvalidInput, match="set one of them"):
            served.repository.get("toy", 2, "stable")
        with pytest.raises(UnknownModel, match="no model 'nope'"):
            served.repository.get("nope", label="stable")
        served.label("stable: 1")
        await served.look()
        assert {(await served.ask(key=key))[0] for key in by_key} == {1}
        assert served.value("nvisa_label_share", model="toy", version=3, label="canary") is None
        (path / "toy" / LABELS_FILE).unlink()
        await served.look()
        assert (await served.ask())[0] == 3, "the largest again"
        with pytest.raises(UnknownModel, match="it has none"):
            served.repository.get("toy", label="stable")


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("stable: 2\nlatest: 3", "latest: Extra inputs"),
        ("stable: 9", "stable is version 9, which is not loaded"),
        ("stable: 2\nshadow: {version: 9}", "shadow is version 9, which is not loaded"),
        ("stable: 2\ncanary: {version: 3, share: 0.5}", "canary is version 3, which takes other rows"),
    ],
)
async def test_labels_that_cannot_be_used_leave_the_old_ones_and_are_said_once(path, text, says, caplog):
    make_bundle(path, version=2)
    make_bundle(path, version=3, shape=(4, 4))
    (path / "toy" / LABELS_FILE).write_text("stable: 1")
    async with serving(path) as served:
        served.label(text)
        with caplog.at_level(logging.ERROR):
            await served.look(4)
        (record,) = caplog.records
        assert says in record.why
        assert str(path / "toy" / LABELS_FILE) in record.why
        assert (await served.ask())[0] == 1
        assert served.value("nvisa_labels_stale", model="toy") == 1
        served.label("stable: 1")
        await served.look()
        assert served.value("nvisa_labels_stale", model="toy") == 0


async def test_labels_that_came_before_their_version_are_taken_when_it_is_loaded(path):
    async with serving(path) as served:
        served.label("stable: 1\ncanary: {version: 2, share: 0.5}")
        await served.look()
        assert served.value("nvisa_labels_stale", model="toy") == 1
        make_bundle(path, version=2)
        await served.look()
        assert served.value("nvisa_labels_stale", model="toy") == 0
        assert (await served.ask(label="canary"))[0] == 2


async def test_a_version_that_a_label_points_at_is_kept_when_its_files_go(path):
    make_bundle(path, version=2)
    (path / "toy" / LABELS_FILE).write_text("stable: 1")
    async with serving(path) as served:
        moved = path.with_name("1")
        (path / "toy" / "1").rename(moved)
        await served.look(4)
        assert await served.ask() == (1, expected(1))
        assert served.value("nvisa_model_stale", model="toy", version=1) == 1
        moved.rename(path / "toy" / "1")
        await served.look()
        assert served.value("nvisa_model_stale", model="toy", version=1) == 0
        shutil.rmtree(path / "toy" / "1")
        await served.look()
        served.label("stable: 2")
        await served.look()
        assert [model.version for model in served.repository.models()] == [2]
        make_bundle(path, name="more")
        await served.look()
        shutil.rmtree(path / "toy")  # with the labels
        await served.look()
        assert served.repository.names() == ["more"]


async def test_a_labelled_version_may_not_begin_to_take_other_rows(path, tmp_path):
    (path / "toy" / LABELS_FILE).write_text("stable: 1")
    async with serving(path) as served:
        shutil.rmtree(path / "toy" / "1")
        shutil.copytree(make_bundle(tmp_path / "other", shape=(4, 4)), path / "toy" / "1")
        await served.look()
        assert await served.ask() == (1, expected(1))
        assert served.value("nvisa_model_stale", model="toy", version=1) == 1


async def test_nor_may_it_begin_to_name_columns_which_the_other_labels_were_not_compared_with(tmp_path):
    values = {"shape": (2,), "dtype": "float32"}
    path = make_bundle(tmp_path / "models", **values)
    make_bundle(tmp_path / "models", version=2, columns=("b", "a"), **values)
    (path.parent / LABELS_FILE).write_text("stable: 1\ncanary: {version: 2, share: 0.5}")
    async with serving(tmp_path / "models") as served:
        shutil.rmtree(path)
        shutil.copytree(make_bundle(tmp_path / "other", columns=("a", "b"), **values), path)
        await served.look()
        assert served.repository.get("toy", 1).manifest.input.columns == ()
        assert served.value("nvisa_model_stale", model="toy", version=1) == 1


@pytest.mark.parametrize("control", ["none", "poll", "explicit"])
def test_labels_that_cannot_be_used_stop_the_start(path, control):
    (path / "toy" / LABELS_FILE).write_text("stable: 7")
    served = Served(path, model_control=control)
    with pytest.raises(ValueError, match=r"labels.yaml: stable is version 7, which is not loaded"):
        served.repository.load()


async def test_in_a_partial_start_nobody_is_sent_to_a_version_that_no_label_chose(path):
    make_bundle(path, version=2)
    (path / "toy" / LABELS_FILE).write_text("stable: 7")
    async with serving(path, allow_partial=True) as served:
        with pytest.raises(NotReady, match="stable is version 7, which is not loaded"):
            served.repository.get("toy")
        assert served.repository.default("toy") is None
        assert (await served.ask(2))[0] == 2
        served.label("stable: 1")
        await served.look()
        assert (await served.ask())[0] == 1


async def test_by_call_a_model_is_loaded_as_the_repository_has_it_and_unloaded(path):
    async with serving(path, model_control="explicit") as served:
        make_bundle(path, version=2)
        make_bundle(path, name="more")
        await served.look(3)
        assert [str(model) for model in served.repository.models()] == ["toy/1"], "nobody has asked"
        assert [(m.name, m.version, m.state) for m in await served.control.index()] == [
            ("more", 1, None),
            ("toy", 1, ModelState.READY),
            ("toy", 2, None),
        ]
        await served.control.load("toy")
        assert (await served.ask())[0] == 2
        shutil.rmtree(path / "toy" / "1")
        await served.control.load("toy")
        await served.control.load("toy")
        assert [str(model) for model in served.repository.models()] == ["toy/2"]
        assert served.value("nvisa_model_loads_total", model="toy", version=2, outcome="success") == 1
        await served.control.unload("toy")
        assert served.repository.models() == []
        with pytest.raises(UnknownModel, match="no model 'toy'; this server has no model"):
            served.repository.get("toy")
        with pytest.raises(UnknownModel, match="no model 'toy' is loaded; there is none"):
            await served.control.unload("toy")
        await served.control.load("more")
        assert (await served.ask(name="more"))[0] == 1


async def test_by_call_what_cannot_be_loaded_is_said_and_the_rest_is_loaded(path):
    async with serving(path, model_control="explicit") as served:
        make_bundle(path, version=2)
        whole = make_bundle(path, version=3)
        manifest = (whole / MANIFEST_FILE).read_text()
        (whole / MANIFEST_FILE).write_text("{}")
        for _ in range(2):
            with pytest.raises(Refused, match=r"3/manifest.json"):
                await served.control.load("toy")
        assert (await served.ask())[0] == 2
        (whole / MANIFEST_FILE).write_text(manifest)
        await served.control.load("toy")
        assert (await served.ask())[0] == 3
        for name in ("nope", "../toy", ""):
            with pytest.raises(UnknownModel, match="in the repository; it has toy"):
                await served.control.load(name)
        served.label("stable: 1")
        await served.control.load("toy")
        shutil.rmtree(path / "toy" / "1")
        with pytest.raises(Refused, match="toy/1 is gone from the repository, and kept: a label"):
            await served.control.load("toy")
        assert (await served.ask())[0] == 1


@pytest.mark.parametrize("control", ["none", "poll"])
async def test_calls_change_nothing_where_they_may_not(path, control):
    async with serving(path, model_control=control) as served:
        for change in (served.control.load, served.control.unload):
            with pytest.raises(Refused, match=f"--model-control {control}"):
                await change("toy")
        assert (await served.ask())[0] == 1
        assert len(await served.control.index()) == 1


async def test_a_caller_that_leaves_does_not_stop_the_load(path):
    loading = GatedEngine()

    def build(bundle, *_):
        return loading if bundle.manifest.version == 2 else numbered(bundle)

    async with serving(path, build, model_control="explicit") as served:
        make_bundle(path, version=2)
        call = asyncio.create_task(served.control.load("toy"))
        assert await asyncio.to_thread(loading.entered.acquire, timeout=30)
        call.cancel()
        with pytest.raises(asyncio.CancelledError):
            await call
        loading.gate.set()
        await served.control.finished()
        assert served.repository.find("toy").version == 2
