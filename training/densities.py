"""Log-densities in float32, and the samplers of q. Shapes: samples M, batch B, data D, latent L."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from training.noise import Source, draw

LOG_2PI = math.log(2 * math.pi)
# Rows of an [M * B, D] block that are worked on together on a CPU, so that the block's intermediates
# stay in a core's cache instead of crossing memory once per operation.
_CACHE_VALUES = 1 << 16


def bounded_std(raw: Tensor, lower: Tensor | float) -> Tensor:
    """SoftPlus(raw) + lower (paper §II-A and §II-D)."""
    return F.softplus(raw) + lower


def normal_log_density(value: Tensor, mean: Tensor, std: Tensor) -> Tensor:
    """log N(value; mean, std² I) summed over the last axis; arguments broadcast."""
    standard = (value - mean) / std
    return (-0.5 * (standard.square() + LOG_2PI) - std.log()).sum(-1)


class _GaussianLogLikelihood(torch.autograd.Function):
    """log N(x; mean, (SoftPlus(raw) + ε)²) summed over D, with its gradient written out.

    With r = (x - mean) / σ: d/dmean = r / σ and d/draw = (r² - 1) / σ · sigmoid(raw).
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, mean: Tensor, raw: Tensor, epsilon: Tensor) -> Tensor:
        residual, std = torch.empty_like(mean), torch.empty_like(raw)
        out = mean.new_empty(mean.shape[:-1])
        for rows in _blocks(mean):
            s = torch.add(F.softplus(raw[rows]), epsilon, out=std[rows])
            r = torch.sub(x.expand_as(mean)[rows], mean[rows], out=residual[rows]).div_(s)
            out[rows] = r.square().sum(-1).mul_(-0.5).sub_(s.log().sum(-1))
        ctx.save_for_backward(residual, std, epsilon)
        return out.sub_(0.5 * LOG_2PI * mean.shape[-1])

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[None, Tensor, Tensor, None]:
        residual, std, epsilon = ctx.saved_tensors
        grad = grads[0].unsqueeze(-1)
        grad_mean, grad_raw = torch.empty_like(residual), torch.empty_like(std)
        for rows in _blocks(residual):
            r, s = residual[rows], std[rows]
            weighted = grad[rows] / s
            torch.mul(r, weighted, out=grad_mean[rows])
            # sigmoid(raw) = 1 - exp(-SoftPlus(raw)), without keeping raw.
            slope = torch.sub(epsilon, s).expm1_().neg_()
            torch.mul(r.square().sub_(1), weighted.mul_(slope), out=grad_raw[rows])
        return None, grad_mean, grad_raw, None


def gaussian_log_likelihood(x: Tensor, mean: Tensor, raw_std: Tensor, epsilon: Tensor) -> Tensor:
    """log p(x|z) for Gaussian p(x|z), σ = SoftPlus(raw_std) + ε (paper eq. 2c and §II-D).

    Parameters
    ----------
    x
        ``(B, D)``; no gradient flows to it.
    mean, raw_std
        ``(M, B, D)``, float32.
    epsilon
        0-d, the annealed lower bound ε_x.

    Returns
    -------
    Tensor
        ``(M, B)``, in nats.
    """
    out: Tensor = _GaussianLogLikelihood.apply(x, mean, raw_std, epsilon)
    return out


class _AtClusters(torch.autograd.Function):
    """A gather along the first axis whose gradient a GPU sums in one order, not as its threads come by."""

    @staticmethod
    def forward(ctx: Any, values: Tensor, y: Tensor) -> Tensor:
        ctx.save_for_backward(y)
        ctx.shape = values.shape
        return values.gather(0, _index(values, y))

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        (y,) = ctx.saved_tensors
        # Places (the axes between) are batches of a product over samples: (n, K, M) by (n, M, L).
        chosen = y.flatten(1).T.unsqueeze(1) == torch.arange(ctx.shape[0], device=y.device).unsqueeze(-1)
        grad = grads[0].reshape(len(y), chosen.shape[0], -1).transpose(0, 1)
        return (chosen.to(grad.dtype) @ grad).transpose(0, 1).reshape(ctx.shape), None


def at_clusters(values: Tensor, y: Tensor) -> Tensor:
    """Of what there is for each cluster that for clusters y, int64 ``(M, ...)``.

    ``(K, ...) -> (M, ...)``, or with a last axis of its own ``(K, ..., L) -> (M, ..., L)``.
    """
    if values.device.type == "cpu":
        return values.gather(0, _index(values, y))
    out: Tensor = _AtClusters.apply(values, y)
    return out


def _index(values: Tensor, y: Tensor) -> Tensor:
    return y if values.ndim == y.ndim else y.unsqueeze(-1).expand(*y.shape, values.shape[-1])


def bernoulli_log_likelihood(x: Tensor, logits: Tensor) -> Tensor:
    """log p(x|z) for Bernoulli p(x|z): ``x (B, D)`` in [0, 1], ``logits (M, B, D)`` -> ``(M, B)`` nats."""
    return (x * logits - F.softplus(logits)).sum(-1)


def sample_categorical(log_probabilities: Tensor, n_samples: int, generator: Source) -> Tensor:
    """``n_samples`` draws by the Gumbel-max trick: ``(..., B, K) -> (n_samples, ..., B)``, int64.

    Unlike a multinomial sampler it never waits for the device.
    """
    shape = (n_samples, *log_probabilities.shape)
    waiting = draw("exponential", shape, generator, log_probabilities.device)
    return (log_probabilities.detach() - waiting.log()).argmax(-1)


def sample_relaxed(
    log_probabilities: Tensor, n_samples: int, temperature: float, generator: Source
) -> Tensor:
    """Draws of the Gumbel-Softmax (Jang et al., 2017): ``(..., B, K) -> (n_samples, ..., B, K)``.

    ``softmax((log π + g) / temperature)`` with Gumbel noise g; each is near a corner of the simplex, and the
    gradient reaches the probabilities through it.
    """
    shape = (n_samples, *log_probabilities.shape)
    waiting = draw("exponential", shape, generator, log_probabilities.device)
    return ((log_probabilities - waiting.log()) / temperature).softmax(-1)


def sample_normal(mean: Tensor, std: Tensor, generator: Source) -> Tensor:
    """A draw from N(mean, std²) as mean + std · noise; detach it for a score-function estimator."""
    return mean + std * draw("normal", tuple(mean.shape), generator, mean.device)


def _blocks(values: Tensor) -> list[tuple[slice, ...] | slice]:
    """Slices over the leading axes of ``(M, B, D)`` that keep a CPU block in cache; one slice on a GPU."""
    if values.device.type != "cpu" or values.ndim < 3:
        return [slice(None)]
    n_samples, batch, width = values.shape
    rows = max(1, _CACHE_VALUES // max(1, width))
    if rows >= batch:
        step = max(1, rows // batch)
        return [slice(start, start + step) for start in range(0, n_samples, step)]
    return [
        (slice(m, m + 1), slice(start, start + rows))
        for m in range(n_samples)
        for start in range(0, batch, rows)
    ]
