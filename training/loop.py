"""The training loop: one run from its start, or its last checkpoint, to its last epoch."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from serving.manifest import InputSpec
from training.annealing import epochs_left, epsilons, learning_rate, scheduled_epoch
from training.config import TrainingConfig
from training.divergence import DivergedError, trouble
from training.initialise import assign_rows, initialise_gmm, initialise_umap, start_at
from training.model import Baseline, NVISAModel
from training.rows import Rows, fetch, moments, part_rows
from training.schedule import batches
from training.selection import warm_bound
from training.state import CHECKPOINT_FILE, Run, restore_run, save_run
from training.update import Updates
from training.warm_start import WarmStart, drifted_features

# Leading eigenvalue of MNIST's covariance in units of x / 256: the data at which the paper starts ε at 1.
MNIST_LEADING_VARIANCE = 5.2

Say = Callable[[str], None]
OnEpoch = Callable[[Mapping[str, Any]], None]


def train(
    config: TrainingConfig,
    rows: Rows,
    spec: InputSpec,
    *,
    directory: Path | None = None,
    resume: bool = False,
    warm_start: WarmStart | None = None,
    say: Say = lambda _: None,
    on_epoch: OnEpoch = lambda _: None,
) -> Run:
    """Train one run on ``rows`` to ``config.total_epochs``, or until its last stage has converged.

    Parameters
    ----------
    config
        Hyper-parameters; the seed decides everything random.
    rows
        ``(n, *shape)``, as they came: uint8 stays uint8. On the training device, or brought there.
    spec
        Description of one row.
    directory
        Where to keep the checkpoint and ``history.jsonl``; none with ``None``.
    resume
        Go on from the checkpoint in ``directory``, if there is one.
    warm_start
        Weights to begin with, in place of ``config.initialisation``.
    say, on_epoch
        Called with messages for a person, and with each epoch's record and ``epochs_left``, how many more
        there can be.

    Raises
    ------
    CheckpointError
        If the checkpoint is damaged or belongs to another configuration.
    DivergedError
        If the loss stays non-finite or the bound keeps collapsing.
    """
    run = begin(config, rows, spec, directory=directory, resume=resume, warm_start=warm_start, say=say)
    advance(run, config, rows, config.total_epochs, directory=directory, say=say, on_epoch=on_epoch)
    return run


def begin(
    config: TrainingConfig,
    rows: Rows,
    spec: InputSpec,
    *,
    directory: Path | None = None,
    resume: bool = False,
    warm_start: WarmStart | None = None,
    say: Say = lambda _: None,
) -> Run:
    """Bring a run to its start, or to its last checkpoint; parameters and errors as for `train`."""
    began = time.monotonic()
    checkpoint = None
    if directory is not None:
        directory.mkdir(parents=True, exist_ok=True)
        checkpoint = directory / CHECKPOINT_FILE
    run = _build(config, rows, spec, warm_start)
    if resume and checkpoint is not None and checkpoint.exists():
        restore_run(run, checkpoint, config)
        say(f"resumed at epoch {run.epoch}")
    else:
        if warm_start is None:
            _initialise(run, rows, config, say)
        else:
            _go_on_from(run, rows, say)
        run.seconds = time.monotonic() - began
        if checkpoint is not None:
            save_run(run, checkpoint, config)
    return run


def advance(
    run: Run,
    config: TrainingConfig,
    rows: Rows,
    until: int,
    *,
    directory: Path | None = None,
    say: Say = lambda _: None,
    on_epoch: OnEpoch = lambda _: None,
) -> None:
    """Train a run to epoch ``until`` at most; parameters and errors as for `train`."""
    checkpoint = directory / CHECKPOINT_FILE if directory is not None else None
    saved = time.monotonic()
    began = saved - run.seconds
    good = {name: value.clone() for name, value in run.tensors().items()}
    updates = Updates(run, config)
    while run.epoch < until and epochs_left(config, run.bounds) > 0:
        record = _train_epoch(run, rows, config, updates)
        if (wrong := trouble(record["bound"], run.history)) is not None:
            _roll_back(run, good, wrong, config.max_rollbacks, say)
            continue
        complete_epoch(run, record, rows, config)
        run.seconds = time.monotonic() - began
        for name, value in run.tensors().items():
            if name in good:
                good[name].copy_(value)
            else:
                good[name] = value.clone()
        left = epochs_left(config, run.bounds)
        on_epoch({**record, "epochs_left": left})
        if checkpoint is not None and (left == 0 or time.monotonic() - saved >= config.checkpoint_seconds):
            save_run(run, checkpoint, config)
            saved = time.monotonic()
    # Those of a CUDA graph would keep all of its memory.
    run.optimiser.zero_grad()
    if config.total_epochs == 0 and run.score is None:
        run.score = warm_bound(run.model, rows, config)


def complete_epoch(run: Run, record: Mapping[str, Any], rows: Rows, config: TrainingConfig) -> None:
    """Count an epoch that went well, and take the warm bound when it is due."""
    first_stage = scheduled_epoch(config, run.bounds) < config.epsilon_every
    run.epoch += 1
    run.history.append(record)
    first_stage_ended = first_stage and scheduled_epoch(config, run.bounds) >= config.epsilon_every
    if first_stage_ended or (first_stage and run.epoch == config.total_epochs):
        run.score = warm_bound(run.model, rows, config)


def _build(config: TrainingConfig, rows: Rows, spec: InputSpec, warm_start: WarmStart | None = None) -> Run:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        model = NVISAModel(config, spec)
        baseline = Baseline(spec.row_size, config.hidden_sizes[-1]) if config.objective == "nvil" else None
    if warm_start is not None:
        model.load_state_dict(warm_start.weights)
    elif spec.dtype == "float32" and config.likelihood == "gaussian":
        model.standardise_as(*moments(rows))
    model.first_epsilon_x.fill_(_first_epsilon(model, rows, config))
    model.to(rows.device)
    if baseline is not None:
        baseline.to(rows.device)
    return Run(model, baseline, adam([model] if baseline is None else [model, baseline], config))


def adam(modules: Sequence[nn.Module], config: TrainingConfig) -> torch.optim.Adam:
    """Adam over all parameters, with weight decay on the layers' weights."""
    named = [(name, parameter) for module in modules for name, parameter in module.named_parameters()]
    matrices = [p for name, p in named if _is_matrix(name, p)]
    others = [p for name, p in named if not _is_matrix(name, p)]
    groups: list[dict[str, Any]] = [
        {"params": matrices, "weight_decay": config.weight_decay},
        {"params": others},
    ]
    # The rate is a tensor on the device, and so are a fused Adam's step counts, for the sake of CUDA graphs.
    rate = torch.tensor(config.learning_rate, device=matrices[0].device)
    return torch.optim.Adam(groups, lr=rate, fused=True)


def has_clusters(run: Run) -> bool:
    """Whether q(y|x) says anything yet; a random start does not."""
    return run.epoch > 0 or run.start is not None


def _is_matrix(name: str, parameter: Tensor) -> bool:
    """Whether weight decay applies: weights of layers only, neither biases, norms nor the prior."""
    return (name.endswith("weight") and parameter.ndim > 1) or name == "z_from_y"


def _first_epsilon(model: NVISAModel, rows: Rows, config: TrainingConfig) -> float:
    if config.epsilon_x != "auto":
        return config.epsilon_x
    chosen = rows[:: -(-len(rows) // 5000)]
    sample = torch.cat([model.preprocess(part.cpu()) for part in chosen.split(part_rows(chosen.shape))])
    leading = torch.linalg.matrix_norm(sample - sample.mean(0), ord=2).square() / len(sample)
    # A sample of equal rows has no scale to tell.
    return float((leading / MNIST_LEADING_VARIANCE).sqrt()) or 1.0


def _initialise(run: Run, rows: Rows, config: TrainingConfig, say: Say) -> None:
    if config.initialisation == "gmm":
        run.start = initialise_gmm(run.model, rows, config, say)
    elif config.initialisation == "umap":
        run.start = initialise_umap(run.model, rows, config, say)


def _go_on_from(run: Run, rows: Rows, say: Say) -> None:
    """Take the weights that `_build` loaded for the start."""
    run.start = start_at(run.model)
    say("warm start: the old run's weights and standardisation, in place of an initialisation")
    if drifted := drifted_features(run.model, rows):
        shown = ", ".join(map(str, drifted[:5])) + (", ..." if len(drifted) > 5 else "")
        say(
            f"warm start: {len(drifted)} features ({shown}) lie far from where the old data had them; "
            "a fit from the beginning may be better"
        )


def _train_epoch(run: Run, rows: Rows, config: TrainingConfig, updates: Updates) -> dict[str, Any]:
    """One epoch; the host waits for the device at its ends alone."""
    began = time.perf_counter()
    scheduled = scheduled_epoch(config, run.bounds)
    epsilon_x, epsilon_z = epsilons(config, scheduled, float(run.model.first_epsilon_x))
    run.model.epsilon_x.fill_(epsilon_x)
    run.model.epsilon_z.fill_(epsilon_z)
    rate = run.rate_scale * learning_rate(config, scheduled)
    for group in run.optimiser.param_groups:
        group["lr"].fill_(rate)
    if config.anchor > 0 and scheduled % config.epsilon_every == 0 and has_clusters(run):
        run.anchors = assign_rows(run.model, rows)
    updates.begin(run.epoch)
    updates.take(_epoch_batches(rows, run.anchors, config, updates.generators[0]))
    bound, usage, steps = updates.bound, updates.usage, updates.steps
    finite = torch.stack([p.isfinite().all() for p in run.model.parameters()]).all()
    shares = usage / steps
    entropy = -(shares * shares.clamp_min(1e-12).log()).sum()
    mean_bound, usable, effective = torch.stack([bound / steps, finite.double(), entropy.exp()]).tolist()
    return {
        "epoch": run.epoch,
        "bound": mean_bound if usable else math.nan,
        "epsilon_x": epsilon_x,
        "epsilon_z": epsilon_z,
        "learning_rate": rate,
        "effective_clusters": effective,
        "seconds": time.perf_counter() - began,
    }


def _epoch_batches(
    rows: Rows, anchors: Tensor | None, config: TrainingConfig, generator: torch.Generator
) -> Iterator[tuple[Tensor, Tensor | None]]:
    """Raw rows and, while there are any, the anchors of an epoch's batches."""
    for index, raw in fetch(rows, batches(len(rows), config.batch_size, generator)):
        yield raw, anchors[index] if anchors is not None else None


def _roll_back(run: Run, good: Mapping[str, Tensor], wrong: str, most: int, say: Say) -> None:
    run.rollbacks += 1
    if run.rollbacks > most:
        raise DivergedError(
            f"{wrong} at epoch {run.epoch}, after {most} rollbacks: "
            "lower learning_rate, raise epsilon_x, or take more importance samples"
        )
    run.load(good)
    run.rate_scale /= 2
    say(
        f"{wrong} at epoch {run.epoch}: rolled back to its beginning, "
        f"learning rate halved (x{run.rate_scale:g})"
    )
