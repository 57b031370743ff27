"""Random changes of images that a cluster should survive: small affine maps, and views for contrast."""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from serving.manifest import InputSpec
from training.noise import Source, draw

TURN = math.radians(10)
LOG_SCALE = 0.1
SHEAR = 0.14
LEAST_SIDE = 16
SHIFT = 1 / 7  # of half the image: two pixels of MNIST's 28

# Of views: least share of the image's area, log of the most that sides are stretched against each other, log
# of the exponent that values are raised to, and by how much contrast changes.
LEAST_AREA = 0.3
LOG_STRETCH = 0.25
LOG_GAMMA = 0.5
CONTRAST = 0.4


def augments(augment: Literal["auto"] | bool, spec: InputSpec) -> bool:
    """Whether to change rows: as told, or ``"auto"``, where they are `large_images`."""
    return large_images(spec) if augment == "auto" else augment


def large_images(spec: InputSpec) -> bool:
    """Whether rows are images of enough pixels for convolutions, and for changes that are no mere blur."""
    is_image = spec.meaning == "image" and len(spec.shape) in (2, 3)
    return is_image and min(channels_first(spec)[1:]) >= LEAST_SIDE


def channels_first(spec: InputSpec) -> tuple[int, int, int]:
    """(channels, height, width) of an image row; the shorter of first and last axis holds the channels.

    Raises
    ------
    ValueError
        If rows are not images.
    """
    if spec.meaning != "image" or len(spec.shape) not in (2, 3):
        raise ValueError(f"rows of {spec.dtype} {spec.shape} are no images: use network=mlp, augment=false")
    if len(spec.shape) == 2:
        return 1, *spec.shape
    first, middle, last = spec.shape
    return (last, first, middle) if last <= first else (first, middle, last)


def to_images(x: Tensor, spec: InputSpec) -> Tensor:
    """Flattened rows ``(B, D)`` -> ``(B, channels, height, width)``."""
    channels, height, width = channels_first(spec)
    if len(spec.shape) == 3 and spec.shape[-1] == channels and spec.shape[0] == height:
        return x.unflatten(1, (height, width, channels)).movedim(-1, 1)
    return x.unflatten(1, (channels, height, width))


def to_rows(images: Tensor, spec: InputSpec) -> Tensor:
    """Back from `to_images`."""
    channels, height, _ = channels_first(spec)
    if len(spec.shape) == 3 and spec.shape[-1] == channels and spec.shape[0] == height:
        images = images.movedim(1, -1)
    return images.flatten(1)


def affine(x: Tensor, spec: InputSpec, generator: Source) -> Tensor:
    """Each image turned by up to 10°, scaled by up to 10 %, sheared and shifted, uniformly at random.

    Parameters
    ----------
    x
        Preprocessed rows ``(..., B, D)``. What comes in from outside the image is 0.
    """
    images = to_images(x.flatten(0, -2), spec)
    noise = 2 * draw("uniform", (6, *x.shape[:-1]), generator, x.device, run_axis=-2) - 1
    turn, wide, high, shear, right, down = noise.flatten(1).unbind()
    cos, sin = (TURN * turn).cos(), (TURN * turn).sin()
    wide, high, shear = (LOG_SCALE * wide).exp(), (LOG_SCALE * high).exp(), SHEAR * shear
    maps = [
        [cos * wide, shear * cos - sin * high, SHIFT * right],
        [sin * wide, shear * sin + cos * high, SHIFT * down],
    ]
    return to_rows(_moved(images, maps), spec).view(x.shape)


def view(x: Tensor, spec: InputSpec, generator: Source) -> Tensor:
    """A view of each image, as in SimCLR (Chen et al., 2020): a part of it in full size, in other tones.

    The part has 30 % to all of the area and is stretched by up to a quarter and turned by up to 10°; values
    are raised to a power between 0.6 and 1.65 and, in each channel, multiplied by 0.6 to 1.4. Nothing is
    mirrored: of digits and letters that makes others.

    Parameters
    ----------
    x
        Preprocessed rows ``(B, D)`` of values from 0 to 1.
    """
    images = to_images(x, spec)
    n_rows, channels = images.shape[:2]
    area, *noise = draw("uniform", (6 + channels, n_rows), generator, x.device).unbind()
    stretch, right, down, turn, gamma, *gains = (2 * values - 1 for values in noise)
    side, stretch = (LEAST_AREA + (1 - LEAST_AREA) * area).sqrt(), (LOG_STRETCH / 2 * stretch).exp()
    wide, high = (side * stretch).clamp(max=1), (side / stretch).clamp(max=1)
    cos, sin = (TURN * turn).cos(), (TURN * turn).sin()
    maps = [[wide * cos, -high * sin, right * (1 - wide)], [wide * sin, high * cos, down * (1 - high)]]
    toned = _moved(images, maps).clamp(0, 1) ** (LOG_GAMMA * gamma).exp().view(-1, 1, 1, 1)
    return to_rows(toned * (1 + CONTRAST * torch.stack(gains, 1))[..., None, None], spec)


def _moved(images: Tensor, maps: list[list[Tensor]]) -> Tensor:
    """Images ``(B, channels, height, width)`` under affine maps, 2 x 3 entries of ``(B,)`` each."""
    matrices = torch.stack([torch.stack(row, -1) for row in maps], 1)
    grid = F.affine_grid(matrices, list(images.shape), align_corners=False)
    return F.grid_sample(images, grid, align_corners=False)
