"""NVISA's two nets and their densities: p(x|z) p(z|y) p(y) and q(z|y,x) q(y|x) (paper §II-A).

Shapes: batch B, samples M, clusters K, latent L, data D (a row flattened).
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from serving.manifest import InputSpec
from training.config import TrainingConfig
from training.decoding import bernoulli, decoded_log_likelihood, gaussian
from training.densities import (
    at_clusters,
    bernoulli_log_likelihood,
    bounded_std,
    gaussian_log_likelihood,
    normal_log_density,
)
from training.networks import (
    ENCODERS,
    NEGATIVE_SLOPE,
    Head,
    PixelHead,
    conv_decoder,
    dense,
    mlp,
    network_for,
)
from training.noise import Source, draw

GREY_LEVELS = 256
# Values of the largest [samples, B, D] block that is kept for the backward pass: 64 MiB of float32.
CHUNK_VALUES = 2**24


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
        self.encoder = ENCODERS[network_for(config.network, spec)](spec, config.hidden_sizes)
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
        convolves = config.decoder == "conv"
        self.decoder = conv_decoder(latent, spec) if convolves else mlp(latent, config.hidden_sizes[::-1])

        self.widest = max(width, self.decoder.out_features, *(len(p) for p in self.decoder.parameters()))

        def head() -> nn.Module:
            top = self.decoder.out_features
            return PixelHead(top, spec) if convolves else Head(top, width)

        self.x_mean = head()
        self.x_raw_std = head() if config.likelihood == "gaussian" else None
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
        # Float first: TensorRT does nothing else with bytes, and would leave them and the rest in two parts.
        x = rows.to(torch.float32).flatten(rows.ndim - len(self.spec.shape))
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
        """Mean and std of q(z|y,x): ``hidden (B, H)``, ``y (..., B)`` int64 -> two of ``(..., B, L)``.

        The head runs once for each distinct y there can be, or for each y given, whichever is less.
        """
        features = self.z_from_x(hidden)
        if self.z_from_y is None:
            mean, std = self._z_head(features)
            return mean.expand(*y.shape, -1), std.expand(*y.shape, -1)
        if y[..., 0].numel() > self.n_clusters:
            # (K, B, H): what each y would give.
            mean, std = self._z_head(features + self.z_from_y.to(features.dtype).unsqueeze(1))
            chosen, shape = y.flatten(0, -2), (*y.shape, mean.shape[-1])
            return at_clusters(mean, chosen).view(shape), at_clusters(std, chosen).view(shape)
        # A product, not a look-up: its gradient is summed in float32 even when features are bfloat16.
        return self._z_head(features + F.one_hot(y, self.n_clusters).to(features.dtype) @ self.z_from_y)

    def q_z_relaxed(self, hidden: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        """`q_z` at a point of the simplex: ``hidden (B, H)``, ``y (M, B, K)`` -> two of ``(M, B, L)``."""
        features = self.z_from_x(hidden).expand(len(y), -1, -1)
        if self.z_from_y is not None:
            features = features + y.to(features.dtype) @ self.z_from_y.to(features.dtype)
        return self._z_head(features)

    def _z_head(self, features: Tensor) -> tuple[Tensor, Tensor]:
        features = F.leaky_relu(features, NEGATIVE_SLOPE)
        return self.z_mean(features), bounded_std(self.z_raw_std(features), self.epsilon_z)

    def p_z(self, y: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and std of p(z|y), std = SoftPlus(.) + 1: ``y (...)`` -> two of ``(..., L)``."""
        return F.embedding(y, self.prior_mean), bounded_std(F.embedding(y, self.prior_raw_std), 1.0)

    def p_z_relaxed(self, y: Tensor) -> tuple[Tensor, Tensor]:
        """`p_z` at a point of the simplex, parameters interpolated: ``y (M, B, K)`` -> ``(M, B, L)`` each."""
        with torch.autocast(y.device.type, enabled=False):
            return y @ self.prior_mean, bounded_std(y @ self.prior_raw_std, 1.0)

    def log_p_x(self, x: Tensor, z: Tensor) -> Tensor:
        """log p(x|z): ``x (B, D)``, ``z (M, B, L)`` -> ``(M, B)`` in nats.

        Many samples are decoded in chunks, which the backward pass decodes again, so that memory for the
        ``[M, B, D]`` outputs does not grow with M.
        """
        n_samples, chunk = len(z), self._samples_at_once(x.shape[-2])
        if n_samples <= chunk:
            return self._log_p_x(x, z)
        parts = [
            checkpoint(self._log_p_x, x, part, use_reentrant=False, preserve_rng_state=False)
            for part in z.split(chunk)
        ]
        return torch.cat(parts)

    def _samples_at_once(self, batch: int) -> int:
        """Samples to decode together, for ``[chunk, B, widest layer]`` blocks of at most `CHUNK_VALUES`."""
        return max(1, CHUNK_VALUES // (batch * self.widest))

    def _log_p_x(self, x: Tensor, z: Tensor) -> Tensor:
        hidden = self._decode(z)
        heads = [head for head in (self.x_mean, self.x_raw_std) if isinstance(head, nn.Linear)]
        if hidden.device.type == "cpu" and heads:
            density = bernoulli if self.x_raw_std is None else gaussian
            return decoded_log_likelihood(density, x, hidden, heads, self.epsilon_x)
        if self.x_raw_std is None:
            return bernoulli_log_likelihood(x, self.x_mean(hidden))
        return gaussian_log_likelihood(x, self.x_mean(hidden), self.x_raw_std(hidden), self.epsilon_x)

    def _decode(self, z: Tensor) -> Tensor:
        """Convolutions know one batch axis only: ``(..., L) -> (..., H)``."""
        hidden: Tensor = self.decoder(z.flatten(0, -2)).unflatten(0, z.shape[:-1])
        return hidden

    def log_joint(self, x: Tensor, y: Tensor, z: Tensor) -> Tensor:
        """log p(x, y, z) with p(y) uniform: ``x (B, D)``, ``y (M, B)``, ``z (M, B, L)`` -> ``(M, B)``."""
        return self.log_p_x(x, z) + normal_log_density(z, *self.p_z(y)) - math.log(self.n_clusters)

    def x_given_z(self, z: Tensor) -> Tensor:
        """Mean of p(x|z) in the units of the raw rows: ``(n, L) -> (n, D)``, float32."""
        mean: Tensor = self.x_mean(self._decode(z))
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
