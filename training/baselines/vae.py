"""A VAE with NVISA's networks (Kingma & Welling, 2014), and the baseline VAE+GMM."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from training.baselines.begin import Say, begin, with_variational_decoder
from training.baselines.clusterer import Clusterer, on_codes
from training.baselines.loop import epochs, run
from training.config import TrainingConfig
from training.densities import LOG_2PI, bounded_std, sample_normal
from training.initialise import finite_codes
from training.mixture import fit_mixture
from training.model import NVISAModel
from training.networks import NEGATIVE_SLOPE


def q_z(model: NVISAModel, hidden: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and std of q(z|x) from the encoder's hidden features: ``(B, H)`` -> two of ``(B, L)``.

    The mean is the code of the autoencoder, `training.initialise.latent_code`.
    """
    features = F.leaky_relu(model.z_from_x(hidden), NEGATIVE_SLOPE)
    return model.z_mean(features), bounded_std(model.z_raw_std(features), model.epsilon_z)


def log_p_x(model: NVISAModel, x: Tensor, z: Tensor) -> Tensor:
    """log p(x|z) in nats: ``x (B, D)``, ``z (M, B, L)`` -> ``(M, B)``.

    Bernoulli, grey values counting as means, or Gaussian with unit variance: a learned variance has no
    bound on constant pixels without NVISA's annealing.
    """
    if model.likelihood == "bernoulli":
        return model.log_p_x(x, z)
    mean = model.x_mean(model.decoder(z.flatten(0, -2))).unflatten(0, z.shape[:-1])
    out: Tensor = -0.5 * ((x - mean).square() + LOG_2PI).sum(-1)
    return out


def kl_from_standard(mean: Tensor, std: Tensor) -> Tensor:
    """KL(N(mean, std²) || N(0, I)) in nats: two of ``(..., L) -> (...)``."""
    return 0.5 * (mean.square() + std.square() - 1 - 2 * std.log()).sum(-1)


def elbo(model: NVISAModel, x: Tensor, generator: torch.Generator) -> Tensor:
    """Lower bound of log p(x) with p(z) = N(0, I), one reparameterised draw: ``(B, D) -> (B,)``."""
    mean, std = q_z(model, model.encoder(x))
    z = sample_normal(mean, std, generator)
    return log_p_x(model, x, z.unsqueeze(0)).squeeze(0) - kl_from_standard(mean, std)


def fit_vae_gmm(x: np.ndarray, config: TrainingConfig, say: Say) -> Clusterer:
    """A VAE of ``pretrain_epochs``, and the likeliest of ``gmm_starts`` mixtures on the means of q(z|x)."""
    model, rows = begin(x, with_variational_decoder(x, config), say)
    n_epochs = config.pretrain_epochs

    def loss(index: Tensor, raw: Tensor, generator: torch.Generator) -> Tensor:
        return -elbo(model, model.preprocess(raw), generator).mean()

    trained = vae_parameters(model)
    run(epochs("vae", loss, trained, rows, config, n_epochs, say, first=-n_epochs, falling=False))
    codes = finite_codes(model, rows)
    return on_codes(model, fit_mixture(codes, config.n_clusters, config.gmm_starts, config.seed))


def vae_parameters(model: NVISAModel) -> list[Tensor]:
    """The parameters that a VAE has: NVISA's but for q(y|x)'s, the prior's and p(x|z)'s std."""
    parts = (model.encoder, model.z_from_x, model.z_mean, model.z_raw_std, model.decoder, model.x_mean)
    return [parameter for part in parts for parameter in part.parameters()]
