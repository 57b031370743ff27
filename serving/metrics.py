"""What the server counts, in Prometheus' terms: seconds, and ``_total`` for counters."""

from __future__ import annotations

from collections.abc import Callable

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram
from prometheus_client.platform_collector import PlatformCollector
from prometheus_client.process_collector import ProcessCollector

from serving.cluster_metrics import ClusterCollector, ClusterTally
from serving.drift import Mix
from serving.manifest import Manifest
from serving.version_metrics import VersionMetrics

# From 50 microseconds, as a small model answers in less than a millisecond, to 10 seconds.
SECONDS = (
    *(5e-5, 1e-4, 2e-4, 5e-4),
    *(1e-3, 2e-3, 5e-3, 1e-2, 2e-2, 5e-2),
    *(0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0),
)
_MODEL = ("model", "version")


class Metrics:
    """Every metric of one server, on a registry of its own.

    Methods are labelled as ``service/method``. Labels come only from the repository and from the list of
    methods, never from a request: a caller cannot make new ones.
    """

    def __init__(self) -> None:
        self.registry = registry = CollectorRegistry()
        ProcessCollector(registry=registry)
        PlatformCollector(registry=registry)
        self._requests = Counter(
            "nvisa_requests", "Calls answered, by status code", ("method", "code"), registry=registry
        )
        self._request_seconds = Histogram(
            "nvisa_request_seconds",
            "Whole call on the server",
            ("method",),
            buckets=SECONDS,
            registry=registry,
        )
        self._stream_messages = Counter(
            "nvisa_stream_messages",
            "Messages of streams answered, by status code; the calls themselves are in nvisa_requests",
            ("code",),
            registry=registry,
        )
        for code in ("OK", "INTERNAL"):  # from zero on, as `expect` says
            self._stream_messages.labels(code)
        self.rows = Counter("nvisa_rows", "Rows the model answered", _MODEL, registry=registry)
        self.executions = Counter("nvisa_executions", "Runs of the model", _MODEL, registry=registry)
        self.padding_rows = Counter(
            "nvisa_padding_rows",
            "Rows computed only to fill a batch to its bucket",
            _MODEL,
            registry=registry,
        )
        self.failed_executions = Counter(
            "nvisa_failed_executions", "Runs of the model that failed", _MODEL, registry=registry
        )
        self.dropped_rows = Counter(
            "nvisa_dropped_rows",
            "Rows that never reached the model: caller gone, deadline passed, queue full; a call that was "
            "refused unread counts as many as those in the queue",
            (*_MODEL, "reason"),
            registry=registry,
        )
        self.queue_rows = Gauge("nvisa_queue_rows", "Rows that wait for the model", _MODEL, registry=registry)
        self.queue_limit_rows = Gauge(
            "nvisa_queue_limit_rows", "Rows that may wait; more are refused", _MODEL, registry=registry
        )
        self.queue_seconds = Histogram(
            "nvisa_queue_seconds", "Wait of a call for the model", _MODEL, buckets=SECONDS, registry=registry
        )
        self.inference_seconds = Histogram(
            "nvisa_inference_seconds", "One run of the model", _MODEL, buckets=SECONDS, registry=registry
        )
        self._info = Gauge(
            "nvisa_model_info",
            "1 for every loaded model; its labels say what it is",
            (*_MODEL, "device", "graph_sha256", "package_version"),
            registry=registry,
        )
        self._state = Gauge(
            "nvisa_model_state",
            "1 for the state a model is in, 0 for the others",
            (*_MODEL, "state"),
            registry=registry,
        )
        self._on_cuda = Gauge(
            "nvisa_model_on_cuda", "1 if the model runs on CUDA, 0 if on the CPU", _MODEL, registry=registry
        )
        self.authentications = Counter(
            "nvisa_authentications",
            "Calls that had to show a token, by outcome: accepted, missing, wrong, forbidden",
            ("outcome",),
            registry=registry,
        )
        self.credential_reloads = Counter(
            "nvisa_credential_reloads",
            "Changes of a credential file, by outcome: success, or failure: the old content stays",
            ("credential", "outcome"),
            registry=registry,
        )
        self.credentials_stale = Gauge(
            "nvisa_credentials_stale",
            "1 while a credential's files hold what cannot be used, and older content is in force",
            ("credential",),
            registry=registry,
        )
        self._certificate_expiry: Gauge | None = None
        self.ready = Gauge("nvisa_ready", "1 while the server takes requests", registry=registry)
        self._clusters = ClusterCollector()
        registry.register(self._clusters)
        self.versions = VersionMetrics(registry)
        self._of_models = (
            *(self.rows, self.executions, self.padding_rows, self.failed_executions, self.dropped_rows),
            *(self.queue_rows, self.queue_limit_rows, self.queue_seconds, self.inference_seconds),
            *(self._info, self._state, self._on_cuda),
            *self.versions.of_models,
        )
        self._methods: dict[str, MethodMetrics] = {}

    def of_method(self, method: str) -> MethodMetrics:
        """Return the metrics of one method, shown from now on."""
        found = self._methods.get(method)
        if found is None:
            found = self._methods[method] = MethodMetrics(self._requests, self._request_seconds, method)
        return found

    def answered(self, method: str, code: str, seconds: float) -> None:
        """Count one call to ``method`` that ended with status ``code`` after ``seconds``."""
        self.of_method(method).answered(code, seconds)

    def stream_message(self, code: str) -> None:
        """Count one message of a stream, answered with ``code``."""
        self._stream_messages.labels(code).inc()

    def certificate_expiry(self, certificate: str) -> Gauge:
        """Return the gauge of when ``certificate`` expires; without TLS no such metric is shown at all."""
        if self._certificate_expiry is None:
            self._certificate_expiry = Gauge(
                "nvisa_certificate_expiry_timestamp_seconds",
                "When the TLS certificate in force expires, in Unix time",
                ("certificate",),
                registry=self.registry,
            )
        return self._certificate_expiry.labels(certificate)

    def set_state(self, model: str, version: int, state: str, states: tuple[str, ...]) -> None:
        """Show that ``model`` is in ``state``, one of ``states``."""
        for each in states:
            self._state.labels(model, version, each).set(each == state)

    def loaded(self, manifest: Manifest, device: str) -> None:
        """Show what a model is and where it runs."""
        self._info.labels(
            manifest.name, manifest.version, device, manifest.graph_sha256, manifest.package_version
        ).set(1)
        self._on_cuda.labels(manifest.name, manifest.version).set(device == "cuda")

    def unloaded(self, model: str, version: int) -> None:
        """Take away everything that was shown of a model that is here no more.

        What its last runs still count is lost, rather than shown as that of a model without a state.
        """
        for metric in self._of_models:
            metric.remove_by_labels({"model": model, "version": str(version)})
        self._clusters.forget(model, str(version))

    def mixes(self) -> dict[tuple[str, str], Mix]:
        """Return the recent clusters of every model, by name and version."""
        return {tally.labels: tally.mix() for tally in list(self._clusters.tallies)}

    def for_model(self, manifest: Manifest, low_confidence: float, drift_window_rows: int) -> ModelMetrics:
        """Return the metrics of one model, labelled."""
        tally = ClusterTally(manifest, low_confidence, drift_window_rows)
        self._clusters.tallies.append(tally)
        return ModelMetrics(self, manifest.name, str(manifest.version), tally)


class MethodMetrics:
    """One method's share of `Metrics`: its calls, shown from zero on, and what they took.

    Prometheus cannot see a series' first increase otherwise.
    """

    def __init__(self, requests: Counter, seconds: Histogram, method: str) -> None:
        self._requests = requests
        self._method = method
        # labels() looks a child up under a lock: once is enough.
        self._by_code = {code: requests.labels(method, code) for code in ("OK", "INTERNAL")}
        self._observe = seconds.labels(method).observe

    def answered(self, code: str, seconds: float) -> None:
        """Count one call that ended with status ``code`` after ``seconds``."""
        counter = self._by_code.get(code)
        if counter is None:
            counter = self._by_code[code] = self._requests.labels(self._method, code)
        counter.inc()
        self._observe(seconds)


class ModelMetrics:
    """One model's share of `Metrics`, with the labels bound once."""

    def __init__(self, metrics: Metrics, model: str, version: str, tally: ClusterTally) -> None:
        labels = (model, version)
        self.tally = tally
        self.rows = metrics.rows.labels(*labels)
        self.executions = metrics.executions.labels(*labels)
        self.failed_executions = metrics.failed_executions.labels(*labels)
        self.padding_rows = metrics.padding_rows.labels(*labels)
        self.queue_seconds = metrics.queue_seconds.labels(*labels)
        self.inference_seconds = metrics.inference_seconds.labels(*labels)
        self.dropped = {
            reason: metrics.dropped_rows.labels(*labels, reason)
            for reason in ("cancelled", "expired", "overload")
        }
        self._queue_rows = metrics.queue_rows.labels(*labels)
        self._queue_limit_rows = metrics.queue_limit_rows.labels(*labels)

    def watch_queue(self, rows: Callable[[], int], limit: int) -> None:
        """Read the queue's depth from ``rows`` whenever Prometheus asks; ``limit`` rows may wait."""
        self._queue_rows.set_function(rows)
        self._queue_limit_rows.set(limit)
