"""One run of a table, and the JSON file that is kept of it."""

from __future__ import annotations

import os
import platform
import shutil
import time
from collections.abc import Callable
from functools import lru_cache
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from pydantic import ValidationError

from training.checkpoint import read_json, write_json
from training.config import EXECUTION, TrainingConfig
from training.divergence import DivergedError
from training.fit import fit
from training.inference import probabilities
from training.paper.datasets import DataSet, Rows, read
from training.paper.order import Order
from training.paper.recorder import Recorder
from training.run import RUN_FILE
from training.schedule import MIN_STEPS
from training.scores import score

FORMAT = 1
_VERSIONS = ("nvisa", "torch", "numpy", "scikit-learn", "umap-learn")

Predict = Callable[[np.ndarray], np.ndarray]
Say = Callable[[str], None]


class StaleRun(ValueError):
    """A result is there of other hyper-parameters than are wanted now."""


def finished(order: Order) -> dict[str, Any] | None:
    """The result of a run, if it is there.

    Raises
    ------
    StaleRun
        If it is of other hyper-parameters.
    CheckpointError
        If the file is damaged.
    """
    if not order.result.exists():
        return None
    document: dict[str, Any] = read_json(order.result)
    wanted = _deciding(order.job.config)
    try:
        found = _deciding(TrainingConfig.model_validate(document["config"]))
    except (KeyError, ValidationError) as error:
        raise StaleRun(f"{order.result} is no run of this version: move it away ({error})") from error
    if different := sorted(name for name in wanted if wanted[name] != found[name]):
        shown = ", ".join(f"{name} {found[name]!r}, now {wanted[name]!r}" for name in different)
        raise StaleRun(
            f"{order.result} was made with other hyper-parameters ({shown}): move it away, "
            "or use another --output"
        )
    return document


def carry_out(order: Order, say: Say) -> dict[str, Any]:
    """Fit and score one run, write its result, and return it.

    A run of NVISA goes on from its last checkpoint, if a killed process left one; a baseline begins anew. One
    that diverges has a result, too.
    """
    job = order.job
    rows = _rows(job.dataset, order.data, job.method.max_rows)
    config = job.config.model_copy(update={"device": order.device})
    recorder = Recorder(say)
    document: dict[str, Any] = {
        "format": FORMAT,
        "dataset": job.dataset.name,
        "method": job.method.key,
        "seed": job.seed,
        "source": rows.source,
        "fingerprint": rows.fingerprint,
        "rows": {"train": len(rows.train), "test": len(rows.test)},
        "config": config.model_dump(mode="json"),
        "steps_per_epoch": steps_per_epoch(len(rows.train), config.batch_size),
    }
    began = time.monotonic()
    try:
        if job.method.baseline is None:
            predict, seconds = _nvisa(order, rows, config, recorder)
        else:
            from training.baselines import BASELINES

            fitted = BASELINES[job.method.baseline].fit(rows.train, config, say)
            predict, seconds = fitted.predict, time.monotonic() - began
    except DivergedError as error:
        document |= {
            "diverged": {"epoch": recorder.epochs_done(order.model), "error": str(error)},
            "seconds": round(time.monotonic() - began, 1),
        }
    else:
        began = time.monotonic()
        document |= {"scores": scores(predict, rows, config.n_clusters), "seconds": round(seconds, 1)}
        document["scoring_seconds"] = round(time.monotonic() - began, 1)
    if job.method.baseline is None:
        document["history"] = recorder.curves(order.model)
    document |= {
        "threads": torch.get_num_threads(),
        "machine": machine(config),
        "versions": {name: version(name) for name in _VERSIONS},
    }
    order.result.parent.mkdir(parents=True, exist_ok=True)
    write_json(order.result, document)
    # Its checkpoints have served.
    shutil.rmtree(order.model / "restart-0", ignore_errors=True)
    if "diverged" in document:
        shutil.rmtree(order.model, ignore_errors=True)
    return document


def _nvisa(order: Order, rows: Rows, config: TrainingConfig, recorder: Recorder) -> tuple[Predict, float]:
    resume = (order.model / RUN_FILE).exists()
    if not resume:
        shutil.rmtree(order.model, ignore_errors=True)  # killed before it had begun
    fitted = fit(
        config,
        rows.train,
        rows.spec,
        name=order.dataset,
        fingerprint=rows.fingerprint,
        directory=order.model,
        resume=resume,
        progress=recorder,
    )
    fitted.save(order.model)
    return (
        lambda x: probabilities(fitted.model, x).argmax(1),
        fitted.restarts[fitted.chosen].seconds,
    )


def scores(predict: Predict, rows: Rows, n_clusters: int) -> dict[str, dict[str, Any]]:
    """ACC, NMI and ARI on the test rows, and on all rows; here, and nowhere before, labels are read."""
    test = np.asarray(predict(rows.test))
    everything = np.concatenate([np.asarray(predict(rows.train)), test])
    labels = np.concatenate([rows.train_labels, rows.test_labels])
    found = {
        "test": score(test, n_clusters, labels=rows.test_labels),
        "all": score(everything, n_clusters, labels=labels),
    }
    return {
        name: {
            "acc": entry.acc,
            "nmi": entry.nmi,
            "ari": entry.ari,
            "n_rows": entry.n_rows,
            "empty_clusters": len(entry.empty_clusters),
        }
        for name, entry in found.items()
    }


def steps_per_epoch(n_rows: int, batch_size: int) -> int:
    """Batches an epoch, as `training.schedule.batches` cuts them."""
    return n_rows // min(batch_size, -(-n_rows // MIN_STEPS))


def machine(config: TrainingConfig) -> str:
    """What a run ran on, in a few words."""
    device = (
        f", {torch.cuda.get_device_name()}" if config.device != "cpu" and torch.cuda.is_available() else ""
    )
    return f"{os.cpu_count()} cores, {platform.machine()}, {platform.system()}{device}"


def _deciding(config: TrainingConfig) -> dict[str, Any]:
    """Hyper-parameters that decide a result."""
    return config.model_dump(mode="json", exclude=EXECUTION - {"epochs"})


@lru_cache(maxsize=1)
def _rows(dataset: DataSet, folder: Path, most: int | None) -> Rows:
    return read(dataset, folder, most)
