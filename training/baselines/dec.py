"""Deep Embedded Clustering (Xie, Girshick & Farhadi, 2016).

Own code: ClustPy 0.0.3's DEC makes P in every batch from that batch alone, and its loader and loop are not
NVISA's. Unlike the paper's, the autoencoder here is NVISA's, trained at once rather than layer by layer with
dropout, and the optimiser is Adam rather than SGD.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from sklearn import config_context
from sklearn.cluster import KMeans
from torch import Tensor
from torch.nn import functional as F

from training.baselines.begin import Say, begin, joint_epochs
from training.baselines.clusterer import Clusterer, on_codes
from training.baselines.loop import epochs
from training.config import TrainingConfig
from training.initialise import encode_rows, finite_codes, latent_code, pretrain
from training.rows import PART_ROWS

STARTS = 20
TOLERANCE = 1e-3  # share of rows that change their cluster between two refreshes of P


def soft_assignment(codes: Tensor, centres: Tensor) -> Tensor:
    """Student's t with one degree of freedom, q_nk ∝ 1 / (1 + |z_n - m_k|²) (eq. 1).

    ``codes (n, L)``, ``centres (K, L)`` -> ``(n, K)``, rows sum to 1.
    """
    kernel = 1 / (1 + (codes.unsqueeze(1) - centres).square().sum(-1))
    return kernel / kernel.sum(1, keepdim=True)


def target_distribution(q: Tensor) -> Tensor:
    """p_nk ∝ q_nk² / sum_n q_nk (eq. 3): confident assignments count more, large clusters less.

    ``(n, K) -> (n, K)``, rows sum to 1; n is all rows, not a batch.
    """
    weight = q.square() / q.sum(0)
    return weight / weight.sum(1, keepdim=True)


def divergence(q: Tensor, p: Tensor) -> Tensor:
    """KL(P || Q) of each row (eq. 2), in nats: ``(B, K)``, ``(B, K) -> (B,)``."""
    return F.kl_div(q.log(), p, reduction="none").sum(1)


@dataclass(frozen=True)
class NearestCentre:
    """The most probable cluster of `soft_assignment`, which is that of the nearest centre ``(K, L)``."""

    centres: np.ndarray

    def predict(self, codes: np.ndarray) -> np.ndarray:
        """``(n, L) -> (n,)``."""
        distances = [np.square(codes - centre).sum(1) for centre in self.centres]
        return np.argmin(distances, 0)


def fit_dec(x: np.ndarray, config: TrainingConfig, say: Say) -> Clusterer:
    """Autoencoder, k-means on its codes, then the encoder and the centres by KL(P || Q) (eq. 2).

    P is refreshed after each epoch. It stops once less than 0.1 % of the rows change their cluster between
    two refreshes, or after ``epochs``.
    """
    model, rows = begin(x, config, say)
    pretrain(model, rows, config, say)
    with config_context(array_api_dispatch=False):
        kmeans = KMeans(config.n_clusters, n_init=STARTS, random_state=config.seed)
        kmeans.fit(finite_codes(model, rows))
    centres = torch.tensor(kmeans.cluster_centers_, dtype=torch.float32, device=rows.device)
    centres.requires_grad_()

    def refreshed() -> Tensor:
        codes = torch.as_tensor(encode_rows(model, rows), dtype=torch.float32, device=rows.device)
        # In parts, for (n, K, L) differences of many rows and clusters take much memory.
        return torch.cat([soft_assignment(part, centres.detach()) for part in codes.split(PART_ROWS)])

    q = refreshed()
    p, clusters = target_distribution(q), q.argmax(1)

    def loss(index: Tensor, raw: Tensor, generator: torch.Generator) -> Tensor:
        q = soft_assignment(latent_code(model, model.preprocess(raw)), centres)
        return divergence(q, p[index]).mean()

    trained = [*model.encoder.parameters(), *model.z_from_x.parameters(), *model.z_mean.parameters(), centres]
    n_epochs = joint_epochs(config)
    for epoch, _ in enumerate(epochs("dec", loss, trained, rows, config, n_epochs, say, falling=False)):
        q = refreshed()
        changed = (q.argmax(1) != clusters).float().mean().item()
        p, clusters = target_distribution(q), q.argmax(1)
        if changed < TOLERANCE:
            say(f"dec epoch {epoch + 1}: {changed:.2%} of the rows changed their cluster, settled")
            break
    return on_codes(model, NearestCentre(centres.detach().double().cpu().numpy()))
