"""A fit: one or several runs, one of them chosen without labels, and what is kept of it."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from serving.bundle import InputSpec
from training.config import TrainingConfig
from training.data import check_fit
from training.divergence import DivergedError
from training.fitted import Fitted, RestartSummary, summarise
from training.loop import train
from training.precision import resolve_device
from training.rows import Rows, place
from training.run import open_run
from training.selection import choose
from training.state import Run
from training.warm_start import WarmStart
from training.warm_start import warm_start as take_weights


class Progress(Protocol):
    """Hears how a fit goes on; `training.progress` shows it to a person."""

    def say(self, message: str) -> None:
        """Take a message."""

    def restart(self, index: int, total: int, epochs: int) -> None:
        """Learn that restart ``index`` of ``total`` begins, to run for ``epochs``."""

    def epoch(self, record: Mapping[str, Any]) -> None:
        """Take an epoch's record."""


class Silent:
    """Progress nobody sees."""

    def say(self, message: str) -> None:
        """Pass over."""

    def restart(self, index: int, total: int, epochs: int) -> None:
        """Pass over."""

    def epoch(self, record: Mapping[str, Any]) -> None:
        """Pass over."""


def fit(
    config: TrainingConfig,
    x: np.ndarray,
    spec: InputSpec,
    *,
    name: str = "array",
    fingerprint: str = "",
    directory: Path | None = None,
    resume: bool = False,
    warm_start: Fitted | None = None,
    progress: Progress | None = None,
) -> Fitted:
    """Fit ``config.restarts`` runs, with seeds ``seed, seed + 1, ...``, and keep the one that scores best.

    No label comes near this function.

    Parameters
    ----------
    config
        Hyper-parameters.
    x
        ``(n, *spec.shape)`` in ``spec.dtype``; if memory-mapped, any real type that is cast to it.
    spec
        Description of one row.
    name, fingerprint
        Of the data, for the record.
    directory
        Where checkpoints and histories go, one folder a restart; nothing is written with ``None``.
    resume
        Go on from the checkpoints in ``directory``.
    warm_start
        An older fit, whose weights, standardisation and names of clusters every run begins with, in place of
        ``config.initialisation``; the schedules are those of ``config``, from their beginning.
    progress
        Who hears of it; nobody by default.

    Raises
    ------
    ValueError
        If the data cannot be clustered, the device is not there, ``warm_start`` is of another architecture,
        or ``directory`` holds another run (`training.checkpoint.CheckpointError`); then nothing was written.
    DivergedError
        If every run diverged; one that did not is enough to go on.
    """
    check_fit(x, config.n_clusters, unit=config.likelihood == "bernoulli")
    progress = progress or Silent()
    device = resolve_device(config.device)
    old = take_weights(warm_start, config, spec) if warm_start is not None else None
    digest = old.digest if old is not None else None
    if directory is not None:
        open_run(directory, config, fingerprint, resume=resume, warm_start=digest)
    rows = place(x, spec, device, config.memory, progress.say)
    runs: list[Run | None] = []
    summaries: list[RestartSummary] = []
    for index in range(config.restarts):
        own = config.model_copy(update={"seed": config.seed + index, "restarts": 1})
        progress.restart(index, config.restarts, own.total_epochs)
        folder = directory / f"restart-{index}" if directory is not None else None
        run, summary = _restart(own, rows, spec, folder, resume, old, progress)
        if summary.error and config.restarts > 1:
            progress.say(f"given up: {summary.error}")
        runs.append(run)
        summaries.append(summary)
    chosen = choose([summary.score for summary in summaries])
    best = runs[chosen]
    if best is None:
        which = "the run" if config.restarts == 1 else f"all {config.restarts} runs"
        raise DivergedError(f"{which} diverged: {summaries[0].error}")
    model = best.model.eval()
    return Fitted(
        model=model,
        config=config,
        spec=spec,
        start=best.start,
        restarts=tuple(summaries),
        chosen=chosen,
        histories=tuple(run.history if run is not None else type(best.history)() for run in runs),
        data={"name": name, "fingerprint": fingerprint, "rows": len(x)},
        rows=summarise(model, x),
        names=old.names if old is not None else (),
        warm_start=digest,
    )


def _restart(
    config: TrainingConfig,
    rows: Rows,
    spec: InputSpec,
    directory: Path | None,
    resume: bool,
    warm_start: WarmStart | None,
    progress: Progress,
) -> tuple[Run | None, RestartSummary]:
    began = time.monotonic()
    try:
        run = train(
            config,
            rows,
            spec,
            directory=directory,
            resume=resume,
            warm_start=warm_start,
            say=progress.say,
            on_epoch=progress.epoch,
        )
    except DivergedError as error:
        seconds = time.monotonic() - began
        return None, RestartSummary(config.seed, -math.inf, 0, 0, seconds, str(error))
    # NaN has no place in a ranking.
    score = -math.inf if run.score is None or math.isnan(run.score) else run.score
    return run, RestartSummary(config.seed, score, run.epoch, run.rollbacks, run.seconds)
