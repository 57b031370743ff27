"""One step of training, and an epoch of them: run as they come, or on a GPU as the replay of one CUDA graph.

A small net's step is a hundred short kernels, and launching them one by one takes longer than they do. So on
CUDA the step (preprocessing, forward, backward, Adam) is captured once and replayed. The graph remembers
addresses: batches are copied into tensors of its own, ε and the learning rate are 0-d tensors on the device,
and whoever changes parameters or Adam's moments does so in place (`training.state.Run.load`).
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

from training.config import TrainingConfig
from training.precision import matrix_products
from training.schedule import epoch_seed
from training.state import Run
from training.step import batch_objective

WARM_UP_STEPS = 3


class Updates:
    """Steps of one run.

    Attributes
    ----------
    generator
        Of all that is drawn in an epoch; a function of the seed and the epoch after `begin`.
    bound, usage
        Sums over the steps since `begin` of the mean bound (float64, nats a row) and of q(y|x), ``(K,)``, on
        the device. No method here waits for it.
    steps
        Number of these steps.
    """

    def __init__(self, run: Run, config: TrainingConfig) -> None:
        device = run.model.shift.device
        self.run, self.config = run, config
        self.generator = torch.Generator(device)
        self.bound = torch.zeros((), device=device, dtype=torch.float64)
        self.usage = torch.zeros(config.n_clusters, device=device)
        self.steps = 0
        self._graph = _Graph(self) if device.type == "cuda" and config.cuda_graph else None

    def begin(self, epoch: int) -> None:
        """Start over for ``epoch``."""
        self.generator.manual_seed(epoch_seed(self.config.seed, epoch))
        self.bound.zero_()
        self.usage.zero_()
        self.steps = 0

    def take(self, batches: Iterable[tuple[Tensor, Tensor | None]]) -> None:
        """One step for each batch: raw rows ``(B, *shape)``, and their clusters ``(B,)`` while anchored."""
        for rows, anchors in batches:
            if self._graph is None:
                self.step(rows, anchors)
            else:
                self._graph.step(rows, anchors)
            self.steps += 1

    def step(self, rows: Tensor, anchors: Tensor | None) -> None:
        """What is captured: everything of a step that runs on the device."""
        run = self.run
        x = run.model.preprocess(rows, self.generator)
        with matrix_products(rows.device, self.config.precision):
            step = batch_objective(run.model, run.baseline, x, self.config, self.generator, anchors)
        run.optimiser.zero_grad()
        (-step.objective.surrogate.mean()).backward()
        run.optimiser.step()
        self.bound += step.objective.bound.mean()
        self.usage += step.mean_q_y


class _Graph:
    """`Updates.step` captured once for each form of batch."""

    def __init__(self, updates: Updates) -> None:
        self.updates = updates
        self.captured: dict[tuple[torch.Size, bool], tuple[torch.cuda.CUDAGraph, Tensor, Tensor | None]] = {}

    def step(self, rows: Tensor, anchors: Tensor | None) -> None:
        """Take one step by replay; the first of its form captures it before."""
        form = (rows.shape, anchors is not None)
        if form not in self.captured:
            self.captured[form] = self._capture(rows, anchors)
        graph, own_rows, own_anchors = self.captured[form]
        own_rows.copy_(rows, non_blocking=True)
        if own_anchors is not None and anchors is not None:
            own_anchors.copy_(anchors, non_blocking=True)
        graph.replay()

    def _capture(
        self, rows: Tensor, anchors: Tensor | None
    ) -> tuple[torch.cuda.CUDAGraph, Tensor, Tensor | None]:
        updates, device = self.updates, self.updates.bound.device
        own_rows = rows.to(device, copy=True)
        own_anchors = anchors.to(device, copy=True) if anchors is not None else None
        before = {name: value.clone() for name, value in updates.run.tensors().items()}
        bound, usage = updates.bound.clone(), updates.usage.clone()
        state = updates.generator.get_state()
        # Steps on a stream of their own let cuBLAS, autograd and Adam allocate what they keep. All they
        # change is put back.
        stream = torch.cuda.Stream(device)
        stream.wait_stream(torch.cuda.current_stream(device))
        with torch.cuda.stream(stream):
            for _ in range(WARM_UP_STEPS):
                updates.step(own_rows, own_anchors)
        torch.cuda.current_stream(device).wait_stream(stream)
        updates.run.load(before)
        updates.bound.copy_(bound)
        updates.usage.copy_(usage)
        updates.generator.set_state(state)
        # Gradients are allocated anew inside, in the graph's own memory.
        updates.run.optimiser.zero_grad()
        graph = torch.cuda.CUDAGraph()
        graph.register_generator_state(updates.generator)
        with torch.cuda.graph(graph):
            updates.step(own_rows, own_anchors)
        return graph, own_rows, own_anchors
