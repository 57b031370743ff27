"""One run's state: everything that changes while it trains, and its checkpoint."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor

from training.checkpoint import CheckpointError, load_tensors, save_tensors
from training.config import TrainingConfig
from training.history import History
from training.initialise import Start
from training.model import Baseline, NVISAModel

CHECKPOINT_FILE = "checkpoint.safetensors"


@dataclass
class Run:
    """One run: everything that changes while it trains.

    Attributes
    ----------
    epoch
        Epochs done.
    rate_scale
        Factor on the learning rate, halved at each rollback.
    rollbacks
        Rollbacks so far.
    score
        The warm bound (`training.selection.warm_bound`), once it was taken.
    start
        What the run started from, if not at random.
    anchors
        int64 ``(n,)``: clusters of the rows at the start of the present stage, while they are anchored.
    seconds
        Wall-clock time spent on it so far, by all the processes it took.
    """

    model: NVISAModel
    baseline: Baseline | None
    optimiser: torch.optim.Adam
    start: Start | None = None
    anchors: Tensor | None = None
    epoch: int = 0
    rate_scale: float = 1.0
    rollbacks: int = 0
    score: float | None = None
    seconds: float = 0.0
    history: History = field(default_factory=History)

    @property
    def bounds(self) -> list[float]:
        """Bounds of the epochs done, nats a row: of these the schedules are functions."""
        return [record["bound"] for record in self.history]

    def tensors(self) -> dict[str, Tensor]:
        """All that is needed to go on: parameters, buffers, Adam's moments."""
        found = {f"model.{name}": value for name, value in self.model.state_dict().items()}
        if self.baseline is not None:
            found |= {f"baseline.{name}": value for name, value in self.baseline.state_dict().items()}
        for index, state in self.optimiser.state_dict()["state"].items():
            found |= {f"adam.{index}.{name}": value for name, value in state.items()}
        return found

    def load(self, tensors: Mapping[str, Tensor]) -> None:
        """Take `tensors` back, in place: a CUDA graph knows parameters and moments by their addresses.

        Moments that are not among them start from zero, as Adam's do.
        """
        self.model.load_state_dict(_under(tensors, "model."))
        if self.baseline is not None:
            self.baseline.load_state_dict(_under(tensors, "baseline."))
        moments = _under(tensors, "adam.")
        if moments and not self.optimiser.state:
            make_moments(self.optimiser)
        for index, state in self.optimiser.state_dict()["state"].items():
            for name, value in state.items():
                if (key := f"{index}.{name}") in moments:
                    value.copy_(moments[key])
                else:
                    value.zero_()


def make_moments(optimiser: torch.optim.Adam) -> None:
    """Give a fresh, fused Adam the moments and step counts, zero, that it makes itself in its first step."""
    for group in optimiser.param_groups:
        for parameter in group["params"]:
            optimiser.state[parameter] = {
                "step": torch.zeros((), device=parameter.device),
                "exp_avg": torch.zeros_like(parameter, memory_format=torch.preserve_format),
                "exp_avg_sq": torch.zeros_like(parameter, memory_format=torch.preserve_format),
            }


def save_run(run: Run, path: Path, config: TrainingConfig) -> None:
    """Write the history beside ``path``, then the checkpoint: a history may be ahead of it, never behind."""
    tensors = run.tensors()
    if run.start is not None:
        tensors |= {f"start.{name}": value for name, value in run.start.tensors().items()}
    if run.anchors is not None:
        tensors["anchors"] = run.anchors
    meta = {
        "config": config.digest(),
        "seed": config.seed,
        "epoch": run.epoch,
        "rate_scale": run.rate_scale,
        "rollbacks": run.rollbacks,
        "score": run.score,
        "seconds": run.seconds,
    }
    run.history.write(path.parent)
    save_tensors(path, tensors, meta)


def restore_run(run: Run, path: Path, config: TrainingConfig) -> None:
    """Bring a freshly built run to where the checkpoint ``path`` was written.

    Raises
    ------
    CheckpointError
        If it is damaged, of other hyper-parameters, or past the epochs asked for.
    """
    tensors, meta = load_tensors(path)
    if (meta["config"], meta["seed"]) != (config.digest(), config.seed):
        raise CheckpointError(
            f"{path} was made with other hyper-parameters: resume with those it was started with, "
            "or fit into another directory"
        )
    if meta["epoch"] > config.total_epochs:
        raise CheckpointError(
            f"{path} is at epoch {meta['epoch']}, past the {config.total_epochs} asked for: "
            "ask for more epochs"
        )
    run.load(tensors)
    if start := _under(tensors, "start."):
        run.start = Start.from_tensors(start)
    if (anchors := tensors.get("anchors")) is not None:
        run.anchors = anchors.to(run.model.shift.device)
    run.epoch, run.rate_scale = meta["epoch"], meta["rate_scale"]
    run.rollbacks, run.score, run.seconds = meta["rollbacks"], meta["score"], meta["seconds"]
    run.history = History.read(path.parent, run.epoch)


def _under(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}
