"""What only a clustering service can say: rows per cluster, confidence, and drift from the training data.

The counts live in numpy arrays, added to for many answers at once, and become Prometheus metrics when asked
for; a counter call per row would cost more than the model.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence

import numpy as np
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.registry import Collector

from serving.drift import Mix, SlidingCounts
from serving.manifest import Manifest, Reference

CONFIDENCE_EDGES = np.array([0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.99])
# Of rows like the training data's, a tenth are in each tenth, one in a hundred above 0.99.
NOVELTY_EDGES = np.array([0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.99, 0.999])
# A model with more clusters than this shows its largest ones, and all others together.
MAX_CLUSTER_LABELS = 256
OTHER_CLUSTERS = "other"
_MODEL = ("model", "version")
_MOST_WAITING_ROWS = 1024


class ClusterTally:
    """Counts of one model's answers. Added to by one thread (the batcher's), counted and read by any.

    Answers are kept until there are enough of them, or someone looks: to count those of a single row takes as
    long as to count those of hundreds. What is read is as old as the last `count`.

    Parameters
    ----------
    manifest
        Names the model and holds the reference shares.
    low_confidence
        Rows whose cluster is less probable than this count as doubtful.
    drift_window_rows
        Drift is measured over about so many of the last rows.
    """

    def __init__(self, manifest: Manifest, low_confidence: float, drift_window_rows: int) -> None:
        self.labels = (manifest.name, str(manifest.version))
        self.rows_per_cluster = np.zeros(manifest.n_clusters, np.int64)
        self.confidence_counts = np.zeros(len(CONFIDENCE_EDGES) + 1, np.int64)
        self.confidence_sum = 0.0
        self.low_confidence_rows = 0
        self.has_novelty = manifest.novelty is not None
        self.novelty_counts = np.zeros(len(NOVELTY_EDGES) + 1, np.int64)
        self.novelty_sum = 0.0
        self._low_confidence = low_confidence
        self._reference = np.asarray(manifest.reference.cluster_shares)
        self._reference_rows = manifest.reference.rows
        self.cluster_labels, self._label_of = _cluster_labels(self._reference)
        self.reference_low_confidence_share = share_below(manifest.reference, low_confidence)
        self._recent = SlidingCounts(manifest.n_clusters, drift_window_rows)
        # Few beside the window, which is to move evenly.
        self._most_waiting_rows = min(_MOST_WAITING_ROWS, drift_window_rows // 16)
        self._waiting: list[tuple[np.ndarray, ...]] = []
        self._waiting_rows = 0
        self._lock = threading.Lock()

    def add(self, clusters: np.ndarray, confidences: np.ndarray, novelty: np.ndarray | None = None) -> None:
        """Take ``(n_rows,)`` answers, to be counted; all calls give novelty, or none does."""
        with self._lock:
            self._waiting.append(
                (clusters, confidences) if novelty is None else (clusters, confidences, novelty)
            )
            self._waiting_rows += len(clusters)
            if self._waiting_rows >= self._most_waiting_rows:
                self._count()

    def count(self) -> None:
        """Count what has not been counted."""
        with self._lock:
            if self._waiting:
                self._count()

    def _count(self) -> None:
        clusters, confidences, *novelty = (np.concatenate(same) for same in zip(*self._waiting, strict=True))
        self._waiting.clear()
        self._waiting_rows = 0
        counts = np.bincount(clusters, minlength=len(self.rows_per_cluster))
        self.rows_per_cluster += counts
        self.confidence_counts += _histogram(confidences, CONFIDENCE_EDGES)
        self.confidence_sum += float(confidences.sum(dtype=np.float64))
        self.low_confidence_rows += int(np.count_nonzero(confidences < self._low_confidence))
        self._recent.add(counts)
        for values in novelty:
            self.novelty_counts += _histogram(values, NOVELTY_EDGES)
            self.novelty_sum += float(values.sum(dtype=np.float64))

    def mix(self) -> Mix:
        """Return the clusters of the recent rows, beside the training data's."""
        self.count()
        return Mix(self._recent.counts(), self._reference, self._reference_rows)

    def by_label(self, values: np.ndarray) -> list[tuple[str, float]]:
        """Return ``(n_clusters,)`` values summed under the labels that clusters are shown with."""
        sums = np.bincount(self._label_of, weights=values, minlength=len(self.cluster_labels))
        return list(zip(self.cluster_labels, sums.tolist(), strict=True))

    def reference_shares(self) -> list[tuple[str, float]]:
        """Return the share of the training rows under each label."""
        return self.by_label(self._reference)


def share_below(reference: Reference, confidence: float) -> float:
    """Return the share of the training rows whose confidence is below ``confidence``.

    The manifest has a histogram: within a bucket the rows are taken to be evenly spread.
    """
    edges = np.asarray(reference.confidence_edges)
    cumulative = np.concatenate([[0.0], np.cumsum(reference.confidence_shares)])
    return float(np.interp(confidence, edges, cumulative))


def _cluster_labels(shares: np.ndarray) -> tuple[Sequence[str], np.ndarray]:
    """Return the labels, and of every cluster the index of its label, ``(n_clusters,)``."""
    n_clusters = len(shares)
    if n_clusters <= MAX_CLUSTER_LABELS:
        return [str(cluster) for cluster in range(n_clusters)], np.arange(n_clusters)
    largest = np.sort(np.argsort(-shares, kind="stable")[: MAX_CLUSTER_LABELS - 1])
    label_of = np.full(n_clusters, len(largest))
    label_of[largest] = np.arange(len(largest))
    return [*(str(cluster) for cluster in largest), OTHER_CLUSTERS], label_of


def _histogram(values: np.ndarray, edges: np.ndarray) -> np.ndarray:
    # A bucket of Prometheus holds its upper edge, hence "left": edges[i - 1] < value <= edges[i].
    return np.bincount(np.searchsorted(edges, values, side="left"), minlength=len(edges) + 1)


class ClusterCollector(Collector):
    """Turns every `ClusterTally` into Prometheus metrics when they are scraped."""

    def __init__(self) -> None:
        self.tallies: list[ClusterTally] = []

    def forget(self, model: str, version: str) -> None:
        """Show a model no more."""
        self.tallies = [tally for tally in self.tallies if tally.labels != (model, version)]

    def collect(self) -> Iterator[Metric]:
        """Yield the metrics of all models."""
        rows = CounterMetricFamily(
            "nvisa_cluster_rows", "Rows assigned to a cluster", labels=(*_MODEL, "cluster")
        )
        doubtful = CounterMetricFamily(
            "nvisa_low_confidence_rows", "Rows below the low-confidence limit", labels=_MODEL
        )
        confidence = HistogramMetricFamily(
            "nvisa_confidence", "Probability of the assigned cluster", labels=_MODEL
        )
        novelty = HistogramMetricFamily(
            "nvisa_novelty",
            "Rank of a row among the training rows, 1 the least likely; evenly spread if the "
            "traffic is like the training data. Only of models exported with novelty",
            labels=_MODEL,
        )
        drift = GaugeMetricFamily(
            "nvisa_cluster_drift_psi",
            "Population stability index of the recent cluster mix against the training data's",
            labels=_MODEL,
        )
        noise = GaugeMetricFamily(
            "nvisa_cluster_drift_noise_psi",
            "What nvisa_cluster_drift_psi shows on average for so many rows without any drift",
            labels=_MODEL,
        )
        window = GaugeMetricFamily(
            "nvisa_cluster_drift_rows", "Rows that nvisa_cluster_drift_psi is taken over", labels=_MODEL
        )
        shares = GaugeMetricFamily(
            "nvisa_cluster_reference_share",
            "Share of the training rows in a cluster",
            labels=(*_MODEL, "cluster"),
        )
        expected_doubtful = GaugeMetricFamily(
            "nvisa_reference_low_confidence_share",
            "Share of the training rows below the low-confidence limit",
            labels=_MODEL,
        )
        for tally in list(self.tallies):
            tally.count()
            for cluster, count in tally.by_label(tally.rows_per_cluster):
                rows.add_metric((*tally.labels, cluster), count)
            for cluster, share in tally.reference_shares():
                shares.add_metric((*tally.labels, cluster), share)
            doubtful.add_metric(tally.labels, tally.low_confidence_rows)
            expected_doubtful.add_metric(tally.labels, tally.reference_low_confidence_share)
            buckets = _buckets(CONFIDENCE_EDGES, tally.confidence_counts)
            confidence.add_metric(tally.labels, buckets, tally.confidence_sum)
            if tally.has_novelty:
                buckets = _buckets(NOVELTY_EDGES, tally.novelty_counts)
                novelty.add_metric(tally.labels, buckets, tally.novelty_sum)
            for family, value in zip((drift, noise, window), tally.mix().drift(), strict=True):
                family.add_metric(tally.labels, value)
        yield from (rows, shares, doubtful, expected_doubtful, confidence, novelty, drift, noise, window)


def _buckets(edges: np.ndarray, counts: np.ndarray) -> list[tuple[str, float]]:
    cumulative = np.cumsum(counts).tolist()
    return list(zip([*(str(edge) for edge in edges), "+Inf"], cumulative, strict=True))
