"""What a fitted model says of rows: q(y|x), codes, bounds, and samples. Always float32, never autocast."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from training.densities import normal_log_density, sample_categorical, sample_normal
from training.model import NVISAModel
from training.precision import float32_convolutions
from training.rows import part_rows
from training.schedule import epoch_generator
from training.step import row_bounds, rows_at_once

BATCH = 4096
BOUND_EPOCH = -(10**7)


class Assigned(NamedTuple):
    """The cluster of each row, int64 ``(n,)``; its probability, and log p(z|y) of the code, float32."""

    clusters: np.ndarray
    confidences: np.ndarray
    typicality: np.ndarray


def parts(model: NVISAModel, x: np.ndarray, size: int | None = None) -> Iterator[Tensor]:
    """Rows on the model's device, ``size`` at a time; ``x`` may be memory-mapped and of another real type."""
    size = size or part_rows(x.shape, BATCH)
    for start in range(0, len(x), size):
        part = np.require(x[start : start + size], model.spec.dtype, ["C", "W"])
        yield torch.from_numpy(part).to(model.shift.device)


@torch.no_grad()
@float32_convolutions()
def probabilities(model: NVISAModel, x: np.ndarray) -> np.ndarray:
    """q(y|x): ``(n, *shape) -> (n, K)``, float32."""
    return torch.cat([model(part).cpu() for part in parts(model, x)]).numpy()


@torch.no_grad()
@float32_convolutions()
def assign(model: NVISAModel, x: np.ndarray) -> Assigned:
    """Clusters of ``x (n, *shape)``, holding on to 16 bytes a row however many clusters there are."""
    found = []
    for part in parts(model, x):
        encoding = model.encode(model.preprocess(part))
        q = encoding.log_q_y.exp().cpu().numpy()
        clusters = q.argmax(1)
        z = model.q_z(encoding.hidden, torch.as_tensor(clusters, device=part.device))[0]
        found.append((clusters, q.max(1), typicality(model, z.cpu().numpy(), clusters)))
    return Assigned(*(np.concatenate(column) for column in zip(*found, strict=True)))


@torch.no_grad()
@float32_convolutions()
def codes(model: NVISAModel, x: np.ndarray) -> np.ndarray:
    """Mean of q(z|y,x) at the most probable y: ``(n, *shape) -> (n, L)``, float32."""
    found = []
    for part in parts(model, x):
        encoding = model.encode(model.preprocess(part))
        found.append(model.q_z(encoding.hidden, encoding.log_q_y.argmax(-1))[0].cpu())
    return torch.cat(found).numpy()


@torch.no_grad()
@float32_convolutions()
def sample_posterior(model: NVISAModel, x: np.ndarray, seed: int) -> np.ndarray:
    """z ~ q(z|y,x) at the most probable y: ``(n, *shape) -> (n, L)``, float32."""
    generator = torch.Generator(model.shift.device).manual_seed(seed)
    found = []
    for part in parts(model, x):
        encoding = model.encode(model.preprocess(part))
        found.append(sample_normal(*model.q_z(encoding.hidden, encoding.log_q_y.argmax(-1)), generator).cpu())
    return torch.cat(found).numpy()


@torch.no_grad()
@float32_convolutions()
def sample_aggregate(model: NVISAModel, x: np.ndarray, seed: int) -> np.ndarray:
    """z ~ sum_y q(z|y,x) q(y|x), one draw a row: ``(n, *shape) -> (n, L)``, float32 (paper §III-D)."""
    generator = torch.Generator(model.shift.device).manual_seed(seed)
    found = []
    for part in parts(model, x):
        encoding = model.encode(model.preprocess(part))
        y = sample_categorical(encoding.log_q_y, 1, generator)[0]
        found.append(sample_normal(*model.q_z(encoding.hidden, y), generator).cpu())
    return torch.cat(found).numpy()


@torch.no_grad()
def typicality(model: NVISAModel, z: np.ndarray, clusters: np.ndarray) -> np.ndarray:
    """log p(z|y) of codes under their own cluster's prior: ``(n, L), (n,) -> (n,)``."""
    device = model.shift.device
    mean, std = model.p_z(torch.as_tensor(clusters, device=device))
    return normal_log_density(torch.as_tensor(z, device=device), mean, std).cpu().numpy()


@torch.no_grad()
def bounds(model: NVISAModel, x: np.ndarray, n_samples: int) -> np.ndarray:
    """Lower bound of log p(x) in nats for each row, `training.step.row_bounds`: float32 ``(n,)``.

    Computed in float64, so that a row's bound does not depend, in its last digit, on its place among others.
    """
    found = []
    exact = copy.deepcopy(model).double()
    for part in parts(model, x, rows_at_once(model, n_samples)):
        generator = epoch_generator(0, BOUND_EPOCH, part.device)
        rows = exact.preprocess(part).double()
        found.append(row_bounds(exact, rows, n_samples, generator).float().cpu())
    return torch.cat(found).numpy()


@torch.no_grad()
def sample_prior(model: NVISAModel, y: np.ndarray, seed: int) -> np.ndarray:
    """z ~ p(z|y) for each given y: ``(n,) -> (n, L)``, float32."""
    device = model.shift.device
    mean, std = model.p_z(torch.as_tensor(y, device=device))
    return sample_normal(mean, std, torch.Generator(device).manual_seed(seed)).cpu().numpy()


@torch.no_grad()
@float32_convolutions()
def decode(model: NVISAModel, z: np.ndarray) -> np.ndarray:
    """Mean of p(x|z) in raw units: ``(n, L) -> (n, *shape)``; images as uint8, features as float32."""
    device = model.shift.device
    parts = [model.x_given_z(part).cpu() for part in torch.as_tensor(z, device=device).split(BATCH)]
    x = torch.cat(parts).numpy().reshape(len(z), *model.spec.shape)
    return np.clip(np.rint(x), 0, 255).astype(np.uint8) if model.spec.dtype == "uint8" else x
