"""Novelty: how unlike its training rows a row is to the model, as a rank in [0, 1].

The energy of a row x, with y the most probable cluster and z the mean of q(z|y,x), both functions of x:

    E(x) = |x - mean(z)|² / 2σ²  -  log p(z|y) / (q(z|y,x) q(y|x))

Up to a constant that is minus the bound of log p(x) with z at its mean, where p(x|z) has one std σ for all
values: the maximum-likelihood one, σ² = the mean squared residual of the training rows. The model's own std
is left out on purpose. It is annealed towards zero on values that were constant in training, which then
decide the density alone, and it gives plain rows a higher density than the training rows have. One σ weighs
what the decoder cannot draw against where in the latent space the row lies, in nats, whatever ε the fit ended
with.

Novelty is the share of the training rows with less energy. The rank is one-sided: with one σ for all values
the density has no spikes to fall into, and a row of less energy than any training row is one that the model
draws well, from where its cluster is densest. It follows that a plain row which the decoder happens to draw,
such as a black image, is not novel; and that clusters which are hard to draw have more than their share of
high ranks. Ranks within the assigned cluster would cure the latter alone, and tell strange rows from known
ones a little worse, because a strange row can fall into any cluster; `benchmarks/novelty.py` has both.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from training.densities import LOG_2PI, normal_log_density
from training.inference import BATCH, parts
from training.model import NVISAModel
from training.precision import float32_convolutions

SCORE = "bound of log p(x) at the mean of z, one std for all values"
# Shares of the training rows at which the energy is kept: nearer to each other towards 1, where it matters.
LEVELS = 1 - (1 - np.linspace(0, 1, 257)) ** 2
# Least relative step of the kept energies: rows that occur many times all have one energy, and a rank that
# jumped there would turn rounding into a different answer.
_LEAST_STEP = 1e-5
_FARTHEST = 1e37
_LARGEST = torch.finfo(torch.float32).max


class Terms(NamedTuple):
    """What the energy is made of, for each of B rows."""

    log_q_y: Tensor  # (B, K)
    cluster: Tensor  # (B,), int64
    squared_error: Tensor  # (B,), |x - mean(z)|² in the units the nets see
    log_ratio: Tensor  # (B,), log p(z|y) / (q(z|y,x) q(y|x)) in nats

    def energy(self, sigma: float | Tensor) -> Tensor:
        """E(x), ``(B,)``."""
        return self.squared_error / (2 * sigma**2) - self.log_ratio


@dataclass(frozen=True)
class Ranks:
    """The training rows' energies, as ranks need them.

    Attributes
    ----------
    sigma
        The one std of p(x|z).
    energies
        float32 ``(len(LEVELS),)``, strictly increasing: a share ``LEVELS[i]`` of the training rows has at
        most energy ``energies[i]``.
    rows
        How many training rows they come from.
    """

    sigma: float
    energies: np.ndarray
    rows: int


class NoveltyHead(nn.Module):
    """From the terms of a batch to its novelty, by operations that every ONNX runtime has."""

    left: Tensor
    slope: Tensor
    steps: Tensor
    sigma: Tensor

    def __init__(self, ranks: Ranks) -> None:
        super().__init__()
        energies = ranks.energies.astype(np.float64)
        for name, value in (
            ("left", energies[:-1]),
            ("slope", 1 / np.diff(energies)),
            ("steps", np.diff(LEVELS)),
            ("sigma", np.float64(ranks.sigma)),
        ):
            self.register_buffer(name, torch.as_tensor(value, dtype=torch.float32))

    def forward(self, terms: Terms) -> Tensor:
        """``(B,)`` in [0, 1], also for rows so large that the energy is not a number: 1.

        The piecewise linear function through (energies, LEVELS) as a sum of ramps, one for each step.
        """
        energy = terms.energy(self.sigma)
        energy = torch.where(energy < _LARGEST, energy, _LARGEST)  # not a number is not less than anything
        ramps = ((energy.unsqueeze(-1) - self.left) * self.slope).clamp(0, 1)
        return (ramps @ self.steps).clamp(0, 1)


def terms(model: NVISAModel, x: Tensor) -> Terms:
    """Terms of preprocessed rows ``x (B, D)``; nothing is sampled."""
    encoding = model.encode(x)
    cluster = encoding.log_q_y.argmax(-1)
    z, std = model.q_z(encoding.hidden, cluster)
    mean = model.x_mean(model.decoder(z))
    if model.likelihood == "bernoulli":
        mean = mean.sigmoid()
    log_q_z = -(std.log() + 0.5 * LOG_2PI).sum(-1)
    log_ratio = normal_log_density(z, *model.p_z(cluster)) - log_q_z - encoding.log_q_y.amax(-1)
    return Terms(encoding.log_q_y, cluster, (x - mean).square().sum(-1), log_ratio)


@torch.no_grad()
@float32_convolutions()
def calibrate(model: NVISAModel, x: np.ndarray) -> Ranks:
    """Energies of training rows ``x (n, *shape)``, for novelty to be a rank among them."""
    # One array for all rows: a small one a part, kept between the parts' large tensors, would split the heap.
    found = np.empty((2, len(x)))
    for start, part in zip(range(0, len(x), BATCH), parts(model, x, BATCH), strict=True):
        of_rows = terms(model, model.preprocess(part))
        rows = torch.stack([of_rows.squared_error, of_rows.log_ratio])
        found[:, start : start + BATCH] = rows.cpu().numpy()
    squared_error, log_ratio = found
    # A model that was standardised on other rows may overflow on some of these: they are the farthest.
    variance = float(squared_error[np.isfinite(squared_error)].mean()) / model.spec.row_size
    sigma = max(variance, float(np.finfo(np.float32).tiny)) ** 0.5
    with np.errstate(invalid="ignore"):
        energy = squared_error / (2 * sigma**2) - log_ratio
    energy = np.nan_to_num(energy, nan=_FARTHEST, posinf=_FARTHEST)
    return Ranks(sigma, _increasing(np.quantile(energy, LEVELS)).astype(np.float32), len(x))


def _increasing(values: np.ndarray) -> np.ndarray:
    """Raise ascending ``values`` just enough that they increase by a least step throughout."""
    slack = np.cumsum(_LEAST_STEP * np.abs(values).clip(1))
    raised: np.ndarray = np.maximum.accumulate(values - slack) + slack
    return raised


@torch.no_grad()
@float32_convolutions()
def novelty(model: NVISAModel, ranks: Ranks, x: np.ndarray) -> np.ndarray:
    """Novelty of rows ``x (n, *shape)``: float32 ``(n,)`` in [0, 1]."""
    head = NoveltyHead(ranks).to(model.shift.device)
    return torch.cat(
        [head(terms(model, model.preprocess(part))).cpu() for part in parts(model, x, BATCH)]
    ).numpy()


@torch.no_grad()
def cost_ratio(model: NVISAModel, before: int = 0) -> float:
    """Multiply-accumulates of a row with novelty over those without; elementwise work is not counted.

    ``before`` are those of what comes before the model in either case, a backbone.
    """
    row = torch.zeros(
        (1, *model.spec.shape), dtype=getattr(torch, model.spec.dtype), device=model.shift.device
    )
    counts = []
    for run in (model, lambda rows: terms(model, model.preprocess(rows))):
        with FlopCounterMode(display=False) as counter:
            run(row)
        counts.append(counter.get_total_flops() / 2 + before)
    return counts[1] / counts[0]
