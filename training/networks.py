"""The networks: trunks that map a batch to hidden features, and the float32 heads on top of them.

Trunks may multiply in bfloat16; heads return float32, because means and standard deviations rounded to
bfloat16 lose the detail of dequantised pixels. A residual convolutional trunk is a further `Trunk`.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

NEGATIVE_SLOPE = 0.2


class Trunk(nn.Sequential):
    """Hidden layers, ``(n, in_features) -> (n, out_features)``.

    Attributes
    ----------
    in_features, out_features
        Width of the input and of the last layer.
    """

    in_features: int
    out_features: int


def mlp(in_features: int, hidden_sizes: Sequence[int]) -> Trunk:
    """Fully connected trunk with leaky ReLU 0.2 after each layer."""
    sizes = [in_features, *hidden_sizes]
    layers: list[nn.Module] = []
    for before, after in itertools.pairwise(sizes):
        layers += [dense(before, after), nn.LeakyReLU(NEGATIVE_SLOPE)]
    trunk = Trunk(*layers)
    trunk.in_features, trunk.out_features = in_features, sizes[-1]
    return trunk


# The kinds of hidden layers: from the width of the input and the hidden sizes to a trunk.
TRUNKS: dict[str, Callable[[int, Sequence[int]], Trunk]] = {"mlp": mlp}


def dense(in_features: int, out_features: int) -> nn.Linear:
    """Linear layer with Glorot-normal weights and zero bias."""
    layer = nn.Linear(in_features, out_features)
    nn.init.xavier_normal_(layer.weight)
    nn.init.zeros_(layer.bias)
    return layer


class Head(nn.Linear):
    """Linear output layer in float32; under autocast only its gradients are multiplied in low precision."""

    def __init__(self, in_features: int, out_features: int) -> None:
        super().__init__(in_features, out_features)
        nn.init.xavier_normal_(self.weight)
        nn.init.zeros_(self.bias)

    def forward(self, hidden: Tensor) -> Tensor:
        """``(..., in_features) -> (..., out_features)``, float32 whatever the dtype of ``hidden``."""
        kind = hidden.device.type
        if not torch.is_autocast_enabled(kind):
            return F.linear(hidden, self.weight, self.bias)
        out: Tensor = _Float32Linear.apply(
            hidden.flatten(0, -2), self.weight, self.bias, torch.get_autocast_dtype(kind)
        )
        return out.unflatten(0, hidden.shape[:-1])


class _Float32Linear(torch.autograd.Function):
    """Float32 forward, low-precision matrix products backward: rounding there is small beside the noise."""

    @staticmethod
    def forward(ctx: Any, hidden: Tensor, weight: Tensor, bias: Tensor, low: torch.dtype) -> Tensor:
        ctx.save_for_backward(hidden.to(low), weight)
        ctx.hidden_dtype = hidden.dtype
        with torch.autocast(hidden.device.type, enabled=False):
            return F.linear(hidden.float(), weight, bias)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor, Tensor, None]:
        hidden, weight = ctx.saved_tensors
        grad = grads[0].to(hidden.dtype)
        grad_hidden = (grad @ weight.to(hidden.dtype)).to(ctx.hidden_dtype)
        return grad_hidden, (grad.T @ hidden).float(), grads[0].sum(0), None
