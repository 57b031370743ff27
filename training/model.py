"""NVISA's two nets and their densities: p(x|z) p(z|y) p(y) and q(z|y,x) q(y|x) (paper §II-A).

Shapes: batch B, samples M, clusters K, latent L, data D (a row flattened).
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from serving.bundle import InputSpec
from training.config import TrainingConfig
from training.densities import (
    bernoulli_log_likelihood,
    bounded_std,
    gaussian_log_likelihood,
    normal_log_density,
)
from training.networks import ENCODERS, NEGATIVE_SLOPE, Head, dense, mlp
from training.noise import Source, draw

GREY_LEVELS = 256


class Encoding(NamedTuple):
    """What the encoder says of a batch once, before any sampling: hidden features and log q(y|x)."""

    hidden: Tensor  # (B, H)
    log_q_y: Tensor  # (B, K), float32


class NVISAModel(nn.Module):
    """Gaussian mixture VAE with q(z|y,x) q(y|x), or q(z|x) q(y|x) with ``mean_field``.

    The encoder's trunk runs once a row; y joins after it, as a learned vector added to the z head's hidden
    layer (a one-hot y concatenated there is the same map), so that only the z head and the decoder run
    for every sample.

    Parameters
    ----------
    config
        Hyper-parameters.
    spec
        dtype, shape and meaning of one row.
    """

    shift: Tensor
    scale: Tensor
    epsilon_x: Tensor
    epsilon_z: Tensor
    first_epsilon_x: Tensor

    def __init__(self, config: TrainingConfig, spec: InputSpec) -> None:
        super().__init__()
        self.spec = spec
        self.likelihood = config.likelihood
        width, n_clusters, latent = spec.row_size, config.n_clusters, config.latent_dim
        self.encoder = ENCODERS[config.network](spec, config.hidden_sizes)
        hidden = self.encoder.out_features
        self.y_head = Head(hidden, n_clusters)
        self.z_from_x = dense(hidden, hidden)
        self.z_from_y = None if config.mean_field else nn.Parameter(torch.empty(n_clusters, hidden))
        if self.z_from_y is not None:
            nn.init.xavier_normal_(self.z_from_y)
        self.z_mean = Head(hidden, latent)
        self.z_raw_std = Head(hidden, latent)
        self.prior_mean = nn.Parameter(torch.randn(n_clusters, latent))
        self.prior_raw_std = nn.Parameter(torch.zeros(n_clusters, latent))
        self.decoder = mlp(latent, config.hidden_sizes[::-1])
        self.x_mean = Head(self.decoder.out_features, width)
        self.x_raw_std = Head(self.decoder.out_features, width) if config.likelihood == "gaussian" else None
        self.register_buffer("shift", torch.zeros(width))
        self.register_buffer("scale", torch.ones(width))
        self.register_buffer("epsilon_x", torch.tensor(1.0))
        self.register_buffer("epsilon_z", torch.tensor(config.epsilon_z))
        self.register_buffer("first_epsilon_x", torch.tensor(1.0))

    @property
    def n_clusters(self) -> int:
        """Number of clusters K."""
        return self.prior_mean.shape[-2]

    def standardise_as(self, mean: Tensor, std: Tensor) -> None:
        """Take features' ``mean`` and ``std``, each ``(D,)``; constant columns keep scale 1.

        Summing a constant leaves a std of some 1e-17 of it, by which a new row would be blown up: what is
        below float32's own rounding of the column is no variation.
        """
        varies = (std > torch.finfo(torch.float32).eps * mean.abs()) & (std.float() > 0)
        self.shift.copy_(mean)
        self.scale.copy_(torch.where(varies, std, torch.ones_like(std)))

    def preprocess(self, rows: Tensor, generator: Source | None = None) -> Tensor:
        """Raw rows ``(..., B, *shape)`` -> float32 ``(..., B, D)`` as the nets see them.

        Images are dequantised, (x + u) / 256, with u uniform and drawn anew each time, or u = 1/2 without
        a generator; with a Bernoulli p(x|z) they are drawn from Bernoulli(x / 255), or kept as its mean.
        Features are standardised.
        """
        x = rows.flatten(rows.ndim - len(self.spec.shape)).to(torch.float32)
        if self.spec.dtype == "float32":
            return (x - self.shift) / self.scale if self.likelihood == "gaussian" else x
        if self.likelihood == "bernoulli":
            mean = x / (GREY_LEVELS - 1)
            return mean if generator is None else self._uniform(x, generator).lt(mean).float()
        return (x + (0.5 if generator is None else self._uniform(x, generator))) / GREY_LEVELS

    @staticmethod
    def _uniform(x: Tensor, generator: Source) -> Tensor:
        return draw("uniform", tuple(x.shape), generator, x.device)

    def encode(self, x: Tensor) -> Encoding:
        """``(B, D)`` -> hidden features and log q(y|x)."""
        hidden = self.encoder(x)
        return Encoding(hidden, F.log_softmax(self.y_head(hidden), -1))

    def q_z(self, hidden: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and std of q(z|y,x): ``hidden (B, H)``, ``y (..., B)`` int64 -> two of ``(..., B, L)``."""
        features = self.z_from_x(hidden)
        if self.z_from_y is None:
            features = features.expand(*y.shape, -1)
        else:
            # A product, not a look-up: its gradient is summed in float32 even when features are bfloat16.
            features = features + F.one_hot(y, self.n_clusters).to(features.dtype) @ self.z_from_y
        features = F.leaky_relu(features, NEGATIVE_SLOPE)
        return self.z_mean(features), bounded_std(self.z_raw_std(features), self.epsilon_z)

    def p_z(self, y: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and std of p(z|y), std = SoftPlus(.) + 1: ``y (...)`` -> two of ``(..., L)``."""
        return F.embedding(y, self.prior_mean), bounded_std(F.embedding(y, self.prior_raw_std), 1.0)

    def log_p_x(self, x: Tensor, z: Tensor) -> Tensor:
        """log p(x|z): ``x (B, D)``, ``z (M, B, L)`` -> ``(M, B)`` in nats."""
        hidden = self.decoder(z)
        if self.x_raw_std is None:
            return bernoulli_log_likelihood(x, self.x_mean(hidden))
        return gaussian_log_likelihood(x, self.x_mean(hidden), self.x_raw_std(hidden), self.epsilon_x)

    def log_joint(self, x: Tensor, y: Tensor, z: Tensor) -> Tensor:
        """log p(x, y, z) with p(y) uniform: ``x (B, D)``, ``y (M, B)``, ``z (M, B, L)`` -> ``(M, B)``."""
        return self.log_p_x(x, z) + normal_log_density(z, *self.p_z(y)) - math.log(self.n_clusters)

    def x_given_z(self, z: Tensor) -> Tensor:
        """Mean of p(x|z) in the units of the raw rows: ``(n, L) -> (n, D)``, float32."""
        mean = self.x_mean(self.decoder(z))
        if self.likelihood == "bernoulli":
            mean = mean.sigmoid()
            return mean * (GREY_LEVELS - 1) if self.spec.dtype == "uint8" else mean
        if self.spec.dtype == "uint8":
            return mean * GREY_LEVELS - 0.5
        return mean * self.scale + self.shift

    def forward(self, rows: Tensor) -> Tensor:
        """q(y|x) of raw rows: ``(B, *shape) -> (B, K)``; the map that is exported."""
        return self.encode(self.preprocess(rows)).log_q_y.exp()


class Baseline(nn.Module):
    """NVIL's baseline net C(x) and learned constant c (paper eq. 6)."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.net = nn.Sequential(mlp(width, (hidden,)), Head(hidden, 1))
        self.constant = nn.Parameter(torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        """``(B, D) -> (B,)``: C(x) + c."""
        out: Tensor = self.net(x).squeeze(-1) + self.constant
        return out
