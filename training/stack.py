"""Several runs on one set of stacked parameters, of which each run holds its slice."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from training.config import TrainingConfig
from training.loop import adam
from training.stacked_model import StackedBaseline, StackedModel
from training.state import Run

_MOMENTS = ("exp_avg", "exp_avg_sq")


class Stack:
    """Runs that train together: same shape, same epoch, same ε and learning rate.

    The parameters and Adam's moments of every run become views of the stack's, so that one fused step moves
    all of them, and a run can be scored, saved or copied as if it were alone. Adam works element by element,
    so the runs stay independent.

    Parameters
    ----------
    runs
        At least one.
    configs
        Theirs; they differ in the seed alone.

    Attributes
    ----------
    model, baseline, optimiser
        As a run's, stacked.
    """

    def __init__(self, runs: Sequence[Run], configs: Sequence[TrainingConfig]) -> None:
        self.runs, self.configs = list(runs), list(configs)
        self.model = StackedModel(configs[0], [run.model for run in runs])
        baselines = [run.baseline for run in runs if run.baseline is not None]
        self.baseline = StackedBaseline(baselines) if baselines else None
        modules: list[nn.Module] = [self.model] if self.baseline is None else [self.model, self.baseline]
        self.optimiser = adam(modules, configs[0])
        for stacked, *own in zip(_parameters(self), *map(_parameters, runs), strict=True):
            self._join(stacked, own)
        self._good = {name: tensor.clone() for name, tensor in self.tensors().items()}

    def _join(self, stacked: Tensor, own: Sequence[Tensor]) -> None:
        states = [run.optimiser.state[parameter] for run, parameter in zip(self.runs, own, strict=True)]
        state = self.optimiser.state[stacked]
        state["step"] = states[0]["step"].clone() if states[0] else torch.zeros((), device=stacked.device)
        for name in _MOMENTS:
            state[name] = (
                torch.stack([each[name] for each in states]) if states[0] else torch.zeros_like(stacked)
            )
        for index, (parameter, each) in enumerate(zip(own, states, strict=True)):
            parameter.data = stacked.data[index]
            each["step"] = state["step"]
            for name in _MOMENTS:
                each[name] = state[name][index]

    def tensors(self) -> dict[str, Tensor]:
        """All that training changes, four tensors a parameter: itself, its moments, Adam's count of steps."""
        found: dict[str, Tensor] = {}
        for index, parameter in enumerate(_parameters(self)):
            state = self.optimiser.state[parameter]
            found[f"{index}"] = parameter.data
            found |= {f"{index}.{name}": state[name] for name in (*_MOMENTS, "step")}
        return found

    def load(self, tensors: Mapping[str, Tensor]) -> None:
        """Take `tensors` back, in place, as `training.state.Run.load`."""
        for name, tensor in self.tensors().items():
            tensor.copy_(tensors[name])

    def keep(self) -> None:
        """Remember the present state as the last good one."""
        for name, tensor in self.tensors().items():
            self._good[name].copy_(tensor)

    def leave(self, index: int, *, good: bool = False) -> None:
        """Give a run tensors of its own: the present ones, or the last good ones."""
        own = [
            (tensor if tensor.ndim == 0 else tensor[index]).clone()
            for tensor in (self._good if good else self.tensors()).values()
        ]
        run = self.runs[index]
        for position, parameter in enumerate(_parameters(run)):
            parameter.data, *rest = own[4 * position : 4 * position + 4]
            run.optimiser.state[parameter].update(zip((*_MOMENTS, "step"), rest, strict=True))


def _parameters(of: Run | Stack) -> list[Tensor]:
    return [parameter for group in of.optimiser.param_groups for parameter in group["params"]]
