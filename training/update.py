"""One step of training, and an epoch of them: run as they come, or on a GPU as the replay of one CUDA graph.

A small net's step is a hundred short kernels, and launching them one by one takes longer than they do. So on
CUDA the step (preprocessing, forward, backward, Adam) is captured once and replayed. The graph remembers
addresses: batches are copied into tensors of its own, ε and the learning rate are 0-d tensors on the device,
and whoever changes parameters or Adam's moments does so in place (`training.state.Run.load`). A stack of runs
(`training.stack`) trains by such a graph as well.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from training.config import TrainingConfig
from training.precision import matrix_products
from training.schedule import epoch_seed
from training.state import Run
from training.step import batch_objective

if TYPE_CHECKING:
    from training.stack import Stack

WARM_UP_STEPS = 3


class Updates:
    """Steps of one run, or of the S runs of a stack at once: then batches have a leading axis S.

    Parameters
    ----------
    trained
        What they change.
    configs
        The run's, or the stack's in the order of its runs.

    Attributes
    ----------
    generators
        A run's own, of all that is drawn in an epoch; a function of the seed and the epoch after `begin`.
    bound, usage
        Sums over the steps since `begin` of the mean bound (float64, nats a row) and of q(y|x), ``(K,)``, on
        the device; of a stack with a leading axis S. No method here waits for it.
    steps
        Number of these steps.
    """

    def __init__(self, trained: Run | Stack, *configs: TrainingConfig) -> None:
        device = trained.model.shift.device
        alone = isinstance(trained, Run)
        self.trained, self.configs = trained, configs
        self.generators = tuple(torch.Generator(device) for _ in configs)
        self._drawn_from = self.generators[0] if alone else self.generators
        shape = () if alone else (len(configs),)
        self.bound = torch.zeros(shape, device=device, dtype=torch.float64)
        self.usage = torch.zeros((*shape, configs[0].n_clusters), device=device)
        self.steps = 0
        self._graph = _Graph() if device.type == "cuda" and configs[0].cuda_graph else None

    def begin(self, epoch: int) -> None:
        """Start over for ``epoch``."""
        for generator, config in zip(self.generators, self.configs, strict=True):
            generator.manual_seed(epoch_seed(config.seed, epoch))
        self.bound.zero_()
        self.usage.zero_()
        self.steps = 0

    def take(self, batches: Iterable[tuple[Tensor, Tensor | None]]) -> None:
        """One step for each batch: raw rows ``(B, *shape)``, and their clusters ``(B,)`` while anchored."""
        for rows, anchors in batches:
            if self._graph is None:
                self.step(rows, anchors)
            else:
                self._graph.step(self, rows, anchors)
            self.steps += 1

    def step(self, rows: Tensor, anchors: Tensor | None) -> None:
        """What is captured: everything of a step that runs on the device."""
        trained, config = self.trained, self.configs[0]
        x = trained.model.preprocess(rows, self._drawn_from)
        with matrix_products(rows.device, config.precision):
            step = batch_objective(trained.model, trained.baseline, x, config, self._drawn_from, anchors)
        trained.optimiser.zero_grad()
        (-step.objective.surrogate.mean(-1).sum()).backward()
        trained.optimiser.step()
        self.bound += step.objective.bound.mean(-1)
        self.usage += step.mean_q_y


class _Graph:
    """`Updates.step` captured once for each form of batch.

    It does not hold on to the updates it belongs to: in a cycle, a finished run's memory on the device would
    stay until Python looks for cycles.
    """

    def __init__(self) -> None:
        self.captured: dict[tuple[torch.Size, bool], tuple[torch.cuda.CUDAGraph, Tensor, Tensor | None]] = {}

    def step(self, updates: Updates, rows: Tensor, anchors: Tensor | None) -> None:
        """Take one step by replay; the first of its form captures it before."""
        form = (rows.shape, anchors is not None)
        if form not in self.captured:
            self.captured[form] = self._capture(updates, rows, anchors)
        graph, own_rows, own_anchors = self.captured[form]
        own_rows.copy_(rows, non_blocking=True)
        if own_anchors is not None and anchors is not None:
            own_anchors.copy_(anchors, non_blocking=True)
        graph.replay()

    @staticmethod
    def _capture(
        updates: Updates, rows: Tensor, anchors: Tensor | None
    ) -> tuple[torch.cuda.CUDAGraph, Tensor, Tensor | None]:
        trained, device = updates.trained, updates.bound.device
        own_rows = rows.to(device, copy=True)
        own_anchors = anchors.to(device, copy=True) if anchors is not None else None
        before = {name: value.clone() for name, value in trained.tensors().items()}
        bound, usage = updates.bound.clone(), updates.usage.clone()
        states = [generator.get_state() for generator in updates.generators]
        # Steps on a stream of their own let cuBLAS, autograd and Adam allocate what they keep. All they
        # change is put back.
        stream = torch.cuda.Stream(device)
        stream.wait_stream(torch.cuda.current_stream(device))
        with torch.cuda.stream(stream):
            for _ in range(WARM_UP_STEPS):
                updates.step(own_rows, own_anchors)
        torch.cuda.current_stream(device).wait_stream(stream)
        trained.load(before)
        updates.bound.copy_(bound)
        updates.usage.copy_(usage)
        graph = torch.cuda.CUDAGraph()
        for generator, state in zip(updates.generators, states, strict=True):
            generator.set_state(state)
            graph.register_generator_state(generator)
        # Gradients are allocated anew inside, in the graph's own memory.
        trained.optimiser.zero_grad()
        # Only now: a fused Adam works alike without, but warns of steps outside a graph with it.
        for group in trained.optimiser.param_groups:
            group["capturable"] = True
        try:
            with torch.cuda.graph(graph):
                updates.step(own_rows, own_anchors)
        finally:
            for group in trained.optimiser.param_groups:
                group["capturable"] = False
        return graph, own_rows, own_anchors
