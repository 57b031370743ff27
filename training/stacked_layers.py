"""Layers of several runs side by side: one batched matrix product where each run had its own.

Weights have a leading axis of S runs. Values have it just before the rows, ``(..., S, rows, features)``, and
are laid out in memory with the run outermost, so that bringing it to the front for a product copies nothing.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from training.networks import Head

_ELEMENTWISE = (nn.LeakyReLU,)


def stacked_product(values: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """``(..., S, N, in)`` times ``(S, in, out)``, plus ``(S, out)`` -> ``(..., S, N, out)``."""
    runs_first = values.movedim(-3, 0)
    flat = runs_first.flatten(1, -2)
    out = flat @ weight if bias is None else torch.baddbmm(bias.unsqueeze(1), flat, weight)
    return out.unflatten(1, runs_first.shape[1:-1]).movedim(0, -3)


class StackedLinear(nn.Module):
    """S linear layers."""

    def __init__(self, layers: Sequence[nn.Linear]) -> None:
        super().__init__()
        self.weight = stacked_parameter([layer.weight for layer in layers])
        self.bias = stacked_parameter([layer.bias for layer in layers])

    def forward(self, values: Tensor) -> Tensor:
        """``(..., S, N, in) -> (..., S, N, out)``."""
        return stacked_product(values, self.weight.mT, self.bias)


class StackedHead(StackedLinear):
    """S output layers in float32, as `training.networks.Head`."""

    def forward(self, hidden: Tensor) -> Tensor:
        """``(..., S, N, in) -> (..., S, N, out)``, float32 whatever the dtype of ``hidden``."""
        kind = hidden.device.type
        if not torch.is_autocast_enabled(kind):
            return super().forward(hidden)
        runs_first = hidden.movedim(-3, 0)
        out: Tensor = _Float32Product.apply(
            runs_first.flatten(1, -2), self.weight, self.bias, torch.get_autocast_dtype(kind)
        )
        return out.unflatten(1, runs_first.shape[1:-1]).movedim(0, -3)


class _Float32Product(torch.autograd.Function):
    """`training.networks._Float32Linear` with a leading axis: ``(S, N, in), (S, out, in), (S, out)``."""

    @staticmethod
    def forward(ctx: Any, hidden: Tensor, weight: Tensor, bias: Tensor, low: torch.dtype) -> Tensor:
        ctx.save_for_backward(hidden.to(low), weight)
        ctx.hidden_dtype = hidden.dtype
        with torch.autocast(hidden.device.type, enabled=False):
            return torch.baddbmm(bias.unsqueeze(1), hidden.float(), weight.mT)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor, Tensor, None]:
        hidden, weight = ctx.saved_tensors
        grad = grads[0].to(hidden.dtype)
        grad_hidden = (grad @ weight.to(hidden.dtype)).to(ctx.hidden_dtype)
        return grad_hidden, (grad.mT @ hidden).float(), grads[0].sum(1), None


def stacked_parameter(parameters: Sequence[Tensor]) -> nn.Parameter:
    """Parameters of S runs, each ``(...)``, as one ``(S, ...)``."""
    return nn.Parameter(torch.stack([parameter.detach() for parameter in parameters]))


def stack_layers(layers: Sequence[nn.Module]) -> nn.Module:
    """The same layer of S runs as one with a leading axis; containers keep their names.

    Raises
    ------
    TypeError
        If there is no stacked form of it.
    """
    first = layers[0]
    if isinstance(first, nn.Linear):
        kind = StackedHead if isinstance(first, Head) else StackedLinear
        return kind([layer for layer in layers if isinstance(layer, nn.Linear)])
    if isinstance(first, _ELEMENTWISE):
        return first
    if not isinstance(first, nn.Sequential):
        raise TypeError(f"a {type(first).__name__} cannot be stacked")
    stacked = copy.copy(first)
    stacked._modules = {
        name: stack_layers([layer.get_submodule(name) for layer in layers])
        for name, _ in first.named_children()
    }
    return stacked
