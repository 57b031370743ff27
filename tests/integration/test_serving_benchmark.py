"""The load generator against real servers: it gets answers, and notices wrong ones."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from serving.bundle import read_bundle
from tests import benchmarks  # noqa: F401  first: the imports below are found through it
from tests.bundles import make_bundle

from serving_peers.cases import closed, overload  # isort: skip
from serving_peers.model import Rows, ask  # isort: skip
from serving_peers.session import Places, StartError, put_load, started  # isort: skip
from serving_peers.systems import SYSTEMS  # isort: skip

SECONDS = 0.3


@pytest.fixture(scope="module")
def places(tmp_path_factory) -> Places:
    folder = tmp_path_factory.mktemp("benchmark")
    bundle = make_bundle(folder / "models", name="mnist", shape=(28, 28))
    rows = ask(read_bundle(bundle), 512).save(folder / "rows.npz")
    return Places(folder / "models", rows, folder, Path(sys.executable).parent / "nvisa-serve")


@pytest.mark.parametrize("name", ["echo", "naive", "nvisa", "nvisa-oip"])
def test_a_turn_has_answers_and_no_wrong_ones(name, places):
    half = {
        "name": "half",
        "rows": 1,
        "of": "1x4",
        "steps": [(0.5, SECONDS)],
        "seconds": SECONDS,
        "warm": SECONDS,
    }
    with started(SYSTEMS[name], places) as it:
        results, memory = put_load(it, places, [closed(1, 4, SECONDS), closed(256, 2, SECONDS), half])
    assert [result["case"] for result in results] == ["1x4", "256x2", "half"]
    for result in results:
        assert result["calls_per_second"] > 0
        assert result["wrong"] == 0
        assert set(result["codes"]) == {"OK"}
        assert 0 < result["p50_ms"] <= result["p99_ms"]
    assert it.idle_megabytes > 1
    assert max(megabytes for _, megabytes in memory) > 1


def test_wrong_answers_are_counted(places, tmp_path):
    rows = Rows.load(places.rows)
    clusters = rows.clusters.copy()
    clusters[1::2] = (clusters[1::2] + 1) % 10  # every other row; not the first, which says that it is up
    other = replace(places, rows=Rows(rows.x, clusters, rows.probabilities).save(tmp_path / "rows.npz"))
    with started(SYSTEMS["naive"], other) as it:
        ((result,), _) = put_load(it, other, [closed(1, 4, SECONDS)])
    assert result["wrong"] > 0
    assert abs(result["codes"]["OK"] - 2 * result["wrong"]) <= 8


def test_a_server_of_another_model_does_not_count_as_started(places, tmp_path):
    rows = Rows.load(places.rows)
    turned = Rows(rows.x, rows.clusters, np.roll(rows.probabilities, 1, axis=1)).save(tmp_path / "rows.npz")
    with (
        pytest.raises(StartError, match="first answer is wrong"),
        started(SYSTEMS["naive"], replace(places, rows=turned)),
    ):
        pass


def test_a_server_that_ends_says_what_it_said(places):
    broken = replace(SYSTEMS["echo"], command=lambda setting: [sys.executable, "-c", "import no_such_module"])
    with pytest.raises(StartError, match=r"(?s)ended with status 1.*no_such_module"), started(broken, places):
        pass


def test_mixed_and_overload_run_to_their_end(places):
    case = {"name": "mixed", "mixed": True, "rows": 1, "seconds": 1.0, "warm": 0.0}
    with started(SYSTEMS["nvisa"], places) as it:
        (mixed, peak, twice), _ = put_load(it, places, [case, *overload(16, 4, SECONDS)])
    assert mixed["wrong"] == peak["wrong"] == twice["wrong"] == 0
    assert set(mixed["codes"]) == {"OK"}
    assert twice["offered_calls_per_second"] == pytest.approx(2 * peak["calls_per_second"], rel=0.01)
    assert sum(second["answers"] for second in twice["by_second"]) == twice["codes"]["OK"]
    refused = sum(n for code, n in twice["codes"].items() if code != "OK")
    assert sum(second["refused"] for second in twice["by_second"]) == refused
