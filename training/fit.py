"""A fit: one or several runs, one of them chosen without labels, and what is kept of it."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch

from serving.manifest import InputSpec
from training.config import TrainingConfig
from training.data import check_fit
from training.divergence import DivergedError
from training.fitted import Fitted, RestartSummary, summarise
from training.history import History
from training.initialise import Start, assign_rows
from training.loop import train
from training.medoid import mean_agreement
from training.model import NVISAModel
from training.precision import resolve_device
from training.ranks import ALONE, World
from training.rows import MappedRows, Rows, place
from training.run import open_run
from training.selection import SCORE_ROWS, choose
from training.stacked_loop import GivenUp, stacks, train_stacked
from training.state import Run
from training.warm_start import WarmStart
from training.warm_start import warm_start as take_weights


class Progress(Protocol):
    """Hears how a fit goes on; `training.progress` shows it to a person."""

    def say(self, message: str) -> None:
        """Take a message."""

    def restart(self, index: int, total: int, epochs: int) -> None:
        """Learn that restart ``index`` of ``total`` begins, to run for at most ``epochs``."""

    def stack(self, indices: Sequence[int], total: int, epochs: int) -> None:
        """Learn that restarts ``indices`` of ``total`` begin, all at once."""

    def epoch(self, record: Mapping[str, Any]) -> None:
        """Take an epoch's record, of a stack the mean of its runs', and the ``epochs_left`` at most."""


class Silent:
    """Progress nobody sees."""

    def say(self, message: str) -> None:
        """Pass over."""

    def restart(self, index: int, total: int, epochs: int) -> None:
        """Pass over."""

    def stack(self, indices: Sequence[int], total: int, epochs: int) -> None:
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
    world: World = ALONE,
) -> Fitted:
    """Fit ``config.restarts`` runs, with seeds ``seed, seed + 1, ...``, and keep their medoid.

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
    world
        The processes over which the restarts are spread; each calls this, with the same arguments, and gets
        the same result.

    Raises
    ------
    ValueError
        If the data cannot be clustered, the device is not there, ``warm_start`` is of another architecture,
        or ``directory`` holds another run (`training.checkpoint.CheckpointError`); then nothing was written.
    DivergedError
        If every run diverged; one that did not is enough to go on.
    """
    progress = progress or Silent()

    if warm_start is not None and not spec.columns and not warm_start.spec.difference(spec):
        spec = warm_start.spec  # its weights are of these columns, whatever they are called here

    def prepare() -> tuple[torch.device, bool, WarmStart | None]:
        check_fit(x, config.n_clusters, unit=config.likelihood == "bernoulli")
        if config.device != "cpu":
            world.take_device()
        device = resolve_device(config.device)
        stacked = stacks(config, spec, device)
        old = take_weights(warm_start, config, spec) if warm_start is not None else None
        if directory is not None and world.rank == 0:
            digest = old.digest if old is not None else None
            open_run(directory, config, fingerprint, spec, resume=resume, warm_start=digest)
        return device, stacked, old

    device, stacked, old = world.together(prepare)
    rows = place(x, spec, device, config.memory, progress.say)
    if (idle := world.size - config.restarts) > 0:
        progress.say(f"{config.restarts} restarts for {world.size} ranks: {idle} of them have nothing to do")
    own = {
        index: config.model_copy(update={"seed": config.seed + index, "restarts": 1})
        for index in world.share(config.restarts)
    }
    folders = {index: directory / f"restart-{index}" if directory is not None else None for index in own}
    stacked = stacked and len(own) > 1
    if stacked and isinstance(rows, MappedRows):
        progress.say("restarts train one after the other: all at once they need the rows on the device")
    outcomes: dict[int, tuple[Run | None, RestartSummary]] = {}
    if stacked and isinstance(rows, torch.Tensor):
        outcomes = _stack(own, rows, spec, folders, resume, old, progress, config.restarts)
    else:
        for index, each in own.items():
            progress.restart(index, config.restarts, each.total_epochs)
            outcomes[index] = _restart(each, rows, spec, folders[index], resume, old, progress)
            if (error := outcomes[index][1].error) and config.restarts > 1:
                progress.say(f"given up: {error}")
    summaries = world.gather({index: summary for index, (_, summary) in outcomes.items()})
    histories = world.gather({i: run.history if run else History() for i, (run, _) in outcomes.items()})
    world.together(lambda: _check_any(list(summaries.values())))
    if config.restarts > 1:
        some = rows[:: -(-len(rows) // SCORE_ROWS)]
        own_clusters = {
            i: assign_rows(run.model, some).cpu().numpy() for i, (run, _) in outcomes.items() if run
        }
        clusters = world.gather(own_clusters)
        indices = sorted(clusters)  # one order on however many ranks, for sums of floats
        agreements = mean_agreement([clusters[index] for index in indices])
        for index, agreement in zip(indices, agreements, strict=True):
            summaries[index] = replace(summaries[index], agreement=agreement if len(indices) > 1 else None)
    chosen = choose([summaries[index] for index in range(config.restarts)])
    model, start = _hand_round(outcomes[chosen][0] if chosen in outcomes else None, config, spec, world)
    model = model.to(rows.device).eval()
    return Fitted(
        model=model,
        config=config,
        spec=spec,
        start=start,
        restarts=tuple(summaries[index] for index in range(config.restarts)),
        chosen=chosen,
        histories=tuple(histories[index] for index in range(config.restarts)),
        data={"name": name, "fingerprint": fingerprint, "rows": len(x)},
        rows=summarise(model, x),
        names=old.names if old is not None else (),
        warm_start=old.digest if old is not None else None,
    )


def _check_any(summaries: list[RestartSummary]) -> None:
    if all(summary.error for summary in summaries):
        which = "the run" if len(summaries) == 1 else f"all {len(summaries)} runs"
        raise DivergedError(f"{which} diverged: {summaries[0].error}")


def _hand_round(
    best: Run | None, config: TrainingConfig, spec: InputSpec, world: World
) -> tuple[NVISAModel, Start | None]:
    """The chosen run's model and start on every rank; ``best`` is the run on the rank that trained it."""
    own = {} if best is None else {0: ({k: v.cpu() for k, v in best.model.state_dict().items()}, best.start)}
    tensors, start = world.gather(own)[0]
    if best is not None:
        return best.model, start
    model = NVISAModel(config, spec)
    model.load_state_dict(tensors)
    return model, start


def _stack(
    configs: Mapping[int, TrainingConfig],
    rows: torch.Tensor,
    spec: InputSpec,
    folders: Mapping[int, Path | None],
    resume: bool,
    warm_start: WarmStart | None,
    progress: Progress,
    total: int,
) -> dict[int, tuple[Run | None, RestartSummary]]:
    indices = list(configs)
    progress.stack(indices, total, configs[indices[0]].total_epochs)
    outcomes = train_stacked(
        list(configs.values()),
        rows,
        spec,
        directories=list(folders.values()),
        resume=resume,
        warm_start=warm_start,
        say=lambda which, message: progress.say(f"restart {indices[which] + 1}/{total}: {message}"),
        on_epoch=progress.epoch,
    )
    return {index: _outcome(configs[index], found) for index, found in zip(indices, outcomes, strict=True)}


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
        return _outcome(config, GivenUp(str(error), time.monotonic() - began))
    return _outcome(config, run)


def _outcome(config: TrainingConfig, run: Run | GivenUp) -> tuple[Run | None, RestartSummary]:
    if isinstance(run, GivenUp):
        return None, RestartSummary(config.seed, -math.inf, 0, 0, run.seconds, run.error)
    # NaN has no place in a record.
    score = -math.inf if run.score is None or math.isnan(run.score) else run.score
    return run, RestartSummary(config.seed, score, run.epoch, run.rollbacks, run.seconds)
