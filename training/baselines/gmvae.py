"""GMVAE (Dilokthanakul et al., 2016): what NVISA's paper means by this name, its reference [7].

p(x, z, w, y) = p(w) p(y) p(z|w, y) p(x|z), with p(w) = N(0, I) and p(y) uniform. The components of p(z|w, y)
are Gaussians whose means and variances a network makes of the noise w, and q = q(z|x) q(w|x) p(y|z, w) is
mean-field, with the exact p(y|z, w). Names are NVISA's: what they call x, y and z is z, x and y here.

Own code: ClustPy has no GMVAE.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from training.baselines.begin import Say, begin, joint_epochs, with_variational_decoder
from training.baselines.clusterer import Clusterer
from training.baselines.loop import epochs, run
from training.baselines.vae import kl_from_standard, log_p_x, q_z, vae_parameters
from training.config import TrainingConfig
from training.densities import bounded_std, normal_log_density, sample_normal
from training.model import NVISAModel
from training.networks import NEGATIVE_SLOPE, Head, dense, mlp
from training.rows import MappedRows, part_rows

# Share of log K under which the prior term of y is not pushed: their minimum information constraint.
FREE_SHARE = 0.5
LEAST_PRIOR_STD = 1e-2


class Posterior(NamedTuple):
    """q(z|x) and q(w|x): means and stds, each ``(B, L)``."""

    z_mean: Tensor
    z_std: Tensor
    w_mean: Tensor
    w_std: Tensor


class Terms(NamedTuple):
    """The four terms of the bound, nats, each ``(B,)``: bound = reconstruction - z - w - y."""

    reconstruction: Tensor
    z: Tensor
    w: Tensor
    y: Tensor


class GMVAE(nn.Module):
    """The nets: a VAE's, q(w|x) on the same encoder, and β, which makes K Gaussians of w.

    Parameters
    ----------
    vae
        Encoder, q(z|x) and p(x|z).
    n_clusters
        Number of clusters K.
    """

    def __init__(self, vae: NVISAModel, n_clusters: int) -> None:
        super().__init__()
        self.vae = vae
        self.n_clusters = n_clusters
        latent, hidden = vae.z_mean.out_features, vae.encoder.out_features
        self.w_from_x = dense(hidden, hidden)
        self.w_mean, self.w_raw_std = Head(hidden, latent), Head(hidden, latent)
        self.beta = mlp(latent, (hidden,))
        self.prior_mean = Head(hidden, n_clusters * latent)
        self.prior_raw_std = Head(hidden, n_clusters * latent)

    def q(self, x: Tensor) -> Posterior:
        """Both posteriors of preprocessed rows ``(B, D)``."""
        hidden = self.vae.encoder(x)
        features = F.leaky_relu(self.w_from_x(hidden), NEGATIVE_SLOPE)
        w_std = bounded_std(self.w_raw_std(features), self.vae.epsilon_z)
        return Posterior(*q_z(self.vae, hidden), self.w_mean(features), w_std)

    def p_z(self, w: Tensor) -> tuple[Tensor, Tensor]:
        """Means and stds of p(z|w, y) for every y: ``(..., L)`` -> two of ``(..., K, L)``."""
        hidden = self.beta(w)
        shape = (self.n_clusters, -1)
        std = bounded_std(self.prior_raw_std(hidden), LEAST_PRIOR_STD)
        return self.prior_mean(hidden).unflatten(-1, shape), std.unflatten(-1, shape)

    def terms(self, x: Tensor, generator: torch.Generator) -> Terms:
        """The bound's terms (eq. 4 and 5) with one reparameterised draw of z and of w: ``x (B, D)``."""
        q = self.q(x)
        z = sample_normal(q.z_mean, q.z_std, generator)
        mean, std = self.p_z(sample_normal(q.w_mean, q.w_std, generator))
        log_y = F.log_softmax(normal_log_density(z.unsqueeze(1), mean, std), -1)
        kl_z = kl_normal(q.z_mean.unsqueeze(1), q.z_std.unsqueeze(1), mean, std)
        return Terms(
            log_p_x(self.vae, x, z.unsqueeze(0)).squeeze(0),
            (log_y.exp() * kl_z).sum(1),
            kl_from_standard(q.w_mean, q.w_std),
            (log_y.exp() * log_y).sum(1) + math.log(self.n_clusters),
        )

    def forward(self, x: Tensor) -> Tensor:
        """p(y|z, w) at the means of q(z|x) and q(w|x): ``(B, D) -> (B, K)``."""
        q = self.q(x)
        return normal_log_density(q.z_mean.unsqueeze(1), *self.p_z(q.w_mean)).softmax(-1)


def kl_normal(mean: Tensor, std: Tensor, other_mean: Tensor, other_std: Tensor) -> Tensor:
    """KL(N(mean, std²) || N(other_mean, other_std²)), nats, summed over the last axis."""
    ratio = (std / other_std).square()
    shift = ((mean - other_mean) / other_std).square()
    return 0.5 * (ratio + shift - 1 - ratio.log()).sum(-1)


class _Fitted:
    def __init__(self, gmvae: GMVAE) -> None:
        self._gmvae = gmvae

    @torch.no_grad()
    def predict(self, x: np.ndarray) -> np.ndarray:
        vae = self._gmvae.vae
        rows = MappedRows(x, vae.spec.dtype, vae.shift.device)
        parts = rows.split(part_rows(rows.shape))
        return torch.cat([self._gmvae(vae.preprocess(part)).argmax(1) for part in parts]).cpu().numpy()


def fit_gmvae(x: np.ndarray, config: TrainingConfig, say: Say) -> Clusterer:
    """All nets from random, by the bound, for ``epochs``; there is no pretraining.

    Of the prior term of y, its mean over the batch, only what exceeds half of log K is penalised (their
    λ, whose value they do not give; z, w and β are as wide as NVISA's nets).
    """
    model, rows = begin(x, with_variational_decoder(x, config), say)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        gmvae = GMVAE(model, config.n_clusters).to(rows.device)
    free = FREE_SHARE * math.log(config.n_clusters)

    def loss(index: Tensor, raw: Tensor, generator: torch.Generator) -> Tensor:
        terms = Terms(*(term.mean() for term in gmvae.terms(model.preprocess(raw), generator)))
        return terms.z + terms.w + terms.y.clamp_min(free) - terms.reconstruction

    own = [p for name, p in gmvae.named_parameters() if not name.startswith("vae.")]
    run(epochs("gmvae", loss, [*vae_parameters(model), *own], rows, config, joint_epochs(config), say))
    return _Fitted(gmvae.eval())
