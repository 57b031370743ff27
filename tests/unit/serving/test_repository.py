import hashlib
import json
import logging

import numpy as np
import pytest

from serving.bundle import GRAPH_FILE, MANIFEST_FILE, BundleError
from serving.engine import Assignments, EngineError, FakeEngine
from serving.errors import NotReady, UnknownModel
from serving.loading import onnx_engine
from serving.metrics import Metrics
from serving.models import ModelState
from serving.repository import Repository
from serving.settings import ServerSettings
from tests.bundles import make_bundle
from tests.servers import fake_engine


def repository_of(path, build_engine=fake_engine, **settings):
    values = {"device": "cpu"} | settings
    return Repository(ServerSettings(model_repository=path, **values), Metrics(), build_engine)


@pytest.fixture
async def loaded(repository):
    models = repository_of(repository)
    models.load()
    models.start()
    yield models
    for batcher in models.batchers():
        await batcher.close()


async def test_the_largest_version_answers_unless_another_is_asked_for(loaded):
    assert loaded.get("toy").manifest.version == 2
    assert loaded.get("toy", 1).manifest.version == 1


async def test_an_unknown_model_or_version_is_named_with_those_there_are(loaded):
    with pytest.raises(UnknownModel, match="no model 'tyo'; this server has features, toy"):
        loaded.get("tyo")
    with pytest.raises(UnknownModel, match="'toy' has no version 9; it has 1, 2"):
        loaded.get("toy", 9)
    with pytest.raises(UnknownModel):
        loaded.get("toy", -1)


def test_before_it_is_loaded_a_model_is_known_but_does_not_answer(repository):
    models = repository_of(repository)
    assert models.find("toy").state is ModelState.LOADING
    with pytest.raises(NotReady, match="loading"):
        models.get("toy")


def test_versions_are_numbers_not_texts(tmp_path):
    for version in (9, 10):
        make_bundle(tmp_path, version=version)
    assert repository_of(tmp_path).find("toy").version == 10


@pytest.mark.parametrize("exists", [True, False])
def test_an_empty_or_missing_repository_is_an_error_at_start(tmp_path, exists):
    path = tmp_path if exists else tmp_path / "missing"
    with pytest.raises(BundleError, match="has no bundle" if exists else "not a directory"):
        repository_of(path)


def break_hash(bundle):
    graph = bundle / GRAPH_FILE
    graph.write_bytes(graph.read_bytes() + b" ")


def break_manifest(bundle):
    (bundle / MANIFEST_FILE).write_text("{}")


def lose_graph(bundle):
    (bundle / GRAPH_FILE).unlink()


def rename(bundle):
    manifest = json.loads((bundle / MANIFEST_FILE).read_text())
    (bundle / MANIFEST_FILE).write_text(json.dumps(manifest | {"version": 7}))


@pytest.mark.parametrize(
    ("damage", "says"),
    [
        (break_hash, "SHA-256 is .* the manifest says"),
        (break_manifest, "manifest.json"),
        (lose_graph, "model.onnx"),
        (rename, "the manifest says toy/7; move the bundle"),
    ],
)
async def test_a_broken_bundle_stops_the_start_unless_part_is_allowed(tmp_path, damage, says, caplog):
    make_bundle(tmp_path)
    damage(make_bundle(tmp_path, version=2))
    with pytest.raises(BundleError, match=says):
        repository_of(tmp_path).load()

    models = repository_of(tmp_path, allow_partial=True)
    with caplog.at_level(logging.ERROR):
        models.load()
    models.start()
    assert "model left out" in caplog.text
    assert models.get("toy").manifest.version == 1
    assert models.find("toy", 2).state is ModelState.FAILED
    with pytest.raises(NotReady, match=says):
        models.get("toy", 2)
    for batcher in models.batchers():
        await batcher.close()


def test_with_nothing_left_even_a_partial_start_fails(tmp_path):
    break_hash(make_bundle(tmp_path))
    with pytest.raises(BundleError, match=r"no model could be loaded: .*SHA-256"):
        repository_of(tmp_path, allow_partial=True).load()


class NotFinite(FakeEngine):
    def assign(self, x):
        answer = super().assign(x)
        return Assignments(np.full_like(answer.probabilities, np.nan), answer.clusters)


@pytest.mark.parametrize(
    ("engine", "says"),
    [(NotFinite(10), "NaN or infinity"), (FakeEngine(9), r"\(1, 9\), the manifest has 10 clusters")],
)
def test_a_model_that_answers_nonsense_to_its_warm_up_is_refused(tmp_path, engine, says):
    make_bundle(tmp_path)
    with pytest.raises(EngineError, match=says):
        repository_of(tmp_path, lambda *_: engine).load()


@pytest.mark.parametrize("promised", [True, False])
def test_an_engine_and_a_manifest_that_do_not_agree_on_novelty_are_refused(tmp_path, promised):
    make_bundle(tmp_path, novelty=promised)
    engine = FakeEngine(10, novelty=not promised)
    with pytest.raises(EngineError, match="do not agree on novelty"):
        repository_of(tmp_path, lambda *_: engine).load()


def test_on_the_cpu_the_smallest_and_largest_batch_are_warmed(tmp_path):
    make_bundle(tmp_path)
    engine = FakeEngine(10)
    repository_of(tmp_path, lambda *_: engine, max_batch_rows=32).load()
    assert engine.batch_sizes == [1, 32]


def test_on_cuda_every_bucket_is_warmed(tmp_path):
    class Cuda(FakeEngine):
        device = "cuda"

        def prepare(self, sizes):
            assert not self.batch_sizes
            self.prepared = sizes

    make_bundle(tmp_path)
    engine = Cuda(10)
    repository_of(tmp_path, lambda *_: engine, max_batch_rows=32).load()
    assert engine.prepared == (1, 4, 16, 32)
    assert engine.batch_sizes == [1, 4, 16, 32]


def test_auto_says_when_it_takes_the_cpu(repository, caplog):
    with caplog.at_level(logging.WARNING):
        repository_of(repository, device="auto").load()
    assert "no usable CUDA" in caplog.text


def test_a_corrupt_graph_with_a_right_hash_is_refused(tmp_path):
    bundle = make_bundle(tmp_path)
    (bundle / GRAPH_FILE).write_bytes(b"not a graph")
    manifest = json.loads((bundle / MANIFEST_FILE).read_text())

    manifest["graph_sha256"] = hashlib.sha256(b"not a graph").hexdigest()
    (bundle / MANIFEST_FILE).write_text(json.dumps(manifest))
    with pytest.raises(BundleError, match="cannot load the graph"):
        repository_of(tmp_path, onnx_engine).load()
