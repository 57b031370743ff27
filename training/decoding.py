"""log p(x|z) from the decoder's hidden features: heads and density as one step with a gradient of its own.

For a CPU. The ``[M, B, D]`` outputs of the heads are replaced, in blocks that stay in cache, by the
derivatives of the log-density by them. The gradient skips samples whose weight vanishes: VIMCO weighs the
samples of a row by their share of its bound, the enumerated ELBO by q(y|x), and the colder ε, the more of
these are zero to every digit that float32 keeps.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from training.densities import LOG_2PI

# Values of a block that is worked on together, so that its intermediates stay in a core's cache.
CACHE_VALUES = 1 << 16
# Samples of a row with less than this share of its largest weight are below the rounding of a float32 sum.
NEGLIGIBLE = 2.0**-24
# Numbers of samples that a backward pass may take.
SIZES = 8

# From x, the heads' outputs and ε, all ``(n, D)`` but ε, to the log-density ``(n,)``. The outputs are
# overwritten, each with the derivative by it.
Density = Callable[[Tensor, Sequence[Tensor], Tensor], Tensor]


def gaussian(x: Tensor, outputs: Sequence[Tensor], epsilon: Tensor) -> Tensor:
    """log N(x; mean, σ²) with outputs mean and raw, σ = SoftPlus(raw) + ε (paper eq. 2c and §II-D).

    With r = (x - mean) / σ the derivatives are r / σ and (r² - 1) / σ · sigmoid(raw).
    """
    mean, raw = outputs
    std = F.softplus(raw).add_(epsilon)
    residual = torch.sub(x, mean, out=mean).div_(std)
    squared = residual.square()
    log_density = squared.sum(-1).add_(LOG_2PI * x.shape[-1]).mul_(-0.5).sub_(std.log().sum(-1))
    residual.div_(std)
    raw.sigmoid_().div_(std).mul_(squared.sub_(1))
    return log_density


def bernoulli(x: Tensor, outputs: Sequence[Tensor], epsilon: Tensor) -> Tensor:
    """log Bernoulli(x; sigmoid(logits)), whose derivative is x - sigmoid(logits); ε plays no part."""
    (logits,) = outputs
    log_density = (x * logits).sub_(F.softplus(logits)).sum(-1)
    torch.sub(x, logits.sigmoid_(), out=logits)
    return log_density


def decoded_log_likelihood(
    density: Density, x: Tensor, hidden: Tensor, heads: Sequence[nn.Linear], epsilon: Tensor
) -> Tensor:
    """log p(x|z) of the decoder's hidden features, in nats.

    Heads multiply in their weights' precision; under autocast their gradients are multiplied in its dtype.

    Parameters
    ----------
    density
        `gaussian` or `bernoulli`.
    x
        ``(B, D)``; no gradient flows to it.
    hidden
        ``(M, B, H)``.
    heads
        From ``H`` to ``D``, as many as the density has outputs.
    epsilon
        0-d; no gradient flows to it.

    Returns
    -------
    Tensor
        ``(M, B)``.
    """
    kind = hidden.device.type
    low = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else heads[0].weight.dtype
    parameters = [parameter for head in heads for parameter in (head.weight, head.bias)]
    out: Tensor = _Decoded.apply(density, x, epsilon, low, hidden, *parameters)
    return out


class _Decoded(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        density: Density,
        x: Tensor,
        epsilon: Tensor,
        low: torch.dtype,
        hidden: Tensor,
        *parameters: Tensor,
    ) -> Tensor:
        weights, biases = parameters[::2], parameters[1::2]
        with torch.autocast(hidden.device.type, enabled=False):
            full = hidden.flatten(0, -2).to(weights[0].dtype)
            outputs = [F.linear(full, w, b) for w, b in zip(weights, biases, strict=True)]
        out = x.new_empty(len(full))
        batch, rows = len(x), max(1, CACHE_VALUES // x.shape[-1])
        for start in range(0, len(full), batch):
            # Blocks within a sample, so that each is beside rows of x.
            for begin in range(0, batch, rows):
                end = min(begin + rows, batch)
                block = slice(start + begin, start + end)
                out[block] = density(x[begin:end], [values[block] for values in outputs], epsilon)
        ctx.save_for_backward(hidden.to(low), *weights, *outputs)
        ctx.low, ctx.hidden_dtype = low, hidden.dtype
        return out.unflatten(0, hidden.shape[:-1])

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        hidden, *saved = ctx.saved_tensors
        weights, slopes = saved[: len(saved) // 2], saved[len(saved) // 2 :]
        grad = grads[0]
        kept = _weighty(grad)
        rows, width = len(kept), slopes[0].shape[-1]
        weight = grad.flatten()[kept].unsqueeze(-1)
        # One product for all heads, with one rounding of their sum.
        by_output = torch.empty((rows, len(slopes) * width), dtype=ctx.low)
        by_bias = torch.zeros(len(slopes) * width, dtype=slopes[0].dtype)
        step = max(1, CACHE_VALUES // width)
        for begin in range(0, rows, step):
            block = slice(begin, begin + step)
            for index, slope in enumerate(slopes):
                columns = slice(index * width, (index + 1) * width)
                value = slope[kept[block]].mul_(weight[block])
                by_output[block, columns] = value
                by_bias[columns] += value.sum(0)
        features = hidden.flatten(0, -2)
        by_weight = (by_output.T @ features[kept]).to(weights[0].dtype)
        by_hidden = torch.zeros_like(features, dtype=ctx.hidden_dtype)
        by_hidden[kept] = (by_output @ torch.cat([w.to(ctx.low) for w in weights])).to(ctx.hidden_dtype)
        by_parameters = [
            part for pair in zip(by_weight.split(width), by_bias.split(width), strict=True) for part in pair
        ]
        return None, None, None, None, by_hidden.unflatten(0, hidden.shape[:-1]), *by_parameters


def _weighty(grad: Tensor) -> Tensor:
    """Flat indices of the samples ``(M, B)`` whose gradient counts beside the largest of their row.

    NaN counts, so that it reaches the parameters and is noticed. The number is rounded up, with samples that
    do not count, to one of `SIZES`: matrix products are compiled for each size they meet, and kept.
    """
    size = grad.abs()
    negligible = (size <= NEGLIGIBLE * size.amax(0, keepdim=True)).flatten()
    step = -(-len(negligible) // SIZES)
    count = len(negligible) - int(negligible.sum())
    return negligible.to(torch.uint8).argsort(stable=True)[: -(-count // step) * step]
