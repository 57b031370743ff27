"""The networks: trunks that map a batch to hidden features, and the float32 heads on top of them.

Trunks may multiply in bfloat16; heads return float32, because means and standard deviations rounded to
bfloat16 lose the detail of dequantised pixels.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from serving.manifest import InputSpec
from training.augment import channels_first, large_images, to_images, to_rows

NEGATIVE_SLOPE = 0.2
CHANNELS = (16, 32, 64)
SMALLEST_SIDE = 4


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


def conv(spec: InputSpec, hidden_sizes: Sequence[int]) -> Trunk:
    """Residual convolutions with 16, 32 and 64 channels, then a dense layer as wide as the last hidden size.

    Each stage halves the image until its shorter side would go under four pixels. Blocks are
    pre-activation ones with a 1x1 shortcut, as in the authors' published VAE examples.
    """
    channels, height, width = channels_first(spec)
    layers: list[nn.Module] = [_Images(spec)]
    for index, wider in enumerate(CHANNELS):
        stride = 2 if min(height, width) > SMALLEST_SIDE else 1
        height, width = -(-height // stride), -(-width // stride)
        layers.append(
            _convolution(channels, wider, 5, stride) if index == 0 else _Residual(channels, wider, stride)
        )
        channels = wider
    layers += [
        nn.GroupNorm(1, channels),
        nn.LeakyReLU(NEGATIVE_SLOPE),
        nn.Flatten(),
        dense(channels * height * width, hidden_sizes[-1]),
        nn.LeakyReLU(NEGATIVE_SLOPE),
    ]
    trunk = Trunk(*layers)
    trunk.in_features, trunk.out_features = spec.row_size, hidden_sizes[-1]
    # On CPUs, too, convolutions are a third faster so.
    trunk.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    return trunk


def conv_decoder(latent_dim: int, spec: InputSpec) -> Trunk:
    """Residual upsampling from z to a map of 16 channels as large as the image, flattened.

    A dense layer to 64 channels at a quarter of the size, then two blocks each followed by a doubling, as in
    the authors' published VAE examples. `PixelHead` belongs on top.
    """
    _, height, width = channels_first(spec)
    narrow, middle, wide = CHANNELS
    size = (-(-height // 4), -(-width // 4))
    trunk = Trunk(
        dense(latent_dim, wide * size[0] * size[1]),
        nn.Unflatten(-1, (wide, *size)),
        _Residual(wide, middle, 1),
        nn.Upsample(scale_factor=2),
        _Residual(middle, narrow, 1),
        nn.Upsample((height, width)),
        nn.GroupNorm(1, narrow),
        nn.LeakyReLU(NEGATIVE_SLOPE),
        nn.Flatten(),
    )
    trunk.in_features, trunk.out_features = latent_dim, narrow * height * width
    return trunk


class _Images(nn.Module):
    """Flattened rows as images, channels first."""

    def __init__(self, spec: InputSpec) -> None:
        super().__init__()
        self.spec = spec

    def forward(self, x: Tensor) -> Tensor:
        return to_images(x, self.spec)


class _Residual(nn.Module):
    """Pre-activation residual block of two 3x3 convolutions."""

    def __init__(self, before: int, after: int, stride: int) -> None:
        super().__init__()
        self.inner = nn.Sequential(
            nn.GroupNorm(1, before),
            nn.LeakyReLU(NEGATIVE_SLOPE),
            _convolution(before, after, 3, stride),
            nn.GroupNorm(1, after),
            nn.LeakyReLU(NEGATIVE_SLOPE),
            _convolution(after, after, 3, 1),
        )
        self.shortcut = _convolution(before, after, 1, stride)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.inner(x) + self.shortcut(x)
        return out


def _convolution(before: int, after: int, kernel: int, stride: int) -> nn.Conv2d:
    layer = nn.Conv2d(before, after, kernel, stride, kernel // 2)
    nn.init.xavier_normal_(layer.weight)
    assert layer.bias is not None
    nn.init.zeros_(layer.bias)
    return layer


def network_for(network: str, spec: InputSpec) -> str:
    """The kind of encoder meant by ``"auto"``: convolutions where images are large enough for them."""
    if network == "auto":
        return "conv" if large_images(spec) else "mlp"
    return network


# The encoder's hidden layers: from the description of a row and the hidden sizes to a trunk.
ENCODERS: dict[str, Callable[[InputSpec, Sequence[int]], Trunk]] = {
    "mlp": lambda spec, hidden_sizes: mlp(spec.row_size, hidden_sizes),
    "conv": conv,
}


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


class PixelHead(nn.Module):
    """The same linear output layer at every pixel of a flattened feature map, in float32."""

    def __init__(self, in_features: int, spec: InputSpec) -> None:
        super().__init__()
        self.spec = spec
        channels, *self.size = channels_first(spec)
        self.linear = Head(in_features // (self.size[0] * self.size[1]), channels)

    def forward(self, hidden: Tensor) -> Tensor:
        """``(..., in_features) -> (..., D)``, float32."""
        maps = hidden.unflatten(-1, (-1, *self.size)).movedim(-3, -1)
        pixels: Tensor = self.linear(maps)
        return to_rows(pixels.movedim(-1, -3).flatten(0, -4), self.spec).unflatten(0, hidden.shape[:-1])


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
