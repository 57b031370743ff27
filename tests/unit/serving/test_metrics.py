import threading

import numpy as np
import pytest

from serving.cluster_metrics import MAX_CLUSTER_LABELS, OTHER_CLUSTERS, ClusterTally, share_below
from serving.manifest import Reference
from serving.metrics import Metrics
from serving.models import STATES, ModelState

TOY = {"model": "toy", "version": "1"}


@pytest.fixture
def metrics():
    return Metrics()


def test_calls_are_counted_by_method_and_code(metrics):
    metrics.answered("s/A", "OK", 0.003)
    metrics.answered("s/A", "OK", 0.2)
    metrics.answered("s/A", "NOT_FOUND", 0.1)
    value = metrics.registry.get_sample_value
    assert value("nvisa_requests_total", {"method": "s/A", "code": "OK"}) == 2
    assert value("nvisa_requests_total", {"method": "s/A", "code": "NOT_FOUND"}) == 1
    assert value("nvisa_request_seconds_count", {"method": "s/A"}) == 3
    assert value("nvisa_request_seconds_sum", {"method": "s/A"}) == pytest.approx(0.303)
    assert value("nvisa_request_seconds_bucket", {"method": "s/A", "le": "0.005"}) == 1


def test_latency_buckets_begin_at_fifty_microseconds(metrics):
    metrics.answered("s/A", "OK", 4e-5)
    labels = {"method": "s/A", "le": "5e-05"}
    assert metrics.registry.get_sample_value("nvisa_request_seconds_bucket", labels) == 1


def test_a_model_is_in_exactly_one_state(metrics):
    metrics.set_state("toy", 1, ModelState.LOADING, STATES)
    metrics.set_state("toy", 1, ModelState.READY, STATES)
    values = {s: metrics.registry.get_sample_value("nvisa_model_state", TOY | {"state": s}) for s in STATES}
    assert values == {"loading": 0, "ready": 1, "failed": 0}


@pytest.mark.parametrize(("device", "on_cuda"), [("cpu", 0), ("cuda", 1)])
def test_the_device_in_use_shows(metrics, manifest, device, on_cuda):
    metrics.loaded(manifest, device)
    value = metrics.registry.get_sample_value
    assert value("nvisa_model_on_cuda", TOY) == on_cuda
    info = TOY | {"device": device, "graph_sha256": manifest.graph_sha256, "package_version": "0.1.0"}
    assert value("nvisa_model_info", info) == 1


def test_clusters_and_confidences_are_counted_row_by_row(metrics, manifest):
    tally = metrics.for_model(manifest, low_confidence=0.5, drift_window_rows=100).tally
    tally.add(np.array([3, 3, 7]), np.array([0.2, 0.5, 0.95], np.float32))
    tally.add(np.array([0]), np.array([0.999], np.float32))
    value = metrics.registry.get_sample_value
    counts = [value("nvisa_cluster_rows_total", TOY | {"cluster": str(k)}) for k in range(10)]
    assert counts == [1, 0, 0, 2, 0, 0, 0, 1, 0, 0]
    assert value("nvisa_low_confidence_rows_total", TOY) == 1
    assert value("nvisa_confidence_count", TOY) == 4
    assert value("nvisa_confidence_sum", TOY) == pytest.approx(2.649)
    by_edge = {le: value("nvisa_confidence_bucket", TOY | {"le": le}) for le in ("0.1", "0.5", "0.9", "+Inf")}
    assert by_edge == {"0.1": 0, "0.5": 2, "0.9": 2, "+Inf": 4}


@pytest.mark.parametrize("batch", [1, 7, 400, 5000])
def test_the_counts_do_not_depend_on_how_the_rows_came(metrics, novelty_manifest, batch):
    rng = np.random.default_rng(0)
    n = 5000
    clusters, confidences = rng.integers(0, 10, n), rng.random(n, np.float32)
    novelty = rng.random(n, np.float32)
    tally = metrics.for_model(novelty_manifest, low_confidence=0.25, drift_window_rows=10**6).tally
    for start in range(0, n, batch):
        part = slice(start, start + batch)
        tally.add(clusters[part], confidences[part], novelty[part])
    counts = np.bincount(clusters, minlength=10).tolist()
    assert tally.mix().counts.tolist() == counts  # without a scrape before it
    value = metrics.registry.get_sample_value
    shown = [value("nvisa_cluster_rows_total", TOY | {"cluster": str(k)}) for k in range(10)]
    assert shown == counts
    assert value("nvisa_low_confidence_rows_total", TOY) == (confidences < 0.25).sum()
    for name, values in (("nvisa_confidence", confidences), ("nvisa_novelty", novelty)):
        assert value(f"{name}_count", TOY) == n
        assert value(f"{name}_sum", TOY) == pytest.approx(values.sum(dtype=np.float64))
        assert value(f"{name}_bucket", TOY | {"le": "0.5"}) == (values <= 0.5).sum()


def test_while_many_threads_look_no_row_is_lost_or_counted_twice(metrics, manifest):
    tally = metrics.for_model(manifest, low_confidence=0.5, drift_window_rows=1600).tally
    done = threading.Event()

    def look():
        while not done.is_set():
            tally.mix()

    threads = [threading.Thread(target=look) for _ in range(3)]
    for thread in threads:
        thread.start()
    for i in range(2000):
        tally.add(np.array([i % 10, 3]), np.ones(2, np.float32))
    done.set()
    for thread in threads:
        thread.join()
    tally.count()
    assert tally.rows_per_cluster.tolist() == [200] * 3 + [2200] + [200] * 6
    assert tally.confidence_counts.sum() == 4000


def test_novelty_is_counted_row_by_row_of_models_that_say_it(metrics, novelty_manifest):
    tally = metrics.for_model(novelty_manifest, low_confidence=0.5, drift_window_rows=100).tally
    ones = np.ones(3, np.float32)
    tally.add(np.array([3, 3, 7]), ones, np.array([0.05, 0.5, 1.0], np.float32))
    tally.add(np.array([0]), ones[:1], np.array([0.995], np.float32))
    value = metrics.registry.get_sample_value
    assert value("nvisa_novelty_count", TOY) == 4
    assert value("nvisa_novelty_sum", TOY) == pytest.approx(2.545)
    by_edge = {
        le: value("nvisa_novelty_bucket", TOY | {"le": le}) for le in ("0.1", "0.5", "0.99", "0.999", "+Inf")
    }
    assert by_edge == {"0.1": 1, "0.5": 2, "0.99": 2, "0.999": 3, "+Inf": 4}


def test_a_model_that_does_not_say_novelty_has_no_histogram_of_it(metrics, manifest):
    metrics.for_model(manifest, low_confidence=0.5, drift_window_rows=100).tally.add(
        np.array([1]), np.ones(1, np.float32)
    )
    assert metrics.registry.get_sample_value("nvisa_novelty_count", TOY) is None


def test_drift_is_not_a_number_before_the_first_row_then_zero_for_the_training_mix(metrics, manifest):
    tally = metrics.for_model(manifest, low_confidence=0.5, drift_window_rows=10**6).tally
    value = metrics.registry.get_sample_value
    assert np.isnan(value("nvisa_cluster_drift_psi", TOY))
    rows = manifest.reference.rows
    clusters = np.repeat(np.arange(10), [round(s * rows) for s in manifest.reference.cluster_shares])
    tally.add(clusters, np.ones(len(clusters), np.float32))
    assert value("nvisa_cluster_drift_psi", TOY) == pytest.approx(0, abs=1e-9)
    tally.add(np.zeros(5000, np.int64), np.ones(5000, np.float32))
    assert value("nvisa_cluster_drift_psi", TOY) > 0.25


def test_the_training_datas_mix_and_doubtful_share_are_shown_beside_the_live_ones(metrics, manifest):
    metrics.for_model(manifest, low_confidence=0.5, drift_window_rows=100)
    value = metrics.registry.get_sample_value
    shown = [value("nvisa_cluster_reference_share", TOY | {"cluster": str(k)}) for k in range(10)]
    assert shown == pytest.approx(manifest.reference.cluster_shares)
    # The bundle's histogram has an edge at 0.5.
    expected = sum(manifest.reference.confidence_shares[:2])
    assert value("nvisa_reference_low_confidence_share", TOY) == pytest.approx(expected)


def test_between_edges_the_reference_is_interpolated():
    reference = Reference(
        cluster_shares=(1.0,), confidence_edges=(0.0, 0.5, 1.0), confidence_shares=(0.2, 0.8), rows=10
    )
    shares = [share_below(reference, limit) for limit in (0, 0.25, 0.5, 0.75, 1)]
    assert shares == pytest.approx([0, 0.1, 0.2, 0.6, 1])


def test_the_number_of_labels_is_bounded_and_no_row_is_lost(manifest):
    n_clusters = MAX_CLUSTER_LABELS + 44
    shares = np.arange(1, n_clusters + 1) / np.arange(1, n_clusters + 1).sum()
    reference = manifest.reference.model_copy(update={"cluster_shares": tuple(shares)})
    many = manifest.model_copy(update={"n_clusters": n_clusters, "reference": reference})
    tally = ClusterTally(many, low_confidence=0.5, drift_window_rows=100)
    tally.add(np.arange(n_clusters), np.ones(n_clusters, np.float32))
    shown = dict(tally.by_label(tally.rows_per_cluster))
    assert len(shown) == MAX_CLUSTER_LABELS
    assert shown.pop(OTHER_CLUSTERS) == 45
    # The smallest are those put together: shares ascend.
    assert shown == {str(k): 1 for k in range(45, n_clusters)}
    assert sum(dict(tally.reference_shares()).values()) == pytest.approx(1)
