"""The metrics of several processes as those of one.

Every worker sends what it counts as plain values, a `Snapshot`; the supervisor merges them. The multiprocess
mode of prometheus_client keeps files for this, and has neither gauges that are computed when they are asked
for nor collectors such as `ClusterCollector`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from prometheus_client import CollectorRegistry
from prometheus_client.core import Metric

from serving.drift import Mix

Model = tuple[str, str]
Labels = tuple[tuple[str, str], ...]
Samples = dict[tuple[str, Labels], float]

_COUNTED = ("counter", "histogram", "summary")
# Of gauges the largest value is shown, except for these: most are 1 when something is to be looked at, or say
# the same in every worker.
SUMMED_GAUGES = frozenset(
    {
        "nvisa_queue_rows",
        "nvisa_queue_limit_rows",
        "process_open_fds",
        "process_resident_memory_bytes",
        "process_virtual_memory_bytes",
    }
)
SMALLEST_GAUGES = frozenset(
    {
        "nvisa_certificate_expiry_timestamp_seconds",
        "nvisa_model_on_cuda",
        "process_max_fds",
        "process_start_time_seconds",
    }
)
# In the order of what `Mix.drift` returns: computed anew, as they do not follow from those of the workers.
_DRIFT_GAUGES = ("nvisa_cluster_drift_psi", "nvisa_cluster_drift_noise_psi", "nvisa_cluster_drift_rows")


@dataclass
class Family:
    """One metric: what Prometheus is told of it, and the values, by name and labels in their order."""

    documentation: str
    type: str
    unit: str
    samples: Samples = field(default_factory=dict)


@dataclass
class Snapshot:
    """What one process counted up to some moment.

    Attributes
    ----------
    families
        By name.
    mixes
        The recent clusters of every model.
    """

    families: dict[str, Family] = field(default_factory=dict)
    mixes: dict[Model, Mix] = field(default_factory=dict)

    @classmethod
    def of(cls, registry: CollectorRegistry, mixes: dict[Model, Mix] | None = None) -> Snapshot:
        """Read ``registry``."""
        snapshot = cls(mixes=mixes or {})
        for metric in registry.collect():
            family = Family(metric.documentation, metric.type, metric.unit)
            for sample in metric.samples:
                family.samples[sample.name, tuple(sample.labels.items())] = sample.value
            snapshot.families[metric.name] = family
        return snapshot

    def to_json(self) -> dict[str, Any]:
        """Return it as what `json` writes; values may be NaN."""
        return {
            "families": [
                [name, f.documentation, f.type, f.unit, [[*key, value] for key, value in f.samples.items()]]
                for name, f in self.families.items()
            ],
            "mixes": [
                [*model, mix.counts.tolist(), mix.reference.tolist(), mix.reference_rows]
                for model, mix in self.mixes.items()
            ],
        }

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> Snapshot:
        """Read what `to_json` returned."""
        snapshot = cls()
        for name, documentation, kind, unit, samples in value["families"]:
            read = {(sample, tuple(map(tuple, labels))): number for sample, labels, number in samples}
            snapshot.families[name] = Family(documentation, kind, unit, read)
        for model, version, counts, reference, rows in value["mixes"]:
            snapshot.mixes[model, version] = Mix(np.array(counts, np.int64), np.array(reference), rows)
        return snapshot

    def counted(self) -> Snapshot:
        """Return what remains of it when its process has ended: counters and histograms."""
        return Snapshot({name: family for name, family in self.families.items() if family.type in _COUNTED})


def merged(snapshots: Iterable[Snapshot]) -> Snapshot:
    """Return the metrics of several processes as those of one.

    Counters and histograms are summed, gauges as the tables above say. The drift of a model is that of the
    rows of all processes together.
    """
    result = Snapshot()
    for snapshot in snapshots:
        for name, family in snapshot.families.items():
            into = result.families.setdefault(name, Family(family.documentation, family.type, family.unit))
            for key, value in family.samples.items():
                old = into.samples.get(key)
                into.samples[key] = value if old is None else _rule(name, family.type, key[0])(old, value)
        for model, mix in snapshot.mixes.items():
            other = result.mixes.get(model)
            counts = mix.counts if other is None else mix.counts + other.counts
            result.mixes[model] = Mix(counts, mix.reference, mix.reference_rows)
    for model, mix in result.mixes.items():
        labels = (("model", model[0]), ("version", model[1]))
        for name, value in zip(_DRIFT_GAUGES, mix.drift(), strict=True):
            if name in result.families:
                result.families[name].samples[name, labels] = value
    return result


def _rule(name: str, kind: str, sample: str) -> Callable[[float, float], float]:
    if kind in _COUNTED:
        return min if sample.endswith("_created") else _sum
    if name in SUMMED_GAUGES:
        return _sum
    return min if name in SMALLEST_GAUGES else max


def _sum(a: float, b: float) -> float:
    return a + b


def to_metrics(snapshot: Snapshot) -> Iterator[Metric]:
    """Yield ``snapshot`` as a collector does."""
    for name, family in snapshot.families.items():
        metric = Metric(name, family.documentation, family.type, family.unit)
        for (sample, labels), value in family.samples.items():
            metric.add_sample(sample, dict(labels), value)
        yield metric
