"""Variational Deep Embedding (Jiang, Zheng, Tan, Tang & Zhou, 2017).

Own code, not ClustPy 0.0.3's: there p(c|z) has the log-variance where half of it belongs, and both the labels
and ``predict`` are those of another mixture, fitted to the codes afterwards.
"""

from __future__ import annotations

import numpy as np
import torch
from sklearn.mixture import GaussianMixture
from torch import Tensor, nn
from torch.nn import functional as F

from training.baselines.begin import Say, begin, joint_epochs, with_variational_decoder
from training.baselines.clusterer import Clusterer, on_codes
from training.baselines.loop import epochs, run
from training.baselines.vae import log_p_x, q_z, vae_parameters
from training.config import TrainingConfig
from training.densities import normal_log_density, sample_normal
from training.initialise import finite_codes, pretrain, scale_codes
from training.mixture import fit_mixture
from training.model import NVISAModel


class MixturePrior(nn.Module):
    """p(c) p(z|c): weights and K Gaussians with diagonal covariances, all learned.

    Parameters
    ----------
    mixture
        Where to begin: fitted, with ``covariance_type="diag"``.
    """

    def __init__(self, mixture: GaussianMixture) -> None:
        super().__init__()
        self.logits = _parameter(np.log(np.maximum(mixture.weights_, 1e-12)))
        self.means = _parameter(mixture.means_)
        self.log_variances = _parameter(np.log(mixture.covariances_))

    def log_joint(self, z: Tensor) -> Tensor:
        """log p(c) p(z|c): ``(B, L) -> (B, K)``."""
        log_density = normal_log_density(z.unsqueeze(1), self.means, (0.5 * self.log_variances).exp())
        return F.log_softmax(self.logits, 0) + log_density

    def mixture(self) -> GaussianMixture:
        """As scikit-learn's, whose ``predict`` is the argmax of p(c|z)."""
        mixture = GaussianMixture(len(self.logits), covariance_type="diag")
        mixture.weights_ = _array(self.logits.softmax(0))
        mixture.means_ = _array(self.means)
        mixture.covariances_ = _array(self.log_variances.exp())
        mixture.precisions_cholesky_ = mixture.covariances_**-0.5
        return mixture


def divergence(prior: MixturePrior, mean: Tensor, std: Tensor, log_gamma: Tensor) -> Tensor:
    """KL(q(z|x) q(c|x) || p(z, c)) in closed form (eq. 12): all but the first term of the bound, negated.

    Two of ``(B, L)`` and log q(c|x) ``(B, K)`` -> ``(B,)``, nats. The terms with
    log 2π of p(z|c) and of q(z|x) cancel.
    """
    gamma = log_gamma.exp()
    variances = prior.log_variances.exp()
    squares = std.square().unsqueeze(1) + (mean.unsqueeze(1) - prior.means).square()
    crossed = 0.5 * (prior.log_variances + squares / variances).sum(-1)
    chosen = log_gamma - F.log_softmax(prior.logits, 0)
    entropy = (std.log() + 0.5).sum(-1)
    return (gamma * (crossed + chosen)).sum(1) - entropy


def elbo(model: NVISAModel, prior: MixturePrior, x: Tensor, generator: torch.Generator) -> Tensor:
    """The bound with q(c|x) = p(c|z) at the draw (eq. 16): ``(B, D) -> (B,)``, nats."""
    mean, std = q_z(model, model.encoder(x))
    z = sample_normal(mean, std, generator)
    log_gamma = F.log_softmax(prior.log_joint(z), 1)
    return log_p_x(model, x, z.unsqueeze(0)).squeeze(0) - divergence(prior, mean, std, log_gamma)


def fit_vade(x: np.ndarray, config: TrainingConfig, say: Say) -> Clusterer:
    """Autoencoder, a diagonal mixture on its codes, then all of it by the bound, for ``epochs``.

    A row's cluster is the argmax of p(c|z) at the mean of q(z|x). The learning rate falls to zero, as the
    paper's falls; the optimiser and its rate are NVISA's.
    """
    config = with_variational_decoder(x, config)
    model, rows = begin(x, config, say)
    pretrain(model, rows, config, say, redraw=False)
    codes = finite_codes(model, rows)
    mixture = fit_mixture(codes, config.n_clusters, config.gmm_starts, config.seed, "diag")
    # As NVISA's start does: else q(z|x) may begin much wider than the components, and they merge.
    factor = scale_codes(model, np.average(mixture.covariances_, axis=0, weights=mixture.weights_))
    mixture.means_, mixture.covariances_ = mixture.means_ * factor, mixture.covariances_ * factor**2
    prior = MixturePrior(mixture).to(rows.device)

    def loss(index: Tensor, raw: Tensor, generator: torch.Generator) -> Tensor:
        return -elbo(model, prior, model.preprocess(raw), generator).mean()

    trained = [*vae_parameters(model), *prior.parameters()]
    run(epochs("vade", loss, trained, rows, config, joint_epochs(config), say))
    finite_codes(model, rows)
    return on_codes(model, prior.mixture())


def _parameter(values: np.ndarray) -> nn.Parameter:
    return nn.Parameter(torch.as_tensor(values, dtype=torch.float32))


def _array(values: Tensor) -> np.ndarray:
    return values.detach().double().cpu().numpy()
