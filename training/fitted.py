"""A fitted model and what is known of its training, in memory and as a directory.

``model.safetensors`` (weights, and the AE+GMM start), ``rows.safetensors`` (a few training rows, for the
report and for parity at export), ``origin.safetensors`` (the backbone of features, if they have one) and
``fit.json`` (everything else). Nothing is pickled.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch

from serving.manifest import InputSpec, Reference
from training.checkpoint import CheckpointError, load_tensors, read_json, save_tensors, write_json
from training.config import TrainingConfig
from training.history import History
from training.inference import assign
from training.initialise import Start
from training.model import NVISAModel
from training.novelty import Ranks, calibrate
from training.origin import Origin

FORMAT = 1
MODEL_FILE, ROWS_FILE, FIT_FILE = "model.safetensors", "rows.safetensors", "fit.json"
ORIGIN_FILE = "origin.safetensors"
CONFIDENCE_BINS = 20
SAMPLE_ROWS = 2_000
TYPICAL_PER_CLUSTER = 10
_ARRAYS = ("sample", "typical", "mean_confidence")


@dataclass(frozen=True)
class RestartSummary:
    """How one run went.

    Attributes
    ----------
    score
        The warm bound (`training.selection.warm_bound`), nats a row; ``-inf`` if the run diverged.
    agreement
        Mean adjusted Rand index with the other restarts, by which one is chosen; ``None`` where there are no
        others, or the run diverged.
    """

    seed: int
    score: float
    epochs: int
    rollbacks: int
    seconds: float
    error: str | None = None
    agreement: float | None = None


@dataclass(frozen=True)
class TrainingRows:
    """What is kept of the training data.

    Attributes
    ----------
    sample
        Up to 2,000 evenly spread rows, ``(n, *shape)``.
    typical
        The most typical rows of each cluster, ``(K, 10, *shape)``; zeros where a cluster has fewer rows.
    reference
        Cluster shares and the histogram of confidence over all training rows.
    mean_confidence
        ``(K,)``, NaN for an empty cluster.
    ranks
        What novelty is a rank among; ``None`` in runs fitted before it was kept.
    """

    sample: np.ndarray
    typical: np.ndarray
    reference: Reference
    mean_confidence: np.ndarray
    ranks: Ranks | None = None


@dataclass(frozen=True)
class Fitted:
    """The chosen run's model with its provenance.

    Attributes
    ----------
    data
        ``{"name", "fingerprint", "rows"}`` of the training data.
    names
        Names given to the clusters, by id; none given: ``()``. See `cluster_names`.
    warm_start
        SHA-256 of the weights the run began with, where they were another run's.
    origin
        Which backbone made the features that the model was fitted to, if that is known.
    """

    model: NVISAModel
    config: TrainingConfig
    spec: InputSpec
    start: Start | None
    restarts: tuple[RestartSummary, ...]
    chosen: int
    histories: tuple[History, ...]
    data: dict[str, Any]
    rows: TrainingRows
    names: tuple[str, ...] = ()
    warm_start: str | None = None
    origin: Origin | None = None

    @property
    def cluster_names(self) -> tuple[str, ...]:
        """A name for every cluster: the one given to it, or ``cluster-<id>``."""
        return self.names or tuple(f"cluster-{index}" for index in range(self.config.n_clusters))

    @property
    def start_name(self) -> str:
        """What the run started from, in a few words."""
        if self.warm_start is not None:
            return "the old model"
        return {"gmm": "AE+GMM", "umap": "UMAP+GMM"}.get(self.config.initialisation, "random weights")

    def save(self, directory: Path) -> None:
        """Write to ``directory``, each file atomically, ``fit.json`` last."""
        directory.mkdir(parents=True, exist_ok=True)
        tensors = {f"model.{name}": value for name, value in self.model.state_dict().items()}
        if self.start is not None:
            tensors |= {f"start.{name}": value for name, value in self.start.tensors().items()}
        save_tensors(directory / MODEL_FILE, tensors, {})
        kept = {name: torch.from_numpy(np.ascontiguousarray(getattr(self.rows, name))) for name in _ARRAYS}
        if self.rows.ranks is not None:
            kept["ranks.energies"] = torch.from_numpy(self.rows.ranks.energies)
            kept["ranks.sigma"] = torch.tensor(self.rows.ranks.sigma, dtype=torch.float64)
        save_tensors(directory / ROWS_FILE, kept, {})
        if self.origin is not None:
            self.origin.save(directory / ORIGIN_FILE)
        write_json(
            directory / FIT_FILE,
            {
                "format": FORMAT,
                "config": self.config.model_dump(mode="json"),
                "input": self.spec.model_dump(mode="json"),
                "restarts": [vars(restart) | {"score": repr(restart.score)} for restart in self.restarts],
                "chosen": self.chosen,
                "data": self.data,
                "names": list(self.names),
                "warm_start": self.warm_start,
                "reference": self.rows.reference.model_dump(mode="json"),
                "histories": [list(history) for history in self.histories],
            },
        )

    @classmethod
    def load(cls, directory: Path, device: torch.device | None = None) -> Self:
        """Read what `save` wrote.

        Raises
        ------
        CheckpointError
            If a file is missing or damaged, or of another format.
        """
        if not (directory / FIT_FILE).exists():
            raise CheckpointError(
                f"cannot read {directory}: it has no {FIT_FILE}, so it is no run, or its fit did not finish"
            )
        document = read_json(directory / FIT_FILE)
        if document.get("format") != FORMAT:
            raise CheckpointError(
                f"{directory / FIT_FILE}: format {document.get('format')}, expected {FORMAT}"
            )
        config = TrainingConfig.model_validate(document["config"])
        spec = InputSpec.model_validate(document["input"])
        tensors, _ = load_tensors(directory / MODEL_FILE)
        model = NVISAModel(config, spec)
        model.load_state_dict(
            {k.removeprefix("model."): v for k, v in tensors.items() if k.startswith("model.")}
        )
        start = {k.removeprefix("start."): v for k, v in tensors.items() if k.startswith("start.")}
        kept, _ = load_tensors(directory / ROWS_FILE)
        reference = Reference.model_validate(document["reference"])
        ranks = None
        if "ranks.sigma" in kept:
            sigma, energies = kept["ranks.sigma"].item(), kept["ranks.energies"].numpy()
            ranks = Ranks(sigma, energies, reference.rows)
        return cls(
            model=model.to(device).eval(),
            config=config,
            spec=spec,
            start=Start.from_tensors(start) if start else None,
            restarts=tuple(
                RestartSummary(**entry | {"score": float(entry["score"])}) for entry in document["restarts"]
            ),
            chosen=document["chosen"],
            histories=tuple(History(history) for history in document["histories"]),
            data=document["data"],
            names=tuple(document.get("names", ())),
            warm_start=document.get("warm_start"),
            origin=Origin.load(directory / ORIGIN_FILE)[0] if (directory / ORIGIN_FILE).exists() else None,
            rows=TrainingRows(
                reference=reference,
                ranks=ranks,
                **{name: kept[name].numpy() for name in _ARRAYS},
            ),
        )


def summarise(model: NVISAModel, x: np.ndarray) -> TrainingRows:
    """What to keep of training rows ``x (n, *shape)``, possibly memory-mapped, under a fitted model."""
    from training.report import typical_rows  # brings matplotlib, which loading a model does not need

    clusters, confidences, fit = assign(model, x)
    n_clusters = model.n_clusters
    sizes = np.bincount(clusters, minlength=n_clusters)
    sums = np.bincount(clusters, weights=confidences, minlength=n_clusters)
    edges = np.linspace(0, 1, CONFIDENCE_BINS + 1)
    counts = np.histogram(np.clip(confidences, 0, 1), edges)[0]
    indices = typical_rows(clusters, confidences, fit, TYPICAL_PER_CLUSTER, n_clusters)
    typical = np.array(x[indices], model.spec.dtype)
    typical[indices < 0] = 0
    with np.errstate(invalid="ignore"):
        mean_confidence = np.where(sizes > 0, sums / np.maximum(sizes, 1), np.nan)
    return TrainingRows(
        sample=np.array(x[:: -(-len(x) // SAMPLE_ROWS)], model.spec.dtype),
        typical=typical,
        reference=Reference(
            cluster_shares=tuple((sizes / len(x)).tolist()),
            confidence_edges=tuple(edges.tolist()),
            confidence_shares=tuple((counts / len(x)).tolist()),
            rows=len(x),
        ),
        mean_confidence=mean_confidence,
        ranks=calibrate(model, x),
    )
