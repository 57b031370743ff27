"""The least time a step can take on a machine: its operations and bytes, over the machine's measured rates.

Counted are the matrix products of forward and backward (2 operations for each multiply-add), split by the
precision they run in, and what must cross memory however well the rest is fused: parameters and Adam's
moments, and each ``[M, B, D]`` tensor between a matrix product and the density once each way. Nothing is
skipped in this count; a step that skips samples of no weight may come in under it.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

import torch

from training.config import TrainingConfig
from training.model import NVISAModel
from training.precision import low_precision_pays

ADAM_PASSES = 7  # read gradient, parameter and two moments; write all but the gradient


@dataclass(frozen=True)
class Machine:
    """What a device was measured at: operations a second in each precision, bytes a second to and fro."""

    float32: float
    bfloat16: float
    memory: float


def measure(device: torch.device, size: int = 2048, megabytes: int = 256) -> Machine:
    """Best of several large matrix products and copies."""
    a = torch.randn(size, size, device=device)
    low = a.bfloat16()
    block = torch.empty(megabytes << 18, device=device)
    other = torch.ones_like(block)
    products = 2 * size**3
    return Machine(
        float32=products / _best(lambda: a @ a, device),
        bfloat16=products / _best(lambda: low @ low, device),
        memory=2 * block.nbytes / _best(lambda: block.copy_(other), device),
    )


def _best(call: Callable[[], object], device: torch.device, times: int = 5) -> float:
    seconds = []
    for _ in range(times + 1):
        wait(device)
        began = time.perf_counter()
        call()
        wait(device)
        seconds.append(time.perf_counter() - began)
    return min(seconds[1:])


def wait(device: torch.device) -> None:
    """Let the device finish what it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


@dataclass(frozen=True)
class Work:
    """Operations in float32 and in low precision, and bytes, of one step."""

    full: float
    low: float
    bytes: float

    def seconds(self, machine: Machine) -> float:
        """Time at the machine's rates, one after the other."""
        return self.full / machine.float32 + self.low / machine.bfloat16 + self.bytes / machine.memory


def count(model: NVISAModel, config: TrainingConfig, batch: int) -> Work:
    """Work of a step of fully connected nets."""
    device = model.shift.device
    low_precision = config.precision == "low" or (config.precision == "auto" and low_precision_pays(device))
    samples = batch * config.n_samples * (config.n_clusters if config.objective == "elbo" else 1)
    heads = [head for head in (model.x_mean, model.x_raw_std) if head is not None]
    # The z head needs to run no oftener than there are clusters.
    features = min(samples, batch * config.n_clusters)
    trunk = 2 * batch * (_weights(model.encoder) + _weights(model.z_from_x) + _weights(model.y_head))
    trunk += 2 * features * (_weights(model.z_mean) + _weights(model.z_raw_std))
    trunk += 2 * samples * _weights(model.decoder)
    output = 2 * samples * sum(_weights(head) for head in heads)
    # Forward once and backward twice; the encoder needs no gradient by x.
    products = 3 * trunk - 2 * batch * next(model.encoder.parameters()).numel()
    full, low = (output, products + 2 * output) if low_precision else (products + 3 * output, 0)
    gradient_bytes = 2 if low_precision else 4
    crossing = len(heads) * samples * model.spec.row_size * 2 * (4 + gradient_bytes)
    adam = sum(parameter.nbytes for parameter in model.parameters()) * ADAM_PASSES
    return Work(full, low, crossing + adam)


def _weights(module: torch.nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters() if parameter.ndim > 1)
