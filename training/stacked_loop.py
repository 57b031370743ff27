"""The training loop of several runs at once: but for rounding each is what `training.loop.train` makes of it.

Runs at the same epoch train as one batched model. One that fell behind, because a fit was killed between two
checkpoints, say, catches up first; one that is in trouble leaves the stack at its last good state and is
finished alone, with the rollbacks and the halved learning rates of the ordinary loop, while the others go on.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from serving.manifest import InputSpec
from training.annealing import epsilons, learning_rate
from training.config import TrainingConfig
from training.divergence import DivergedError, trouble
from training.initialise import assign_rows
from training.loop import OnEpoch, advance, begin, complete_epoch, has_clusters
from training.networks import network_for
from training.schedule import batches
from training.stack import Stack
from training.state import CHECKPOINT_FILE, Run, save_run
from training.update import Updates
from training.warm_start import WarmStart

SayOf = Callable[[int, str], None]


@dataclass(frozen=True)
class GivenUp:
    """What became of a run that diverged for good: why, and the seconds spent on it."""

    error: str
    seconds: float


def stacks(config: TrainingConfig, spec: InputSpec, device: torch.device) -> bool:
    """Whether the restarts of a fit train at once (``restart_mode``).

    Those whose stages end as their own bounds converge do not, as a stack has one ε and one learning rate,
    nor does Gumbel-Softmax.

    Raises
    ------
    ValueError
        If they are to, and have convolutions.
    """
    convolves = "conv" in (network_for(config.network, spec), config.decoder)
    if config.restart_mode == "stacked" and convolves:
        raise ValueError(
            "restart_mode stacked needs network mlp, and auto means conv for these images: "
            "give network mlp, or use restart_mode sequential or auto"
        )
    if config.restart_mode == "auto":
        alike = not convolves and config.objective != "gumbel" and config.stage_tolerance == 0
        return alike and device.type == "cuda"
    return config.restart_mode == "stacked"


def train_stacked(
    configs: Sequence[TrainingConfig],
    rows: Tensor,
    spec: InputSpec,
    *,
    directories: Sequence[Path | None],
    resume: bool = False,
    warm_start: WarmStart | None = None,
    say: SayOf = lambda _, __: None,
    on_epoch: OnEpoch = lambda _: None,
) -> list[Run | GivenUp]:
    """Train runs that differ in the seed alone, as many at once as are at the same epoch.

    Parameters
    ----------
    configs
        One a run.
    rows, spec, resume, warm_start
        As for `training.loop.train`.
    directories
        Where each run keeps its checkpoint and history.
    say
        Called with a run's place in ``configs`` and a message for a person.
    on_epoch
        Called with each epoch's record, of a stack the mean of its runs'.

    Returns
    -------
    list
        For each run what became of it.

    Raises
    ------
    CheckpointError
        If a checkpoint is damaged or belongs to another configuration.
    """
    outcomes: dict[int, Run | GivenUp] = {}

    def attempt(index: int, until: int | None) -> None:
        """Bring a run to its start, or on to an epoch, alone."""
        began = time.monotonic()
        own, known = configs[index], outcomes.get(index)
        folder, tell = directories[index], _said_of(index, say)
        try:
            if until is None or not isinstance(known, Run):
                outcomes[index] = begin(
                    own, rows, spec, directory=folder, resume=resume, warm_start=warm_start, say=tell
                )
            else:
                advance(known, own, rows, until, directory=folder, say=tell, on_epoch=on_epoch)
        except DivergedError as error:
            before = known.seconds if isinstance(known, Run) else 0.0
            outcomes[index] = GivenUp(str(error), before + time.monotonic() - began)
            say(index, f"given up: {error}")

    for index in range(len(configs)):
        attempt(index, None)
    total = configs[0].total_epochs
    troubled: set[int] = set()
    while True:
        unfinished = {i: r for i, r in outcomes.items() if isinstance(r, Run) and not _finished(r, total)}
        if not unfinished:
            return [outcomes[index] for index in range(len(configs))]
        social = {i: r for i, r in unfinished.items() if i not in troubled and r.rate_scale == 1}
        if not social:
            attempt(min(unfinished), total)
            continue
        lowest = min(run.epoch for run in social.values())
        group = [i for i, run in social.items() if run.epoch == lowest]
        until = min((run.epoch for run in social.values() if run.epoch > lowest), default=total)
        if len(group) == 1 or total == 0:
            attempt(group[0], until)
            continue
        stack = Stack([social[i] for i in group], [configs[i] for i in group])
        places = [directories[i] for i in group]
        for place, wrong in _advance_together(stack, rows, until, places, on_epoch).items():
            troubled.add(group[place])
            say(group[place], f"{wrong}: finished alone from there, after the others")


def _finished(run: Run, total: int) -> bool:
    # A fit of no epochs still takes its score.
    return run.epoch >= total and (total > 0 or run.score is not None)


def _said_of(index: int, say: SayOf) -> Callable[[str], None]:
    return lambda message: say(index, message)


def _advance_together(
    stack: Stack, rows: Tensor, until: int, directories: Sequence[Path | None], on_epoch: OnEpoch
) -> dict[int, str]:
    """Train a stack to epoch ``until``, or through the first epoch with trouble, and dissolve it.

    Returns what was wrong with which runs: those are at the beginning of that epoch, the others past it.
    """
    saved = time.monotonic()
    wrong: dict[int, str] = {}
    epoch = stack.runs[0].epoch
    updates = Updates(stack, *stack.configs)
    while epoch < until and not wrong:
        began = time.monotonic()
        healthy = []
        for index, (run, record) in enumerate(
            zip(stack.runs, _train_epoch(stack, rows, updates), strict=True)
        ):
            if (said := trouble(record["bound"], run.history)) is not None:
                wrong[index] = f"{said} at epoch {epoch}"
            else:
                complete_epoch(run, record, rows, stack.configs[index])
                healthy.append(record)
        epoch += 1
        for run in stack.runs:
            run.seconds += (time.monotonic() - began) / len(stack.runs)
        if healthy:
            on_epoch({**_mean(healthy), "epochs_left": stack.configs[0].total_epochs - epoch})
        if not wrong:
            stack.keep()
            if epoch < until and time.monotonic() - saved >= stack.configs[0].checkpoint_seconds:
                _save(stack, directories)
                saved = time.monotonic()
    for index in range(len(stack.runs)):
        stack.leave(index, good=index in wrong)
    _save(stack, directories)
    return wrong


def _save(stack: Stack, directories: Sequence[Path | None]) -> None:
    for run, config, directory in zip(stack.runs, stack.configs, directories, strict=True):
        if directory is not None:
            save_run(run, directory / CHECKPOINT_FILE, config)


def _mean(records: Sequence[dict[str, Any]]) -> dict[str, Any]:
    together = {name: sum(record[name] for record in records) for name in records[0]}
    means = {name: value / len(records) for name, value in together.items()}
    return means | {"epoch": records[0]["epoch"], "seconds": together["seconds"]}


def _epoch_batches(stack: Stack, rows: Tensor, updates: Updates) -> Iterator[tuple[Tensor, Tensor | None]]:
    """Each run's own rows ``(S, B, *shape)`` and, while there are any, their anchors."""
    anchors = [run.anchors for run in stack.runs if run.anchors is not None]
    size = stack.configs[0].batch_size
    orders = (batches(len(rows), size, generator) for generator in updates.generators)
    for each in zip(*orders, strict=True):
        given = torch.stack([a[i] for a, i in zip(anchors, each, strict=True)]) if anchors else None
        yield rows[torch.stack(each)], given


def _train_epoch(stack: Stack, rows: Tensor, updates: Updates) -> list[dict[str, Any]]:
    """One epoch of every run, each on its own rows and random numbers; the host waits once, at its end."""
    began = time.perf_counter()
    first, config = stack.runs[0], stack.configs[0]
    epsilon_x, epsilon_z = epsilons(config, first.epoch, float(first.model.first_epsilon_x))
    for model in (stack.model, *(run.model for run in stack.runs)):
        model.epsilon_x.fill_(epsilon_x)
        model.epsilon_z.fill_(epsilon_z)
    rate = learning_rate(config, first.epoch)
    for group in stack.optimiser.param_groups:
        group["lr"].fill_(rate)
    if config.anchor > 0 and first.epoch % config.epsilon_every == 0 and has_clusters(first):
        for run in stack.runs:
            run.anchors = assign_rows(run.model, rows)
    updates.begin(first.epoch)
    updates.take(_epoch_batches(stack, rows, updates))
    bound, usage, steps = updates.bound, updates.usage, updates.steps
    finite = torch.stack([p.isfinite().flatten(1).all(1) for p in stack.model.parameters()]).all(0)
    shares = usage / steps
    entropy = -(shares * shares.clamp_min(1e-12).log()).sum(-1)
    found = torch.stack([bound / steps, finite.double(), entropy.exp()]).T.tolist()
    return [
        {
            "epoch": first.epoch,
            "bound": mean_bound if usable else math.nan,
            "epsilon_x": epsilon_x,
            "epsilon_z": epsilon_z,
            "learning_rate": rate,
            "effective_clusters": effective,
            "seconds": (time.perf_counter() - began) / len(stack.runs),
        }
        for mean_bound, usable, effective in found
    ]
