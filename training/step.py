"""One batch under one objective: draw from q, weigh, and hand the log-weights to the estimator."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from training.agreement import anchor_loss
from training.config import TrainingConfig
from training.densities import (
    at_clusters,
    normal_log_density,
    sample_categorical,
    sample_normal,
    sample_relaxed,
)
from training.model import Baseline, Encoding, NVISAModel
from training.noise import Source
from training.objectives import Objective, enumerated_elbo, nvil, relaxed_elbo, vimco
from training.stacked_model import StackedBaseline

BLOCK_VALUES = 2**25


class Step(NamedTuple):
    """A batch's objective and, detached, its mean q(y|x) of shape ``(..., K)``."""

    objective: Objective
    mean_q_y: Tensor


def batch_objective(
    model: NVISAModel,
    baseline: Baseline | StackedBaseline | None,
    x: Tensor,
    config: TrainingConfig,
    generator: Source,
    anchors: Tensor | None = None,
) -> Step:
    """Objective of preprocessed rows ``x (B, D)`` (paper eqs. 5 to 7), or ``(S, B, D)`` of a stack of runs.

    For VIMCO and NVIL both y and z are detached, so that the score function covers log q(y, z | x). With
    ``pathwise_z`` the gradient reaches z's distribution through z itself, and the score covers y alone; the
    leave-one-out term does not depend on sample m's noise, so the estimator stays unbiased.

    With ``anchors``, int64 ``(B,)``, the surrogate also asks q(y|x) to keep these clusters, with weight
    ``config.anchor``, and with ``config.balance`` for a batch spread over all clusters; the bound reported is
    without these.
    """
    encoding = model.encode(x)
    mean_q_y = encoding.log_q_y.exp().mean(-2)
    objective = _estimate(model, baseline, x, encoding, config, generator)
    if anchors is not None:
        anchor = anchor_loss(model, encoding, x, anchors, config, generator)
        objective = objective._replace(surrogate=objective.surrogate - config.anchor * anchor)
    if config.balance > 0:
        entropy = torch.special.entr(mean_q_y).sum(-1, keepdim=True)
        objective = objective._replace(surrogate=objective.surrogate + config.balance * entropy)
    return Step(objective, mean_q_y.detach())


def _estimate(
    model: NVISAModel,
    baseline: Baseline | StackedBaseline | None,
    x: Tensor,
    encoding: Encoding,
    config: TrainingConfig,
    generator: Source,
) -> Objective:
    if config.objective == "elbo":
        return _enumerated(model, x, encoding.log_q_y, encoding.hidden, config, generator)
    if config.objective == "gumbel":
        return _relaxed(model, x, encoding, config, generator)
    y = sample_categorical(encoding.log_q_y, config.n_samples, generator)
    mean, std = model.q_z(encoding.hidden, y)
    z = sample_normal(mean, std, generator)
    log_q_y = at_clusters(encoding.log_q_y.movedim(-1, 0), y)
    if not config.pathwise_z:
        z = z.detach()
    log_q = log_q_y + normal_log_density(z, mean, std)
    log_weights = model.log_joint(x, y, z) - log_q
    if config.objective == "nvil":
        assert baseline is not None
        return nvil(log_weights, log_q, baseline(x))
    return vimco(log_weights, log_q_y if config.pathwise_z else log_q)


def _enumerated(
    model: NVISAModel,
    x: Tensor,
    log_q_y: Tensor,
    hidden: Tensor,
    config: TrainingConfig,
    generator: Source,
) -> Objective:
    draws, n_clusters = config.n_samples, model.n_clusters
    first = torch.arange(n_clusters, device=x.device).repeat(draws)
    y = first.view(-1, *[1] * (x.ndim - 1)).expand(-1, *x.shape[:-1])
    mean, std = model.q_z(hidden, y)
    z = sample_normal(mean, std, generator)
    log_q_y = log_q_y.movedim(-1, 0)
    log_q = log_q_y + normal_log_density(z, mean, std).unflatten(0, (draws, n_clusters))
    log_weights = model.log_joint(x, y, z).unflatten(0, (draws, n_clusters)) - log_q
    return enumerated_elbo(log_weights, log_q_y)


def _relaxed(
    model: NVISAModel, x: Tensor, encoding: Encoding, config: TrainingConfig, generator: Source
) -> Objective:
    y = sample_relaxed(encoding.log_q_y, config.n_samples, config.temperature, generator)
    mean, std = model.q_z_relaxed(encoding.hidden, y)
    z = sample_normal(mean, std, generator)
    log_p = model.log_p_x(x, z) + normal_log_density(z, *model.p_z_relaxed(y))
    return relaxed_elbo(log_p - normal_log_density(z, mean, std), encoding.log_q_y.movedim(-1, 0))


def rows_at_once(model: NVISAModel, n_samples: int) -> int:
    """How many rows `row_bounds` takes so that a ``[samples, rows, widest layer]`` block is under 128 MiB."""
    widest = max(model.widest, model.z_from_x.out_features)
    return max(1, BLOCK_VALUES // (n_samples * model.n_clusters * widest))


def row_bounds(model: NVISAModel, x: Tensor, n_samples: int, generator: torch.Generator) -> Tensor:
    """Lower bound of log p(x) for each row, with y summed exactly: ``(B, D) -> (B,)`` in nats.

    ``log 1/S sum_s sum_y p(x, y, z_sy) / q(z_sy | y, x)``: the importance-weighted bound with only z
    sampled. All rows share one draw of the noise, so that a row's bound does not depend on the others.
    """
    hidden = model.encode(x).hidden
    n_clusters, batch = model.n_clusters, len(x)
    y = torch.arange(n_clusters, device=x.device).repeat(n_samples).unsqueeze(1).expand(-1, batch)
    mean, std = model.q_z(hidden, y)
    noise = torch.empty((len(y), 1, mean.shape[-1]), device=x.device).normal_(generator=generator)
    z = mean + std * noise
    log_weights = model.log_joint(x, y, z) - normal_log_density(z, mean, std)
    return torch.logsumexp(log_weights, 0) - math.log(n_samples)
