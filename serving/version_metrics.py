"""What the server counts of versions that come and go: loads, labels, shadows."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from prometheus_client import CollectorRegistry, Counter, Gauge

_MODEL = ("model", "version")


class VersionMetrics:
    """Metrics of the repository's changes; a part of `Metrics`.

    Attributes
    ----------
    of_models
        Those that are labelled by model and version, and vanish with the version.
    unreadable
        1 while the repository cannot be read.
    labels_stale
        By model: 1 while its labels file cannot be used.
    """

    def __init__(self, registry: CollectorRegistry) -> None:
        self._loads = Counter(
            "nvisa_model_loads",
            "Times that a bundle was read to be served, by outcome: success, failure",
            (*_MODEL, "outcome"),
            registry=registry,
        )
        self._stale = Gauge(
            "nvisa_model_stale",
            "1 while a version's files are gone or cannot be used, and what was loaded before still answers",
            _MODEL,
            registry=registry,
        )
        self._failing = Gauge(
            "nvisa_model_failing",
            "1 while every run of a version fails, as when its device is gone; its calls are refused",
            _MODEL,
            registry=registry,
        )
        self.unreadable = Gauge(
            "nvisa_repository_unreadable",
            "1 while the model repository cannot be read, or is empty; what is loaded still answers",
            registry=registry,
        )
        self.labels_stale = Gauge(
            "nvisa_labels_stale",
            "1 while a labels file cannot be used, and older labels are in force",
            ("model",),
            registry=registry,
        )
        self._label_share = Gauge(
            "nvisa_label_share",
            "Share of the calls without a version that the version with a label answers",
            (*_MODEL, "label"),
            registry=registry,
        )
        self.shadow_rows = Counter(
            "nvisa_shadow_rows",
            "Rows that the shadow version answered, too, and that were compared",
            _MODEL,
            registry=registry,
        )
        self.shadow_disagreeing = Counter(
            "nvisa_shadow_disagreeing_rows",
            "Rows compared to which the shadow version gives another cluster id than the stable one",
            _MODEL,
            registry=registry,
        )
        self.shadow_dropped = Counter(
            "nvisa_shadow_dropped_rows",
            "Rows not compared: the shadow version was busy, or failed",
            (*_MODEL, "reason"),
            registry=registry,
        )
        self.shadow_disagreement = Gauge(
            "nvisa_shadow_disagreement",
            "Share of the recent rows compared that disagree however the clusters are renumbered",
            _MODEL,
            registry=registry,
        )
        self.of_models = (
            *(
                self._loads,
                self._stale,
                self._failing,
                self._label_share,
                self.shadow_rows,
                self.shadow_disagreeing,
            ),
            *(self.shadow_dropped, self.shadow_disagreement),
        )

    def loaded(self, model: str, version: int, *, success: bool) -> None:
        """Count one attempt at a bundle."""
        attempts = {
            outcome: self._loads.labels(model, version, outcome) for outcome in ("success", "failure")
        }
        attempts["success" if success else "failure"].inc()

    def set_stale(self, model: str, version: int, stale: bool) -> None:
        """Show whether what answers as this version is not what its files hold."""
        self._stale.labels(model, version).set(stale)

    def set_failing(self, model: str, version: int, failing: bool) -> None:
        """Show whether every run of this version fails."""
        self._failing.labels(model, version).set(failing)

    def label(self, model: str, versions: Mapping[str, int], shares: Mapping[str, float]) -> None:
        """Show the labels in force, in place of all that were shown of ``model``."""
        self._label_share.remove_by_labels({"model": model})
        for label, version in versions.items():
            self._label_share.labels(model, version, label).set(shares[label])

    def forget_labels(self, model: str) -> None:
        """Show no labels of a model that is here no more."""
        self._label_share.remove_by_labels({"model": model})
        self.labels_stale.remove_by_labels({"model": model})

    def of_shadow(self, model: str, version: int) -> ShadowMetrics:
        """Return the metrics of one shadow version, labelled."""
        return ShadowMetrics(self, model, str(version))


class ShadowMetrics:
    """One shadow version's share of `VersionMetrics`."""

    def __init__(self, metrics: VersionMetrics, model: str, version: str) -> None:
        self._labels = {"model": model, "version": version}
        self._disagreement = metrics.shadow_disagreement
        self._all = (metrics.shadow_rows, metrics.shadow_disagreeing, metrics.shadow_dropped)
        self.rows = metrics.shadow_rows.labels(model, version)
        self.disagreeing = metrics.shadow_disagreeing.labels(model, version)
        self.busy, self.failed = (
            metrics.shadow_dropped.labels(model, version, why) for why in ("busy", "failed")
        )

    def show_disagreement(self, share: Callable[[], float]) -> None:
        """Read the disagreement from ``share`` whenever Prometheus asks."""
        self._disagreement.labels(**self._labels).set_function(share)

    def forget(self) -> None:
        """Show nothing more of it: it is a shadow no longer."""
        for metric in (*self._all, self._disagreement):
            metric.remove_by_labels(self._labels)
