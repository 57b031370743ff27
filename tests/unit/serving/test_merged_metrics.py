"""Metrics of several processes, merged, against one process that has seen everything."""

import json
import math
import re
from pathlib import Path

import numpy as np
import pytest
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from serving.merged_metrics import SMALLEST_GAUGES, SUMMED_GAUGES, Snapshot, merged, to_metrics
from serving.metrics import Metrics

TOY = ("toy", "1")


class Process:
    """The metrics of one server, and what it does."""

    def __init__(self, manifest):
        self.metrics = Metrics()
        self.model = self.metrics.for_model(manifest, low_confidence=0.5, drift_window_rows=100_000)
        self.metrics.loaded(manifest, "cpu")
        self.model.watch_queue(lambda: 3, 100)

    def work(self, rng, manifest, n):
        clusters = rng.integers(0, manifest.n_clusters, n)
        # Hundredths that float64 holds exactly, so that sums do not depend on their order.
        confidences = rng.integers(1, 64, n) / np.float32(64)
        self.model.tally.add(clusters, confidences, rng.integers(1, 64, n) / np.float32(64))
        self.model.rows.inc(n)
        self.model.inference_seconds.observe(n / 1024)
        self.metrics.answered("service/Assign", "OK" if n % 2 else "INTERNAL", n / 1024)

    def snapshot(self):
        # As it crosses the socket.
        whole = Snapshot.of(self.metrics.registry, self.metrics.mixes())
        return Snapshot.from_json(json.loads(json.dumps(whole.to_json())))


@pytest.mark.parametrize("n_workers", [1, 2, 5])
def test_counts_and_drift_are_those_of_one_process_that_saw_all_rows(novelty_manifest, n_workers):
    workers = [Process(novelty_manifest) for _ in range(n_workers)]
    alone = Process(novelty_manifest)
    for i, worker in enumerate(workers * 2):
        for process in (worker, alone):
            process.work(np.random.default_rng(i), novelty_manifest, 100 + i)
    together, one = merged(worker.snapshot() for worker in workers), alone.snapshot()
    assert together.families.keys() == one.families.keys()
    compared = 0
    for name, family in one.families.items():
        if not name.startswith("nvisa_") or name in SUMMED_GAUGES:
            continue
        assert together.families[name].samples.keys() == family.samples.keys()
        for key, value in family.samples.items():
            if not key[0].endswith("_created"):
                got = together.families[name].samples[key]
                assert got == pytest.approx(value, rel=1e-12, nan_ok=True), key
                compared += not math.isnan(value) and value != 0
    assert compared > 50
    assert together.families["nvisa_cluster_drift_rows"].samples[
        "nvisa_cluster_drift_rows", (("model", "toy"), ("version", "1"))
    ] == sum(100 + i for i in range(2 * n_workers))


def registry_with(kind, name, value):
    registry = CollectorRegistry()
    kind(name, "help", registry=registry).set(value)
    return Snapshot.of(registry)


def the_value(snapshot, name):
    (value,) = snapshot.families[name].samples.values()
    return value


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("nvisa_queue_rows", 7),
        ("nvisa_queue_limit_rows", 7),
        ("process_resident_memory_bytes", 7),
        ("nvisa_certificate_expiry_timestamp_seconds", 2),
        ("nvisa_model_on_cuda", 2),
        ("process_start_time_seconds", 2),
        ("nvisa_credentials_stale", 5),
        ("nvisa_reference_low_confidence_share", 5),
    ],
)
def test_gauges_go_by_their_rule(name, expected):
    assert the_value(merged(registry_with(Gauge, name, value) for value in (5, 2)), name) == expected


def test_every_gauge_with_a_rule_of_its_own_is_one_that_the_server_shows():
    shown = " ".join(path.read_text() for path in (Path(__file__).parents[3] / "serving").glob("*metrics.py"))
    for name in SUMMED_GAUGES | SMALLEST_GAUGES:
        assert name.startswith("process_") or len(re.findall(rf'"{name}"', shown)) >= 2, name


def test_of_the_dead_only_what_was_counted_remains():
    registry = CollectorRegistry()
    Counter("nvisa_rows", "help", registry=registry).inc(5)
    Histogram("nvisa_seconds", "help", registry=registry).observe(1)
    Gauge("nvisa_queue_rows", "help", registry=registry).set(3)
    assert set(Snapshot.of(registry).counted().families) == {"nvisa_rows", "nvisa_seconds"}
    assert not merged([Snapshot.of(registry).counted()]).mixes


def test_what_is_merged_is_shown_as_prometheus_takes_it(novelty_manifest):
    process = Process(novelty_manifest)
    process.work(np.random.default_rng(0), novelty_manifest, 11)

    class Shown:
        def collect(self):
            return to_metrics(merged([process.snapshot()]))

    registry = CollectorRegistry()
    registry.register(Shown())
    ours = [line for line in generate_latest(registry).decode().splitlines() if "nvisa_" in line]
    theirs = [
        line for line in generate_latest(process.metrics.registry).decode().splitlines() if "nvisa_" in line
    ]
    assert ours == theirs
    assert len(ours) > 100


def test_the_time_a_counter_began_is_the_earliest():
    snapshots = []
    for _ in range(2):
        registry = CollectorRegistry()
        Counter("nvisa_rows", "help", registry=registry)
        snapshots.append(Snapshot.of(registry))
    created = [s.families["nvisa_rows"].samples["nvisa_rows_created", ()] for s in snapshots]
    assert created[0] < created[1]
    got = merged(reversed(snapshots)).families["nvisa_rows"].samples["nvisa_rows_created", ()]
    assert got == created[0]
