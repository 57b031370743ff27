import pytest

from serving.limits import batch_limits, buckets, intra_op_threads
from serving.settings import ServerSettings


@pytest.mark.parametrize(
    ("most", "sizes"),
    [(1, (1,)), (2, (1, 2)), (4, (1, 4)), (256, (1, 4, 16, 64, 256)), (100, (1, 4, 16, 64, 100))],
)
def test_buckets_are_few_and_end_at_the_largest_batch(most, sizes):
    assert buckets(most) == sizes


def test_threads_share_the_processors(monkeypatch):
    monkeypatch.setattr("serving.limits.available_cpus", lambda: 8)
    settings = ServerSettings(model_repository="m")
    assert (batch_limits(settings, "cpu").threads, intra_op_threads(settings)) == (8, 1)
    assert batch_limits(settings, "cuda").threads == 1
    settings = ServerSettings(model_repository="m", inference_threads=2)
    assert (batch_limits(settings, "cpu").threads, intra_op_threads(settings)) == (2, 4)
    settings = ServerSettings(model_repository="m", inference_threads=16, intra_op_threads=3)
    assert (batch_limits(settings, "cpu").threads, intra_op_threads(settings)) == (16, 3)


@pytest.mark.parametrize(("workers", "threads"), [(2, 4), (3, 2), (16, 1)])
def test_workers_share_the_processors(monkeypatch, workers, threads):
    monkeypatch.setattr("serving.limits.available_cpus", lambda: 8)
    settings = ServerSettings(model_repository="m", workers=workers)
    assert (batch_limits(settings, "cpu").threads, intra_op_threads(settings)) == (threads, 1)
    settings = ServerSettings(model_repository="m", workers=workers, inference_threads=1)
    assert intra_op_threads(settings) == threads


def test_only_on_the_cpu_runs_are_made_on_the_event_loop():
    settings = ServerSettings(model_repository="m", inline_seconds=0.002)
    assert batch_limits(settings, "cpu").inline_seconds == 0.002
    assert batch_limits(settings, "cuda").inline_seconds == 0
