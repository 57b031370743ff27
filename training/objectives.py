"""Objectives as pure functions of log-weights.

Notation: ``log_weights[m, b] = log p(x_b, y, z) - log q(y, z | x_b)`` for sample m of row b, and
``log_q[m, b] = log q(y, z | x_b)``, both as functions of the parameters for fixed (detached) samples.
Every function returns a surrogate to *maximise*, whose gradient is the estimator, and the bound itself.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor


class Objective(NamedTuple):
    """What one batch gives.

    Attributes
    ----------
    surrogate
        ``(batch,)``; its gradient is the gradient estimate of the bound. Its value means nothing.
    bound
        ``(batch,)``, detached: the lower bound of log p(x) in nats.
    """

    surrogate: Tensor
    bound: Tensor


def monte_carlo_bound(log_weights: Tensor) -> Tensor:
    """log 1/M sum_m w_m over the first axis: ``(M, ...) -> (...)`` (paper eq. 7, one draw)."""
    return torch.logsumexp(log_weights, 0) - math.log(len(log_weights))


def leave_one_out_bound(log_weights: Tensor) -> Tensor:
    """The bound with each weight in turn replaced by the geometric mean of the others.

    ``L_{-m} = log 1/M (sum_{l != m} w_l + exp(mean_{l != m} log w_l))``, Mnih and Rezende (2016), eq. 10.

    The sum over the others joins a prefix and a suffix sum, never a difference, so nothing cancels when
    one weight dominates; memory is linear in M. Each row's maximum is taken out first.

    Parameters
    ----------
    log_weights
        ``(M, ...)`` in float32 or better, M >= 2; ``-inf`` (a weight of zero) is allowed.

    Returns
    -------
    Tensor
        ``(M, ...)``.

    Raises
    ------
    ValueError
        If M < 2: with one sample there are no others.
    """
    n_samples = len(log_weights)
    if n_samples < 2:
        raise ValueError(f"VIMCO needs at least 2 samples, got {n_samples}: set n_importance_samples >= 2")
    top = log_weights.amax(0, keepdim=True)
    top = torch.where(torch.isfinite(top), top, torch.zeros_like(top))
    centred = log_weights - top
    outside = torch.full_like(centred[:1], -math.inf)
    others = torch.logaddexp(
        torch.cat([outside, torch.logcumsumexp(centred, 0)[:-1]]),
        torch.cat([torch.logcumsumexp(centred.flip(0), 0).flip(0)[1:], outside]),
    )
    nothing = torch.zeros_like(centred[:1])
    mean_of_others = (
        torch.cat([nothing, centred.cumsum(0)[:-1]])
        + torch.cat([centred.flip(0).cumsum(0).flip(0)[1:], nothing])
    ) / (n_samples - 1)
    return torch.logaddexp(others, mean_of_others) + top - math.log(n_samples)


def vimco(log_weights: Tensor, log_q: Tensor) -> Objective:
    """VIMCO: unbiased gradient of the Monte Carlo objective without reparameterisation.

    ``L + sum_m stop_gradient(L - L_{-m}) log q(y_m, z_m | x)``, Mnih and Rezende (2016).

    Parameters
    ----------
    log_weights, log_q
        ``(M, batch)``, M >= 2; samples must be detached.

    Raises
    ------
    ValueError
        If M < 2.
    """
    bound = monte_carlo_bound(log_weights)
    with torch.no_grad():
        signal = bound - leave_one_out_bound(log_weights)
    return Objective(bound + (signal * log_q).sum(0), bound.detach())


def nvil(log_weights: Tensor, log_q: Tensor, baseline: Tensor) -> Objective:
    """NVIL: the score function with a learned baseline C(x) + c (paper eq. 6; Mnih and Gregor, 2014).

    The surrogate also carries the baseline's own regression loss, ``-(f - C(x) - c)^2``, whose gradient
    reaches nothing else.

    Parameters
    ----------
    log_weights, log_q
        ``(M, batch)``; the ELBO is averaged over M samples. Samples must be detached.
    baseline
        ``(batch,)``, C(x) + c.
    """
    error = log_weights.detach() - baseline
    surrogate = log_weights + error.detach() * log_q - error.square()
    return Objective(surrogate.mean(0), log_weights.detach().mean(0))


def enumerated_elbo(log_weights: Tensor, log_q_y: Tensor) -> Objective:
    """ELBO with y summed exactly and z reparameterised (EnumY, paper eq. 5).

    Parameters
    ----------
    log_weights
        ``(S, K, batch)``: S reparameterised samples of z for each y; ``log q(y|x)`` is part of them.
    log_q_y
        ``(K, batch)``.
    """
    elbo = (log_q_y.exp() * log_weights.mean(0)).sum(0)
    return Objective(elbo, elbo.detach())


def relaxed_elbo(log_weights: Tensor, log_q_y: Tensor) -> Objective:
    """ELBO with y relaxed to the simplex (Gumbel-Softmax) and z reparameterised (paper, footnote 2).

    As in Jang et al. (2017) the KL divergence of y is that of the categorical distributions, and only what
    the nets make of y sees the relaxed one. A bound of log p(x) in the limit of temperature zero alone.

    Parameters
    ----------
    log_weights
        ``(M, batch)``: ``log p(x|z) + log p(z|y) - log q(z|y,x)`` for reparameterised samples.
    log_q_y
        ``(K, batch)``.
    """
    divergence = (log_q_y.exp() * log_q_y).sum(0) + math.log(len(log_q_y))
    elbo = log_weights.mean(0) - divergence
    return Objective(elbo, elbo.detach())
